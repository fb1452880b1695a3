"""The train state, one update of it, and a logging interval of updates, as pure functions of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ..models.base import ApplyOptions
from ..objectives.base import StepAux, StepContext
from ..optim.partition import FROZEN, join, split
from ..retention.base import RetentionState
from ..types import Params, Split
from .forward import network_of, source_network
from .stage import (
    CORRUPTION_STREAM,
    DROPOUT_STREAM,
    MEMORY_STREAM,
    ORDER_STREAM,
    REHEARSAL_STREAM,
    Stage,
    added,
    gradient_transformation,
    optimized_paths,
    param_labels,
    stream_key,
    trainable_statistics,
)


class TrainState(NamedTuple):
    """What an update changes."""

    params: Params  # the trainable half; with the reference implementations of freezing, all parameters
    optimizer: optax.OptState
    statistics: Params  # batch statistics of the trainable groups
    average: Params  # exponential moving average of the trainable half; empty where none is asked for
    memory: Any  # of the objective


class Losses(NamedTuple):
    """What is logged of an update; of an interval, with a leading axis (NaN past its end)."""

    loss: Float[Array, "*interval"]  # of the batch, before the update
    grad_norm: Float[Array, "*interval"]  # over all trainable gradients
    lr: Float[Array, "*interval"]
    rounded: Float[Array, "*interval"]  # share of the trainable weights whose nonzero update changes no bit
    signals: Mapping[str, Float[Array, "*interval"]] = {}  # metrics of the objective

    def series(self) -> Iterator[tuple[str, Array]]:
        """Yield every series with its name."""
        own = self._asdict()
        signals = own.pop("signals")
        yield from own.items()
        yield from signals.items()


def start(stage: Stage, params: Params) -> TrainState:
    """Return the state before the first update."""
    whole = params | added(stage, params)
    labels = param_labels(stage, whole)
    trainable, rest = split(whole, optimized_paths(stage, labels))
    statistics, _ = split(rest, trainable_statistics(labels))
    average = trainable if stage.trainer.ema is not None else {}
    memory = stage.objective.init_memory(stream_key(stage, MEMORY_STREAM), whole, stage.outputs)
    return TrainState(trainable, gradient_transformation(stage, labels).init(trainable), statistics, average, memory)


def carry_over(state: TrainState, previous: TrainState) -> TrainState:
    """Return the state in which a phase begins: what stays trainable keeps its optimizer state and average.

    Args:
        state: a fresh one.
        previous: at the end of the phase before.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(previous.optimizer)}

    def of_group(path: Any, fresh: Any) -> Any:
        name = jax.tree_util.keystr(path)
        return known.get(name, fresh) if "inner_states" in name else fresh

    average = {path: previous.average.get(path, leaf) for path, leaf in state.average.items()}
    return state._replace(
        optimizer=jax.tree_util.tree_map_with_path(of_group, state.optimizer),
        average=average,
    )


def eval_params(state: TrainState) -> Params:
    """Return the trainable parameters as they are evaluated and kept: averaged where an average is taken."""
    return {**state.params, **state.average, **state.statistics}


# --- one update ----------------------------------------------------------------------------------------------------


class StepKeys(NamedTuple):
    """The random keys of an update; ``None`` where nothing is drawn."""

    dropout: Any = None
    rehearsal: Any = None
    corruption: Any = None


def step_keys(stage: Stage, number: Any) -> StepKeys:
    """Return the keys of update ``number``; they depend on the seed and on the number of updates before it."""

    def key(stream: int) -> Array:
        return jax.random.fold_in(stream_key(stage, stream), stage.first + number)

    return StepKeys(
        key(DROPOUT_STREAM) if stage.stochastic else None,
        key(REHEARSAL_STREAM) if stage.retention.rehearses else None,
        key(CORRUPTION_STREAM) if stage.objective.corrupts else None,
    )


def gradients(
    stage: Stage,
    state: TrainState,
    frozen: Params,
    batch: Split,
    number: Any,
    *,
    updated: frozenset[str],
    retention_state: RetentionState,
) -> tuple[Float[Array, ""], Params, StepAux]:
    """Return the loss, its gradients and the auxiliary outputs of a batch, computed in ``trainer.accumulate`` parts.

    The loss includes what the retention method adds.

    Args:
        stage: what is trained.
        state: before the update.
        frozen: the parameters outside the state.
        batch: rows of the update.
        number: of the update, in this phase.
        updated: paths of the batch statistics that the pass updates.
        retention_state: of the retention method.
    """

    def loss_of(params: Params, statistics: Params, part: Split, keys: StepKeys) -> tuple[Float[Array, ""], StepAux]:
        rest = {**frozen, **statistics}

        context = StepContext(keys.corruption, stage.first + number, stage.steps)
        network = network_of(stage, params, rest, ApplyOptions(mutable=updated, key=keys.dropout))
        loss, aux = stage.objective.loss_and_aux(network, part, context, state.memory, stage.trainer.label_smoothing)
        if stage.retention.penalises:
            loss += stage.retention.penalty(params, retention_state["own"])
        if stage.retention.rehearses:
            source = source_network(stage, params, rest, retention_state)
            loss += stage.retention.loss(source, part.x, retention_state["own"], keys.rehearsal)
        return loss, aux

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    keys, parts = step_keys(stage, number), stage.trainer.accumulate
    if parts == 1:
        (loss, aux), grads = value_and_grad(state.params, state.statistics, batch, keys)
        return loss, grads, aux

    def accumulate(carry: Any, part: tuple[Any, Split]) -> tuple[Any, None]:
        sums, statistics, terms = carry
        index, rows = part
        own = jax.tree.map(lambda key: jax.random.fold_in(key, index), keys)
        (loss, aux), grads = value_and_grad(state.params, statistics, rows, own)
        # A part's loss is a mean over its terms (labels, tokens). Weighted by their number, the sum over the parts is
        # the whole batch's loss, however the terms are distributed.
        count = stage.objective.count(rows.y)
        sums = jax.tree.map(lambda total, value: total + count * value, sums, (loss, grads))
        return (sums, aux.statistics, terms + count), None

    cut = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), batch)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    carry = (zero, state.statistics, jnp.zeros(()))
    ((loss, grads), statistics, terms), _ = jax.lax.scan(accumulate, carry, (jnp.arange(parts), cut))
    # Objectives with a memory or signals belong to pre-training, which does not accumulate.
    return loss / terms, jax.tree.map(lambda grad: grad / terms, grads), StepAux(statistics, state.memory, {})


def update(
    stage: Stage,
    state: TrainState,
    frozen: Params,
    batch: Split,
    number: Any,
    retention_state: RetentionState | None = None,
) -> tuple[TrainState, Losses]:
    """Make update ``number`` (from 0) of a stage on one batch; the arguments are those of :func:`gradients`."""
    retention_state = retention_state or {}
    labels = param_labels(stage, join(state.params, {**frozen, **state.statistics}))
    updated = trainable_statistics(labels)
    loss, grads, aux = gradients(stage, state, frozen, batch, number, updated=updated, retention_state=retention_state)
    updates: Any
    updates, optimizer = gradient_transformation(stage, labels).update(grads, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    if stage.retention.proximal:
        rates = {path: 0.0 if (m := labels.lr_scale[path]) is FROZEN else m * stage.rate(number) for path in params}
        params = stage.retention.after_update(params, retention_state["own"], rates)
    average = state.average
    if stage.trainer.ema is not None:
        decay = stage.trainer.ema
        average = {path: decay * mean + (1.0 - decay) * params[path] for path, mean in average.items()}
    trainable = [path for path in state.params if labels.lr_scale[path] is not FROZEN]
    losses = Losses(
        loss,
        # Of the trainable gradients only: reading a frozen one would make XLA compute the whole backward pass.
        optax.tree.norm({path: grads[path] for path in trainable}),
        jnp.asarray(stage.rate(number), jnp.float32),
        _rounded({path: (state.params[path], updates[path]) for path in trainable}),
        aux.signals,
    )
    return TrainState(params, optimizer, {**state.statistics, **aux.statistics}, average, aux.memory), losses


def _rounded(leaves: Mapping[str, tuple[Array, Array]]) -> Float[Array, ""]:
    """Return the share of weights whose update is not 0 and rounds to zero when it is added."""
    lost = [jnp.sum((value + change == value) & (change != 0)) for value, change in leaves.values()]
    total = sum(value.size for value, _ in leaves.values())
    return jnp.asarray(sum(lost), jnp.float32) / total


# --- a logging interval --------------------------------------------------------------------------------------------


def advance(
    stage: Stage,
    state: TrainState,
    frozen: Params,
    data: Split,
    order: Int[Array, "log_every B"] | None,
    step: Any,
    count: Any,
    retention_state: RetentionState,
) -> tuple[TrainState, Losses]:
    """Make ``count`` updates (at most ``log_every``) after the first ``step``.

    ``order`` holds the rows of each update; with ``None`` every update takes all rows.
    """

    def body(i: Any, carry: tuple[TrainState, Losses]) -> tuple[TrainState, Losses]:
        state, series = carry
        batch = data if order is None else Split(data.x[order[i]], data.y[order[i]])
        state, losses = update(stage, state, frozen, batch, step + i, retention_state)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), series, losses)

    empty = jnp.full(stage.log_every, jnp.nan)
    # A loop of traced length: one program serves the last, shorter interval and every number of steps.
    losses = Losses(empty, empty, empty, empty, dict.fromkeys(stage.objective.metric_names(), empty))
    return jax.lax.fori_loop(0, count, body, (state, losses))


def row_order(stage: Stage, rows: int, step: Any) -> Int[Array, "log_every B"]:
    """Return the rows of updates ``step`` to ``step + log_every``.

    The rows form an endless stream of permutations, one an epoch, cut into batches: an epoch visits each row once and
    drops none at its end. The rows of an update depend on the seed and the update's number only.
    """
    batch = min(stage.batch_size or rows, rows)
    wanted = stage.log_every * batch
    first = (stage.first + step) * batch
    epochs = first // rows + jnp.arange(-(-wanted // rows) + 1)
    key = stream_key(stage, ORDER_STREAM)
    stream = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), rows))(epochs)
    cut = jax.lax.dynamic_slice(stream.reshape(-1), (first % rows,), (wanted,))
    return cut.reshape(stage.log_every, batch)
