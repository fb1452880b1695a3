"""One training stage: a pure program over a logging interval, and the loop on the host that drives it.

Everything that is fixed about a stage is a :class:`Stage`; its traced hyperparameters travel as arguments, so stages
that differ only in those share one compiled program. Between two logged steps the device is on its own: data,
parameters and losses stay there, and the host reads an interval's numbers while the next one is running.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from src.config import bind, hyperparameters, knob, static_part
from src.engine.compiled import Compiled
from src.engine.optimizers import Form, Optimizer, transformation
from src.engine.partition import Placement, join, place, split
from src.engine.schedules import Schedule
from src.models.base import Model, Params
from src.objectives.supervised import Objective
from src.strategies.base import Strategy

Row = dict[str, float]  # a logged step: its number and what was measured
Watch = Callable[[Row], None]


def ignore(_row: Row) -> None:
    """Watch nothing."""


class Split(NamedTuple):
    """A part of a task's data: inputs and targets, row by row."""

    x: Float[Any, "N ..."]  # of NumPy on the host, of JAX inside a program
    y: Shaped[Any, " N"]


@dataclass(frozen=True)
class Stage:
    """What a training stage is. Hashable; the traced fields are not part of the compiled program."""

    model: Model
    outputs: int
    objective: Objective
    strategy: Strategy
    optimizer: Optimizer
    schedule: Schedule
    lr: float = knob(traced=True)
    steps: int = knob(traced=True)
    seed: int = knob(traced=True)  # of the order of the data
    batch_size: int | None = None  # rows an update; None: all of them
    log_every: int = 10  # updates between two logged rows


class State(NamedTuple):
    """What changes from update to update."""

    params: Params  # the trainable half; with the reference forms, all parameters
    optimizer: optax.OptState


class Losses(NamedTuple):
    """What each update leaves behind: numbers of one update, or of all of an interval (NaN past its end)."""

    loss: Float[Array, "*interval"]  # of the batch, before the update
    grad_norm: Float[Array, "*interval"]  # of the trainable gradients together
    lr: Float[Array, "*interval"]


class Fit(NamedTuple):
    """What a stage ends with."""

    params: Params
    diverged: bool
    last_finite_step: int
    flops_per_step: float


# --- the pure half: programs -------------------------------------------------------------------------------------


def initial(stage: Stage, features: tuple[int, ...], stream: int) -> Params:
    """Return the model's initial parameters: from ``PRNGKey(seed)``, or from a stream > 0 folded into it."""
    key = jax.random.PRNGKey(stage.seed)
    return stage.model.init(jax.random.fold_in(key, stream) if stream else key, features, stage.outputs)


def placement(stage: Stage, params: Mapping[str, Any]) -> Placement:
    """Return which parameters move under the stage's strategy, and what each line of its table matched."""
    groups = stage.model.groups()
    return place(stage.strategy.table(groups), params, groups)


def _carried(stage: Stage, placed: Placement) -> tuple[str, ...]:
    """The paths that the state carries: the trainable ones, or all of them in the two reference forms."""
    return placed.trainable if stage.strategy.form is Form.split else tuple(placed.multiplier)


def _rate(stage: Stage, count: Any) -> Any:
    return stage.lr * stage.schedule.shape(count, stage.steps)


def _transformation(stage: Stage, placed: Placement) -> optax.GradientTransformation:
    rate = functools.partial(_rate, stage)
    return transformation(stage.optimizer, rate, placed.multiplier, stage.strategy.form)


def start(stage: Stage, params: Params) -> tuple[State, Params]:
    """Return the state before the first update, and the frozen half."""
    placed = placement(stage, params)
    moving, frozen = split(params, _carried(stage, placed))
    return State(moving, _transformation(stage, placed).init(moving)), frozen


def update(stage: Stage, state: State, frozen: Params, batch: Split, number: Any) -> tuple[State, Losses]:
    """Make update ``number`` (from 0) of a stage on one batch."""
    placed = placement(stage, join(state.params, frozen))

    def loss_of(params: Params) -> Float[Array, ""]:
        outputs = stage.model.apply(join(params, frozen), batch.x, stage.outputs)
        return stage.objective.loss(outputs, batch.y)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    updates, optimizer = _transformation(stage, placed).update(grads, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    # Only of what moves: reading a frozen gradient would make XLA compute the whole backward pass for it.
    norm = optax.tree.norm({path: grads[path] for path in placed.trainable})
    return State(params, optimizer), Losses(loss, norm, jnp.asarray(_rate(stage, number), jnp.float32))


def advance(
    stage: Stage,
    state: State,
    frozen: Params,
    data: Split,
    order: Int[Array, "log_every B"] | None,
    step: Any,
    count: Any,
) -> tuple[State, Losses]:
    """Make ``count`` updates (at most ``log_every``) after the first ``step``.

    ``order`` names the rows of each update; with ``None`` every update takes all of them.
    """

    def body(i: Any, carry: tuple[State, Losses]) -> tuple[State, Losses]:
        state, series = carry
        batch = data if order is None else Split(data.x[order[i]], data.y[order[i]])
        state, losses = update(stage, state, frozen, batch, step + i)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), series, losses)

    empty = jnp.full(stage.log_every, jnp.nan)
    # A loop of traced length: one program serves the last, shorter interval and every number of steps.
    return jax.lax.fori_loop(0, count, body, (state, Losses(empty, empty, empty)))


def row_order(stage: Stage, rows: int, step: Any) -> Int[Array, "log_every B"]:
    """Return the rows of updates ``step`` to ``step + log_every``.

    The data is one endless stream of permutations, an epoch each, cut into batches: within an epoch no row comes twice,
    and none is dropped at its end. An update's rows depend on the seed and its number only.
    """
    batch = min(stage.batch_size or rows, rows)
    wanted = stage.log_every * batch
    first = step * batch
    epochs = first // rows + jnp.arange(-(-wanted // rows) + 1)
    key = jax.random.fold_in(jax.random.PRNGKey(stage.seed), ORDER_STREAM)
    stream = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), rows))(epochs)
    cut = jax.lax.dynamic_slice(stream.reshape(-1), (first % rows,), (wanted,))
    return cut.reshape(stage.log_every, batch)


ORDER_STREAM = 0x0DA7A  # keeps the order of the data apart from other uses of the same seed


def evaluate(stage: Stage, params: Params, splits: Mapping[str, Split]) -> dict[str, Float[Array, ""]]:
    """Return ``{"val_loss": ...}``: the objective's metrics of each split, prefixed with its name."""
    found = {}
    for name, data in splits.items():
        outputs = stage.model.apply(params, data.x, stage.outputs)
        for metric, value in stage.objective.metrics(outputs, data.y).items():
            found[f"{name}_{metric}"] = value
    return found


class Programs(NamedTuple):
    """The compiled programs of a stage, each taking the traced hyperparameters first."""

    init: Callable[[tuple[int, ...], int], Compiled]  # for inputs of these features, and a stream of the seed
    start: Compiled
    order: Callable[[int], Compiled]  # for a number of rows
    advance: Compiled
    evaluate: Compiled


@functools.cache
def programs(stage: Stage) -> Programs:
    """Return the programs of a stage's static part (see :func:`src.config.static_part`)."""

    @functools.cache
    def init(features: tuple[int, ...], stream: int) -> Compiled:
        return Compiled(lambda hyper: initial(bind(stage, hyper), features, stream))

    @functools.cache
    def order(rows: int) -> Compiled:
        return Compiled(lambda hyper, step: row_order(bind(stage, hyper), rows, step))

    return Programs(
        init=init,
        start=Compiled(lambda hyper, params: start(bind(stage, hyper), params)),
        order=order,
        advance=Compiled(lambda hyper, *args: advance(bind(stage, hyper), *args), donate=(1,)),
        evaluate=Compiled(lambda hyper, params, splits: evaluate(bind(stage, hyper), params, splits)),
    )


def traced(stage: Stage) -> dict[str, np.ndarray]:
    """Return the stage's hyperparameters as the arrays that its programs take."""
    return {
        path: np.asarray(value, {"seed": np.uint32, "steps": np.int32}.get(path, np.float32))
        for path, value in hyperparameters(stage).items()
    }


# --- the host's half: the loop -------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """What comes back from the device for one logging interval."""

    step: int  # updates made before it
    updates: int  # made in it
    losses: Losses
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
    compiled, hyper, rows = programs(static_part(stage)), traced(stage), len(data.x)
    state, frozen = compiled.start(hyper, params)
    batch = min(stage.batch_size or rows, rows)
    order = compiled.order(rows) if batch < rows else None

    def judged() -> Mapping[str, Array]:
        return compiled.evaluate(hyper, join(state.params, frozen), splits) if splits else {}

    waiting = [Interval(0, 0, Losses(*3 * [jnp.empty(0)]), judged())]
    flops, end = math.nan, None
    for step in range(0, stage.steps, stage.log_every):
        count = min(stage.log_every, stage.steps - step)
        args = (
            hyper,
            state,
            frozen,
            data,
            order and order(hyper, np.int32(step)),
            np.int32(step),
            np.int32(count),
        )
        flops = compiled.advance.flops(*args) if step == 0 else flops
        state, losses = compiled.advance(*args)
        waiting.append(Interval(step, count, losses, judged()))
        # Read the interval before this one only now, with this one under way: the device never waits for the host.
        end = _report(waiting.pop(0), watch)
        if end is not None:
            break
    while waiting and end is None:
        end = _report(waiting.pop(0), watch)
    last_finite = stage.steps if end is None else end
    return Fit(join(state.params, frozen), end is not None, last_finite, flops)


def _report(interval: Interval, watch: Watch) -> int | None:
    """Pass an interval's row to ``watch``; return the last update with a finite loss if the next one's is not."""
    series = {name: np.asarray(values)[: interval.updates] for name, values in interval.losses._asdict().items()}
    finite = np.isfinite(series["loss"])
    kept = interval.updates if finite.all() else int(np.argmin(finite))
    row: Row = {"step": interval.step + kept}
    if kept:
        row |= {name: number(values[kept - 1]) for name, values in series.items()}
    if kept == interval.updates:
        row |= {name: number(value) for name, value in interval.metrics.items()}
    if len(row) > 1:
        watch(row)
    return None if kept == interval.updates else interval.step + kept


def number(value: Any) -> float:
    """Return a float32 as the shortest decimal that gives the same float32 back: 0.05, not 0.05000000074505806."""
    return float(str(np.float32(value)))
