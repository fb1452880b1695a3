"""The loop on the host that trains a stage: one logging interval after the other, for one run or for many.

Data, parameters and losses stay on the device; the host reads an interval's numbers while the next one is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..config.hparams import static_part
from ..models.base import is_statistic
from ..optim.partition import join
from ..retention.base import RetentionState
from ..types import LogFn, Params, Row, Split
from .compiled import Compiled
from .evaluation import Best
from .stage import Stage, frozen_paths, traced, with_added
from .step import Losses, TrainState, carry_over, eval_params
from .trainer import Precision
from .vectorize import RunAxis, programs, stack_runs


class Fit(NamedTuple):
    """The end of training."""

    params: Params
    diverged: bool
    last_finite_step: int
    kept_step: int  # updates behind the kept parameters: all of them, or those before the best evaluation
    rounded: float | None = None  # share of the trainable weights whose last logged update rounded to zero
    seconds_per_update: float | None = None  # wall time without compilation; None without updates


class EvalHook(NamedTuple):
    """A measurement of the parameters on the host, every so many updates; the device waits for it."""

    every: int  # updates, a multiple of `log_every`; also before the first update and after the last
    measure: Callable[[int, Params], Mapping[str, float]]  # of the number of updates made and the parameters

    def due(self, step: int, steps: int) -> bool:
        """Return whether to measure after ``step`` of ``steps`` updates."""
        return step % self.every == 0 or step == steps


@dataclass
class RunProgress:
    """What the host knows of a run, over all its phases."""

    log_fn: LogFn
    last_finite: int | None = None  # set when the run diverges
    stopped: bool = False  # the patience is used up
    updates: int = 0
    kept_step: int | None = None
    rounded: float | None = None
    seconds: float = 0.0  # of the training loops, without compilation
    timed_updates: int = 0  # in these seconds

    @property
    def ended(self) -> bool:
        """Whether nothing more of this run is logged."""
        return self.stopped or self.last_finite is not None

    def fit(self, params: Params) -> Fit:
        """Return the end of training with these parameters."""
        return Fit(
            params,
            diverged=self.last_finite is not None,
            last_finite_step=self.updates if self.last_finite is None else self.last_finite,
            kept_step=self.updates if self.kept_step is None else self.kept_step,
            rounded=self.rounded,
            seconds_per_update=self.seconds / self.timed_updates if self.timed_updates else None,
        )


class PhaseData(NamedTuple):
    """The data of a phase, shared by all runs that are trained together."""

    train: Split
    splits: Mapping[str, Split] = {}  # evaluated at each logged row
    per_run: bool = False  # whether all of it has a leading run axis


@dataclass(frozen=True)
class PhaseRun:
    """One run's part of a phase."""

    stage: Stage
    params: Params  # initial parameters; runs that may share them hold the same object
    progress: RunProgress
    retention_state: RetentionState | None = None
    hook: EvalHook | None = None


def train_phase(
    runs: Sequence[PhaseRun],
    data: PhaseData,
    axis: RunAxis = RunAxis.none,
    *,
    previous: PhaseRunner | None = None,
    final: bool = True,
) -> PhaseRunner:
    """Train one phase of runs that differ in traced hyperparameters only.

    Each run's ``progress.log_fn`` gets its logged rows in order: ``step`` (updates made), ``loss`` of that update's
    batch, ``grad_norm``, ``lr``, and the metrics of the evaluated splits. A loss that is not finite ends the run as
    diverged.

    Args:
        runs: one, or several with a run axis.
        data: rows to learn from and to evaluate.
        axis: how the run axis is computed.
        previous: the phase before.
        final: whether this is the last phase: the choice of the best evaluation belongs to it.

    Returns:
        The runner, with the parameters at the end (:meth:`PhaseRunner.params`).
    """
    stage, runner = runs[0].stage, PhaseRunner(runs, data, axis, previous)
    started, compiling, untimed = time.perf_counter(), Compiled.seconds, 0
    best = runner.init_best() if final and stage.trainer.keeps_best else None
    metrics = runner.evaluate()
    if best is not None:
        best = runner.update_best(best, metrics["val_loss"], 0)
    waiting, made = [_Interval(0, 0, None, metrics, best, runner.measure_hooks(0))], 0
    for step in range(0, stage.steps, stage.log_every):
        count = min(stage.log_every, stage.steps - step)
        losses, metrics = runner.advance(step, count), runner.evaluate()
        if best is not None:
            best = runner.update_best(best, metrics["val_loss"], step + count)
        made = step + count
        waiting.append(_Interval(step, count, losses, metrics, best, runner.measure_hooks(made)))
        # The interval before is read only now, while this one is computed: the device never waits for the host.
        _log_interval(runs, waiting.pop(0), axis)
        if step > 0 and not untimed:  # the first interval has been read: a program's first call is slower
            started, compiling, untimed = time.perf_counter(), Compiled.seconds, step
        if all(run.progress.ended for run in runs):
            break
    for interval in waiting:
        _log_interval(runs, interval, axis)
    seconds = time.perf_counter() - started - (Compiled.seconds - compiling)
    for i, run in enumerate(runs):
        run.progress.updates = run.stage.first + run.stage.steps
        run.progress.seconds += seconds / len(runs)
        run.progress.timed_updates += made - untimed
        if best is not None:
            run.progress.kept_step = run.stage.first + int(np.ravel(best.step)[i])
    runner.best_params = None if best is None else best.params
    return runner


class _Interval(NamedTuple):
    """What comes back from the device for a logging interval; with a run axis where there is one."""

    step: int  # updates before it
    updates: int  # in it
    losses: Losses | None
    metrics: Mapping[str, Array]  # of the parameters after it
    best: Best | None
    measured: Sequence[Mapping[str, float]] | None = None  # by the hook of each run


def _log_interval(runs: Sequence[PhaseRun], interval: _Interval, axis: RunAxis) -> None:
    """Pass an interval's row to each run's ``log_fn``; note which runs diverged or used up their patience."""
    with_axis = (lambda values: np.asarray(values)[None]) if axis is RunAxis.none else np.asarray
    losses = {} if interval.losses is None else {name: with_axis(v) for name, v in interval.losses.series()}
    metrics = {name: with_axis(value) for name, value in interval.metrics.items()}
    waited = None if interval.best is None else with_axis(interval.best.waited)
    for i, run in enumerate(runs):
        stage, progress = run.stage, run.progress
        if progress.ended or (interval.updates == 0 and stage.phase > 0):
            continue  # the phase before has logged these parameters
        series = {name: values[i][: interval.updates] for name, values in losses.items()}
        rounded = series.pop("rounded", None)
        finite = np.isfinite(series["loss"]) if series else np.ones(0, bool)
        kept = interval.updates if finite.all() else int(np.argmin(finite))
        row: Row = {"step": stage.first + interval.step + kept}
        if kept:
            row |= {name: shortest_float(values[kept - 1]) for name, values in series.items()}
            progress.rounded = shortest_float(rounded[kept - 1]) if rounded is not None else None
            if stage.objective.metric_names():  # a single update can be the first sign of instability
                row["grad_norm_max"] = shortest_float(series["grad_norm"][:kept].max())
        if kept == interval.updates:
            row |= {name: shortest_float(values[i]) for name, values in metrics.items()}
            measured = interval.measured[i] if interval.measured else {}
            row |= {name: shortest_float(value) for name, value in measured.items()}
        else:
            progress.last_finite = int(row["step"])
        if len(row) > 1:
            progress.log_fn(row)
        patience = stage.trainer.patience
        progress.stopped = patience is not None and waited is not None and int(waited[i]) >= patience


class PhaseRunner:
    """The device's side of a phase: its state, and the calls that change it."""

    def __init__(
        self, runs: Sequence[PhaseRun], data: PhaseData, axis: RunAxis, previous: PhaseRunner | None = None
    ) -> None:
        self.runs, self.axis, self.n_runs = runs, axis, len(runs)
        self.best_params: Params | None = None
        stages, params = [run.stage for run in runs], [run.params for run in runs]
        stage, single = stages[0], axis is RunAxis.none
        # Runs with one start and one seed share their frozen half, and their row order is computed once.
        self.same_start = not single and len(runs) > 1 and _all_same(params) and len({s.seed for s in stages}) == 1
        start_from = params[0] if self.same_start or single else stack_runs(params)
        self.programs = programs(static_part(stage), axis, same_start=self.same_start, data_per_run=data.per_run)
        self.splits, self.data = jax.device_put((dict(data.splits), data.train))  # once, not with every call
        hypers = [traced(stage) for stage in stages]
        self.hyper = hypers[0] if single else stack_runs(hypers)
        self.count: tuple[Any, ...] = () if single else (np.int32(self.n_runs),)  # the first argument of each program
        self.frozen_from = {path: start_from[path] for path in frozen_paths(stage, with_added(stage, params[0]))}
        self.frozen = _device_frozen(stage, self.frozen_from)
        self.state: TrainState = self.programs.start(*self.count, self.hyper, start_from)
        if previous is not None:
            self.state = carry_over(self.state, previous.state)
        states = [run.retention_state for run in runs]
        shared = self.same_start or single
        self.retention_state: RetentionState = jax.device_put(
            {} if states[0] is None else states[0] if shared else stack_runs(states)
        )
        rows = data.train.y.shape[1 if data.per_run else 0]
        minibatches = stage.batch_size is not None and stage.batch_size < rows
        order_axis = RunAxis.none if self.same_start else axis
        self.order = programs(static_part(stage), order_axis).order(rows) if minibatches else None
        self.order_args = ((), hypers[0]) if self.same_start else (self.count, self.hyper)

    def advance(self, step: int, count: int) -> Losses:
        """Dispatch ``count`` updates after the first ``step``."""
        number, count_ = np.int32(step), np.int32(count)
        head, hyper = self.order_args
        order = self.order and self.order(*head, hyper, number)
        arguments = (self.hyper, self.state, self.frozen, self.data, order, number, count_, self.retention_state)
        self.state, losses = self.programs.advance(*self.count, *arguments)
        return losses

    def evaluate(self) -> Mapping[str, Array]:
        """Dispatch an evaluation of the splits."""
        if not self.splits:
            return {}
        return self.programs.evaluate(*self.count, self.hyper, eval_params(self.state), self.frozen, self.splits)

    def init_best(self) -> Best:
        """Return the best evaluation before the first one."""
        return self.programs.init_best(*self.count, self.hyper, eval_params(self.state))

    def update_best(self, best: Best, loss: Array, step: int) -> Best:
        """Return the best evaluation after one more of the present parameters."""
        return self.programs.update_best(*self.count, self.hyper, best, eval_params(self.state), loss, np.int32(step))

    def measure_hooks(self, step: int) -> list[Mapping[str, float]] | None:
        """Return the measurements of each run's hook where they are due; a run that ended has none."""
        hook = self.runs[0].hook
        if hook is None or not hook.due(step, self.runs[0].stage.steps):
            return None
        # Copies: the next updates overwrite the state in place.
        params = self._join(jax.tree.map(jnp.copy, eval_params(self.state)))
        return [
            {} if run.progress.ended or run.hook is None else run.hook.measure(step, own)
            for run, own in zip(self.runs, params, strict=True)
        ]

    def params(self) -> list[Params]:
        """Return each run's parameters: those of the best evaluation where it is kept, or the present ones."""
        return self._join(eval_params(self.state) if self.best_params is None else self.best_params)

    def _join(self, trainable: Params) -> list[Params]:
        if self.axis is RunAxis.none:
            return [join(trainable, self.frozen_from)]
        moved: Params = jax.device_get(trainable)
        frozen: Params = self.frozen_from if self.same_start else jax.device_get(self.frozen_from)

        def own(i: int) -> Params:
            rest = frozen if self.same_start else {path: leaf[i] for path, leaf in frozen.items()}
            return join({path: leaf[i] for path, leaf in moved.items()}, rest)

        return [own(i) for i in range(self.n_runs)]


def _all_same(values: Sequence[Any]) -> bool:
    return all(value is values[0] for value in values)


def _device_frozen(stage: Stage, frozen: Params) -> Params:
    """Return the frozen half as it is stored on the device during training."""
    if stage.trainer.frozen_precision is Precision.float32:
        return jax.device_put(frozen)
    return jax.device_put(
        {path: leaf if is_statistic(path) else leaf.astype("bfloat16") for path, leaf in frozen.items()}
    )


def shortest_float(value: Any) -> float:
    """Return a float32 as the shortest decimal that gives the same float32 back: 0.05, not 0.05000000074505806."""
    return float(str(np.float32(value)))


def train(stage: Stage, params: Params, data: Split, splits: Mapping[str, Split], log_fn: LogFn) -> Fit:
    """Train one stage of one run; see :func:`train_phase`."""
    progress = RunProgress(log_fn)
    (end,) = train_phase([PhaseRun(stage, params, progress)], PhaseData(data, splits)).params()
    return progress.fit(end)
