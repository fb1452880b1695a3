"""A training stage as pure functions of arrays: initial parameters, one update, a logging interval, an evaluation.

Everything that is fixed about a stage is a :class:`Stage`; its traced hyperparameters travel as arguments, so stages
that differ only in those share one compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from src.config import hyperparameters, knob
from src.engine.optimizers import Form, Optimizer, transformation
from src.engine.partition import Placement, join, place, split
from src.engine.schedules import Schedule
from src.models.base import Model, Params
from src.objectives.supervised import Objective
from src.strategies.base import Strategy


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
    form: Form | None = None  # how frozen parameters are kept still; None: the strategy's way


class State(NamedTuple):
    """What changes from update to update."""

    params: Params  # the trainable half; with the reference forms, all parameters
    optimizer: optax.OptState


class Losses(NamedTuple):
    """What each update leaves behind: numbers of one update, or of all of an interval (NaN past its end)."""

    loss: Float[Array, "*interval"]  # of the batch, before the update
    grad_norm: Float[Array, "*interval"]  # of the trainable gradients together
    lr: Float[Array, "*interval"]


def initial(stage: Stage, features: tuple[int, ...], stream: int) -> Params:
    """Return the model's initial parameters: from ``PRNGKey(seed)``, or from a stream > 0 folded into it."""
    key = jax.random.PRNGKey(stage.seed)
    return stage.model.init(jax.random.fold_in(key, stream) if stream else key, features, stage.outputs)


def placement(stage: Stage, params: Mapping[str, Any]) -> Placement:
    """Return which parameters move under the stage's strategy, and what each line of its table matched."""
    groups = stage.model.groups()
    return place(stage.strategy.table(groups), params, groups)


def carried(stage: Stage, placed: Placement) -> tuple[str, ...]:
    """Return the paths that the state carries: the trainable ones, or all of them in the two reference forms."""
    return placed.trainable if (stage.form or stage.strategy.form) is Form.split else tuple(placed.multiplier)


def _rate(stage: Stage, count: Any) -> Any:
    return stage.lr * stage.schedule.shape(count, stage.steps)


def _transformation(stage: Stage, placed: Placement) -> optax.GradientTransformation:
    rate = functools.partial(_rate, stage)
    return transformation(stage.optimizer, rate, placed.multiplier, stage.form or stage.strategy.form)


def halves(stage: Stage, params: Params) -> tuple[Params, Params]:
    """Return what the state carries, and what stays outside it."""
    return split(params, carried(stage, placement(stage, params)))


def start(stage: Stage, params: Params) -> State:
    """Return the state before the first update."""
    moving, _ = halves(stage, params)
    return State(moving, _transformation(stage, placement(stage, params)).init(moving))


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


def evaluate(stage: Stage, moving: Params, frozen: Params, splits: Mapping[str, Split]) -> dict[str, Float[Array, ""]]:
    """Return ``{"val_loss": ...}``: the objective's metrics of each split, prefixed with its name."""
    found = {}
    for name, data in splits.items():
        outputs = stage.model.apply(join(moving, frozen), data.x, stage.outputs)
        for metric, value in stage.objective.metrics(outputs, data.y).items():
            found[f"{name}_{metric}"] = value
    return found


def traced(stage: Stage) -> dict[str, np.ndarray]:
    """Return the stage's hyperparameters as the arrays that its programs take."""
    return {
        path: np.asarray(value, {"seed": np.uint32, "steps": np.int32}.get(path, np.float32))
        for path, value in hyperparameters(stage).items()
    }
