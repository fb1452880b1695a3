"""The loop on the host that drives a stage: one interval after the other, for one run or for many lanes.

Between two logged steps the device is on its own: data, parameters and losses stay there, and the host reads an
interval's numbers while the next one is running.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..config.hparams import bind, static_part
from ..models.base import is_statistic
from ..optim.partition import join
from ..retention.base import RetentionState
from ..types import LogFn, Params, Row, Split
from .compiled import Cost
from .stage import Best, Losses, Stage, State, carry_over, eval_params, frozen_paths, start, traced, with_added
from .trainer import Precision
from .vectorize import Lanes, programs, stacked


class Fit(NamedTuple):
    """What training ends with."""

    params: Params
    diverged: bool
    last_finite_step: int
    kept_step: int  # updates that the parameters have seen: all, or those before the best evaluation
    rounded: float | None = None  # share of the trainable weights whose last logged update rounded to zero


class EvalHook(NamedTuple):
    """A closer look at the parameters every so many updates, before the first and after the last; the device waits."""

    every: int  # updates, a multiple of `log_every`
    measure: Callable[[int, int, Params], Mapping[str, float]]  # of a lane, the updates made, its parameters

    def due(self, step: int, steps: int) -> bool:
        """Tell whether it is time for one after ``step`` of ``steps`` updates."""
        return step % self.every == 0 or step == steps


class Interval(NamedTuple):
    """What comes back from the device for one logging interval; with lanes, everything has a leading axis."""

    step: int  # updates made before it
    updates: int  # made in it
    losses: Losses | None
    metrics: Mapping[str, Array]  # of the parameters after it
    best: Best | None
    seen: Sequence[Mapping[str, float]] | None = None  # what a look has found, a lane each


@dataclass
class RunProgress:
    """What the host knows of one lane under way, over all its phases."""

    watch: LogFn
    last_finite: int | None = None  # of a lane that diverged
    stopped: bool = False
    kept_step: int | None = None
    rounded: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of this lane is reported any more."""
        return self.stopped or self.last_finite is not None


def fit(stage: Stage, params: Params, data: Split, splits: Mapping[str, Split], watch: LogFn) -> Fit:
    """Train one stage.

    Args:
        stage: what to do.
        params: all parameters, flat.
        data: the rows to learn from.
        splits: what is evaluated before the first update and at each logged row.
        watch: called with each logged row, in order: ``step`` (updates made), ``loss`` of that update's batch,
            ``grad_norm``, ``lr``, and the splits' metrics.

    Returns:
        The parameters after the last update. A loss that is not finite ends the stage early as diverged.
    """
    return fit_lanes([stage], [params], data, splits, [watch], Lanes.one)[0]


def fit_lanes(
    stages: Sequence[Stage],
    params: Sequence[Params],
    data: Split,
    splits: Mapping[str, Split],
    watches: Sequence[LogFn],
    lanes: Lanes,
    look: EvalHook | None = None,
) -> list[Fit]:
    """Train many stages that differ in traced hyperparameters only, as lanes of one program.

    Args:
        stages: one a lane, of the same static part.
        params: what each starts from; where all are the same object, the lanes share it.
        data: the rows to learn from, the same for all.
        splits: as in :func:`fit`.
        watches: one a lane.
        lanes: how; ``Lanes.one`` for a single stage.
        look: what is measured of the parameters on the way; its numbers join the row of their step.
    """
    run = Training(watches, lanes)
    return run.ends(run.phase(stages, params, data, splits, look=look))


def same_seed(stages: Sequence[Stage]) -> bool:
    """Tell whether all stages see the rows in the same order."""
    return len({stage.seed for stage in stages}) == 1


def share_start(params: Sequence[Params], stages: Sequence[Stage], lanes: Lanes) -> bool:
    """Tell whether all lanes start from the same parameters and see the rows in the same order."""
    return lanes is not Lanes.one and len(params) > 1 and all(p is params[0] for p in params) and same_seed(stages)


class Training:
    """Trains one run or many lanes, phase after phase."""

    def __init__(self, watches: Sequence[LogFn], lanes: Lanes) -> None:
        self.lanes = lanes
        self.courses = [RunProgress(watch) for watch in watches]
        self.last: PhaseRunner | None = None

    def phase(
        self,
        stages: Sequence[Stage],
        params: Sequence[Params],
        data: Split,
        splits: Mapping[str, Split],
        own_rows: bool = False,
        final: bool = True,
        kept: Sequence[RetentionState] | None = None,
        look: EvalHook | None = None,
    ) -> list[Params]:
        """Train one phase and return each lane's parameters.

        Args:
            stages: one a lane, of the same static part.
            params: what each starts from; where all are the same object, the lanes share it.
            data: the rows to learn from.
            splits: what is evaluated at each logged row.
            own_rows: whether ``data`` and ``splits`` have a leading axis, each lane's own.
            final: whether this is the last phase, to which the choice of the best evaluation belongs.
            kept: what the retention method keeps of the source task, a lane each.
            look: as in :func:`fit_lanes`.
        """
        stage = stages[0]
        run = PhaseRunner(stages, params, data, splits, self.lanes, own_rows, self.last, kept)
        best = run.no_best() if final and stage.trainer.keeps_best else None
        metrics = run.evaluate()
        if best is not None:
            best = run.better(best, metrics["val_loss"], 0)
        waiting = [Interval(0, 0, None, metrics, best, self._look(look, run, 0))]
        for step in range(0, stage.steps, stage.log_every):
            count = min(stage.log_every, stage.steps - step)
            losses, metrics = run.advance(step, count), run.evaluate()
            if best is not None:
                best = run.better(best, metrics["val_loss"], step + count)
            seen = self._look(look, run, step + count)
            waiting.append(Interval(step, count, losses, metrics, best, seen))
            # Read the interval before this one only now, with this one under way: the device never waits for the host.
            self._report(stages, waiting.pop(0))
            if all(course.ended for course in self.courses):
                break
        for interval in waiting:
            self._report(stages, interval)
        self.last = run
        if best is None:
            return run.params()
        for lane, (course, own) in enumerate(zip(self.courses, stages, strict=True)):
            course.kept_step = own.first + int(np.ravel(best.step)[lane])
        return run.params(best.params)

    def ends(self, params: Sequence[Params]) -> list[Fit]:
        """Return how each lane ended, given its last parameters."""
        made = [stage.first + stage.steps for stage in self.last.stages] if self.last else [0] * len(params)
        return [
            Fit(
                own,
                course.last_finite is not None,
                steps if course.last_finite is None else course.last_finite,
                steps if course.kept_step is None else course.kept_step,
                course.rounded,
            )
            for own, course, steps in zip(params, self.courses, made, strict=True)
        ]

    def _look(self, look: EvalHook | None, run: PhaseRunner, step: int) -> list[Mapping[str, float]] | None:
        """Return what a look finds of each lane that goes on, where one is due."""
        if look is None or not look.due(step, run.stages[0].steps):
            return None
        return [
            {} if course.ended else look.measure(lane, step, own)
            for lane, (course, own) in enumerate(zip(self.courses, run.snapshot(), strict=True))
        ]

    def _report(self, stages: Sequence[Stage], interval: Interval) -> None:
        """Pass an interval's row to each lane's watch; note where one diverged, or has waited long enough."""
        axis = (lambda values: np.asarray(values)[None]) if self.lanes is Lanes.one else np.asarray
        losses = {} if interval.losses is None else {name: axis(values) for name, values in interval.losses.series()}
        metrics = {name: axis(value) for name, value in interval.metrics.items()}
        waited = None if interval.best is None else axis(interval.best.waited)
        for lane, (stage, course) in enumerate(zip(stages, self.courses, strict=True)):
            if course.ended or (interval.updates == 0 and stage.phase > 0):
                continue  # the phase before has reported these parameters
            series = {name: values[lane][: interval.updates] for name, values in losses.items()}
            rounded = series.pop("rounded", None)
            finite = np.isfinite(series["loss"]) if series else np.ones(0, bool)
            kept = interval.updates if finite.all() else int(np.argmin(finite))
            row: Row = {"step": stage.first + interval.step + kept}
            if kept:
                row |= {name: number(values[kept - 1]) for name, values in series.items()}
                course.rounded = number(rounded[kept - 1]) if rounded is not None else None
                if stage.objective.metric_names():  # of these a single update can tell of trouble, and few are logged
                    row["grad_norm_max"] = number(series["grad_norm"][:kept].max())
            if kept == interval.updates:
                row |= {name: number(values[lane]) for name, values in metrics.items()}
                row |= {name: number(value) for name, value in (interval.seen[lane] if interval.seen else {}).items()}
            else:
                course.last_finite = int(row["step"])
            if len(row) > 1:
                course.watch(row)
            patience = stage.trainer.patience
            course.stopped = patience is not None and waited is not None and int(waited[lane]) >= patience


class PhaseRunner:
    """The device's side of a phase: its state, and the calls that move it."""

    def __init__(
        self,
        stages: Sequence[Stage],
        params: Sequence[Params],
        data: Split,
        splits: Mapping[str, Split],
        lanes: Lanes,
        own_rows: bool,
        before: PhaseRunner | None,
        kept: Sequence[RetentionState] | None = None,
    ) -> None:
        stage, self.count = stages[0], len(stages)
        self.shared = share_start(params, stages, lanes)
        start_from = params[0] if self.shared or lanes is Lanes.one else stacked(params)
        self.programs = programs(static_part(stage), lanes, self.shared, own_rows)
        self.stages, self.lanes = stages, lanes
        self.splits, self.data = jax.device_put((dict(splits), data))  # once, and not with every call
        hypers = [traced(s) for s in stages]
        self.hyper = hypers[0] if lanes is Lanes.one else stacked(hypers)
        self.head: tuple[Any, ...] = () if lanes is Lanes.one else (np.int32(self.count),)  # before every argument
        self.frozen_from = {path: start_from[path] for path in frozen_paths(stage, with_added(stage, params[0]))}
        self.frozen = stored(stage, self.frozen_from)
        self.state: State = self.programs.start(*self.head, self.hyper, start_from)
        if before is not None:
            self.state = carry_over(self.state, before.state)
        alone = self.shared or lanes is Lanes.one
        self.kept: RetentionState = jax.device_put({} if kept is None else kept[0] if alone else stacked(kept))
        rows = data.y.shape[1 if own_rows else 0]
        minibatches = stage.batch_size is not None and stage.batch_size < rows
        # Lanes that share the order of their rows have it computed once, as a single run would.
        self.order = (
            programs(static_part(stage), Lanes.one if self.shared else lanes).order(rows) if minibatches else None
        )
        self.order_head = ((), hypers[0]) if self.shared else (self.head, self.hyper)

    def advance(self, step: int, count: int) -> Losses:
        """Dispatch ``count`` updates after the first ``step``."""
        number, count_ = np.int32(step), np.int32(count)
        head, hyper = self.order_head
        order = self.order and self.order(*head, hyper, number)
        arguments = (*self.head, self.hyper, self.state, self.frozen, self.data, order, number, count_, self.kept)
        self.state, losses = self.programs.advance(*arguments)
        return losses

    def evaluate(self) -> Mapping[str, Array]:
        """Dispatch an evaluation of the splits."""
        if not self.splits:
            return {}
        return self.programs.evaluate(*self.head, self.hyper, eval_params(self.state), self.frozen, self.splits)

    def no_best(self) -> Best:
        """Return the best of no evaluation yet."""
        return self.programs.no_best(*self.head, self.hyper, eval_params(self.state))

    def better(self, best: Best, loss: Array, step: int) -> Best:
        """Return the best evaluation after one more of the present parameters."""
        return self.programs.better(*self.head, self.hyper, best, eval_params(self.state), loss, np.int32(step))

    def snapshot(self) -> list[Params]:
        """Return each lane's parameters as they are now, copied: the next updates overwrite the state in place."""
        return self.params(jax.tree.map(jnp.copy, eval_params(self.state)))

    def params(self, moving: Params | None = None) -> list[Params]:
        """Return each lane's parameters: those that move as they are now, or as given."""
        moving = eval_params(self.state) if moving is None else moving
        if self.lanes is Lanes.one:
            return [join(moving, self.frozen_from)]
        moved: Params = jax.device_get(moving)
        frozen: Params = self.frozen_from if self.shared else jax.device_get(self.frozen_from)

        def own(lane: int) -> Params:
            still = frozen if self.shared else {path: leaf[lane] for path, leaf in frozen.items()}
            return join({path: leaf[lane] for path, leaf in moved.items()}, still)

        return [own(lane) for lane in range(self.count)]


def stored(stage: Stage, frozen: Params) -> Params:
    """Return the frozen half as the device keeps it while the others move."""
    if stage.trainer.frozen_precision is Precision.float32:
        return jax.device_put(frozen)
    return jax.device_put(
        {path: leaf if is_statistic(path) else leaf.astype("bfloat16") for path, leaf in frozen.items()}
    )


def number(value: Any) -> float:
    """Return a float32 as the shortest decimal that gives the same float32 back: 0.05, not 0.05000000474505806."""
    return float(str(np.float32(value)))


@functools.cache
def _update_cost(stage: Stage, shapes: tuple[tuple[str, tuple[int, ...], Any], ...], rows: Any, kept: Any) -> Cost:
    params: Any = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape, dtype in shapes}
    data = Split(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in rows))
    batch = min(stage.batch_size or len(data.x), len(data.x))
    order = jax.ShapeDtypeStruct((stage.log_every, batch), np.int32) if batch < len(data.x) else None
    hyper, step = traced(stage), jax.ShapeDtypeStruct((), np.int32)
    state = jax.eval_shape(lambda hyper, params: start(bind(stage, hyper), params), hyper, params)
    frozen = {path: params[path] for path in frozen_paths(stage, with_added(stage, params))}
    cost = programs(stage).advance.cost(hyper, state, frozen, data, order, step, step, kept.tree)
    bytes_ = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.optimizer))
    return cost._replace(optimizer_bytes=bytes_)


class Shapes:
    """A tree of shapes that can be a key: equal where structure, shapes and dtypes are."""

    def __init__(self, tree: Any) -> None:
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)

    @property
    def tree(self) -> Any:
        """Return the tree with shapes for leaves."""
        return jax.tree.unflatten(self._structure, [jax.ShapeDtypeStruct(*leaf) for leaf in self._leaves])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shapes) and (self._structure, self._leaves) == (other._structure, other._leaves)

    def __hash__(self) -> int:
        return hash((self._structure, self._leaves))


def update_cost(stage: Stage, params: Params, data: Split, kept: RetentionState | None = None) -> Cost:
    """Return what one update of a single run costs, gathering its rows included.

    Of the compiled program that :func:`fit` runs: what XLA found dead, such as the backward pass through a frozen
    trunk, does not count.
    """
    shapes = tuple((path, tuple(np.shape(leaf)), np.dtype(leaf.dtype)) for path, leaf in sorted(params.items()))
    rows = tuple((tuple(np.shape(part)), np.dtype(part.dtype)) for part in data)
    return _update_cost(static_part(stage), shapes, rows, Shapes(kept or {}))
