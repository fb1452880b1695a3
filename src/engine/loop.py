"""The loop on the host that drives a stage: one interval after the other, for one run or for many lanes.

Between two logged steps the device is on its own: data, parameters and losses stay there, and the host reads an
interval's numbers while the next one is running.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from src.config import static_part
from src.engine.lanes import Lanes, programs, stacked
from src.engine.partition import join
from src.engine.stage import Losses, Split, Stage, halves, start, traced
from src.models.base import Params

Row = dict[str, float]  # a logged step: its number and what was measured
Watch = Callable[[Row], None]


def ignore(_row: Row) -> None:
    """Watch nothing."""


class Fit(NamedTuple):
    """What a stage ends with."""

    params: Params
    diverged: bool
    last_finite_step: int


class Interval(NamedTuple):
    """What comes back from the device for one logging interval; with lanes, everything has a leading axis."""

    step: int  # updates made before it
    updates: int  # made in it
    losses: Losses | None
    metrics: Mapping[str, Array]  # of the parameters after it


def fit(stage: Stage, params: Params, data: Split, splits: Mapping[str, Split], watch: Watch) -> Fit:
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
    watches: Sequence[Watch],
    lanes: Lanes,
) -> list[Fit]:
    """Train many stages that differ in traced hyperparameters only, as lanes of one program.

    Args:
        stages: one a lane, of the same static part.
        params: what each starts from; where all are the same object, the lanes share it.
        data: the rows to learn from, the same for all.
        splits: as in :func:`fit`.
        watches: one a lane.
        lanes: how; ``Lanes.one`` for a single stage.
    """
    shared = lanes is not Lanes.one and len(params) > 1 and all(p is params[0] for p in params) and same_seed(stages)
    run = Driver(stages, params[0] if shared or lanes is Lanes.one else stacked(params), data, splits, lanes, shared)
    ends: list[int | None] = [None] * len(stages)
    waiting = [Interval(0, 0, None, run.evaluate())]
    for step in range(0, stages[0].steps, stages[0].log_every):
        count = min(stages[0].log_every, stages[0].steps - step)
        waiting.append(Interval(step, count, run.advance(step, count), run.evaluate()))
        # Read the interval before this one only now, with this one under way: the device never waits for the host.
        _report(waiting.pop(0), watches, ends, lanes)
        if None not in ends:
            break
    for interval in waiting:
        _report(interval, watches, ends, lanes)
    return [
        Fit(own, end is not None, stage.steps if end is None else end)
        for own, end, stage in zip(run.params(), ends, stages, strict=True)
    ]


def same_seed(stages: Sequence[Stage]) -> bool:
    """Tell whether all stages see the rows in the same order."""
    return len({stage.seed for stage in stages}) == 1


class Driver:
    """The device's side of a stage under way: its state, and the calls that move it."""

    def __init__(
        self,
        stages: Sequence[Stage],
        params: Params,
        data: Split,
        splits: Mapping[str, Split],
        lanes: Lanes,
        shared: bool,
    ) -> None:
        stage, self.count = stages[0], len(stages)
        self.programs = programs(static_part(stage), lanes, shared)
        self.lanes, self.shared, self.splits, self.data = lanes, shared, splits, data
        hypers = [traced(s) for s in stages]
        self.hyper = hypers[0] if lanes is Lanes.one else stacked(hypers)
        self.head: tuple[Any, ...] = () if lanes is Lanes.one else (np.int32(self.count),)  # before every argument
        self.frozen = halves(stage, params)[1]
        self.state = self.programs.start(*self.head, self.hyper, params)
        rows = len(data.x)
        minibatches = stage.batch_size is not None and stage.batch_size < rows
        # Lanes that share the order of their rows have it computed once, as a single run would.
        self.order = programs(static_part(stage), Lanes.one if shared else lanes).order(rows) if minibatches else None
        self.order_head = ((), hypers[0]) if shared else (self.head, self.hyper)

    def advance(self, step: int, count: int) -> Losses:
        """Dispatch ``count`` updates after the first ``step``."""
        number, count_ = np.int32(step), np.int32(count)
        head, hyper = self.order_head
        order = self.order and self.order(*head, hyper, number)
        arguments = (*self.head, self.hyper, self.state, self.frozen, self.data, order, number, count_)
        self.state, losses = self.programs.advance(*arguments)
        return losses

    def evaluate(self) -> Mapping[str, Array]:
        """Dispatch an evaluation of the splits."""
        if not self.splits:
            return {}
        return self.programs.evaluate(*self.head, self.hyper, self.state.params, self.frozen, self.splits)

    def params(self) -> list[Params]:
        """Return each lane's parameters."""
        if self.lanes is Lanes.one:
            return [join(self.state.params, self.frozen)]
        moving = jax.device_get(self.state.params)
        frozen = self.frozen if self.shared else jax.device_get(self.frozen)

        def own(lane: int) -> Params:
            still = frozen if self.shared else {path: leaf[lane] for path, leaf in frozen.items()}
            return join({path: leaf[lane] for path, leaf in moving.items()}, still)

        return [own(lane) for lane in range(self.count)]


def _report(interval: Interval, watches: Sequence[Watch], ends: list[int | None], lanes: Lanes) -> None:
    """Pass an interval's row to each lane's watch; note in ``ends`` the last finite update of those that diverge."""
    axis = (lambda values: np.asarray(values)[None]) if lanes is Lanes.one else np.asarray
    losses = {} if interval.losses is None else {k: axis(v) for k, v in interval.losses._asdict().items()}
    metrics = {name: axis(value) for name, value in interval.metrics.items()}
    for lane, watch in enumerate(watches):
        if ends[lane] is not None:
            continue
        series = {name: values[lane][: interval.updates] for name, values in losses.items()}
        finite = np.isfinite(series["loss"]) if series else np.ones(0, bool)
        kept = interval.updates if finite.all() else int(np.argmin(finite))
        row: Row = {"step": interval.step + kept}
        if kept:
            row |= {name: number(values[kept - 1]) for name, values in series.items()}
        if kept == interval.updates:
            row |= {name: number(values[lane]) for name, values in metrics.items()}
        else:
            ends[lane] = interval.step + kept
        if len(row) > 1:
            watch(row)


def number(value: Any) -> float:
    """Return a float32 as the shortest decimal that gives the same float32 back: 0.05, not 0.05000000474505806."""
    return float(str(np.float32(value)))


@functools.cache
def _update_flops(stage: Stage, shapes: tuple[tuple[str, tuple[int, ...], Any], ...], rows: Any) -> float:
    params: Any = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape, dtype in shapes}
    data = Split(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in rows))
    batch = min(stage.batch_size or len(data.x), len(data.x))
    order = jax.ShapeDtypeStruct((stage.log_every, batch), np.int32) if batch < len(data.x) else None
    hyper, step = traced(stage), jax.ShapeDtypeStruct((), np.int32)
    state = jax.eval_shape(functools.partial(start, stage), params)
    frozen = halves(stage, params)[1]
    return programs(stage).advance.flops(hyper, state, frozen, data, order, step, step)


def update_flops(stage: Stage, params: Params, data: Split) -> float:
    """Return XLA's count of floating-point operations of one update of a single run, gathering its rows included.

    Of the compiled program that :func:`fit` runs: what XLA found dead, such as the backward pass through a frozen
    trunk, does not count.
    """
    shapes = tuple((path, tuple(np.shape(leaf)), np.dtype(leaf.dtype)) for path, leaf in sorted(params.items()))
    rows = tuple((tuple(np.shape(part)), np.dtype(part.dtype)) for part in data)
    return _update_flops(static_part(stage), shapes, rows)
