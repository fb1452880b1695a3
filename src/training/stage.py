"""A training stage as pure functions of arrays: initial parameters, one update, a logging interval, an evaluation.

Everything that is fixed about a stage is a :class:`Stage`; its traced hyperparameters travel as arguments, so stages
that differ only in those share one compiled program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ..config.hparams import hparam, hyperparameters
from ..models.base import ApplyOptions, Model, head_paths, is_statistic
from ..objectives.base import Network, Objective, StepAux, StepContext
from ..optim.optimizers import FreezeImpl, Optimizer, transformation
from ..optim.partition import FROZEN, ParamLabels, join, match_rules, split
from ..optim.schedules import Schedule
from ..retention.base import Kept, Retention
from ..retention.none import NoRetention
from ..strategies.base import Strategy
from ..types import Params, Split
from .trainer import Precision, TrainerConfig


@dataclass(frozen=True)
class Stage:
    """What a training stage is. Hashable; the traced fields are not part of the compiled program."""

    model: Model
    outputs: int
    objective: Objective
    strategy: Strategy
    optimizer: Optimizer
    schedule: Schedule
    lr: float = hparam(traced=True)
    steps: int = hparam(traced=True)
    seed: int = hparam(traced=True)  # of the order of the data, of dropout, of what a strategy adds
    first: int = hparam(0, traced=True)  # updates made in the phases before this one
    trainer: TrainerConfig = hparam(TrainerConfig())
    retention: Retention = hparam(NoRetention())
    batch_size: int | None = None  # rows an update; None: all of them
    log_every: int = 10  # updates between two logged rows
    form: FreezeImpl | None = None  # how frozen parameters are kept still; None: the strategy's way
    phase: int = 0  # which of the strategy's tables holds
    bottom: int = 0  # groups that are left out: the inputs are what they return (see features.py)


class State(NamedTuple):
    """What changes from update to update."""

    params: Params  # the trainable half; with the reference forms, all parameters
    optimizer: optax.OptState
    statistics: Params  # of the batches, in the groups that move
    average: Params  # exponential moving average of the trainable half; empty where none is wanted
    memory: Any  # the objective's own


class Losses(NamedTuple):
    """What each update leaves behind: numbers of one update, or of all of an interval (NaN past its end)."""

    loss: Float[Array, "*interval"]  # of the batch, before the update
    grad_norm: Float[Array, "*interval"]  # of the trainable gradients together
    lr: Float[Array, "*interval"]
    rounded: Float[Array, "*interval"]  # share of the trainable weights whose update was not 0 and changed no bit
    signals: Mapping[str, Float[Array, "*interval"]] = {}  # what the objective tells of each

    def series(self) -> Iterator[tuple[str, Array]]:
        """Yield everything by name."""
        own = self._asdict()
        signals = own.pop("signals")
        yield from own.items()
        yield from signals.items()


# Streams of a seed: what keeps its uses apart. Initial parameters come from the seed itself.
ORDER_STREAM, DROPOUT_STREAM, ADDED_STREAM, REHEARSAL_STREAM = 0x0DA7A, 0xD40, 0xADDED, 0x4EA7
CORRUPTION_STREAM, MEMORY_STREAM = 0xC0440, 0x3E3
EVALUATION_KEY = 0xE7A1  # of what an objective draws in an evaluation: the same each time, whatever the seed


def initial(stage: Stage, features: tuple[int, ...], stream: int) -> Params:
    """Return the model's initial parameters: from ``PRNGKey(seed)``, or from a stream > 0 folded into it."""
    key = jax.random.PRNGKey(stage.seed)
    return stage.model.init(jax.random.fold_in(key, stream) if stream else key, features, stage.outputs)


def added(stage: Stage, params: Params) -> Params:
    """Return what the strategy adds to the parameters when fine-tuning begins, or starts anew."""
    key = jax.random.fold_in(jax.random.PRNGKey(stage.seed), ADDED_STREAM)
    return stage.strategy.prepare(key, params, stage.model) if stage.phase == 0 else {}


def with_added(stage: Stage, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with what the strategy adds; that part in shapes only."""
    return {**params, **added_shapes(stage, params)}


def added_shapes(stage: Stage, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of what the strategy adds to these parameters, or starts anew."""
    return jax.eval_shape(functools.partial(added, stage), dict(params))


def placement(stage: Stage, params: Mapping[str, Any]) -> ParamLabels:
    """Return which of these parameters move in the stage's phase, and what each line of its table matched."""
    groups = stage.model.groups()
    return match_rules(stage.strategy.tables(groups)[stage.phase], params, groups, part=stage.bottom > 0)


def optimized_paths(stage: Stage, placed: ParamLabels) -> tuple[str, ...]:
    """Return the paths that are optimised: the trainable ones, or all of them in the two reference forms."""
    everything = (stage.form or stage.strategy.freeze_impl) is not FreezeImpl.split
    return tuple(path for path in (placed.lr_scale if everything else placed.trainable) if not is_statistic(path))


def moving_statistics(placed: ParamLabels) -> frozenset[str]:
    """Return the batch statistics that belong to what moves; all others are used as they are."""
    return frozenset(path for path in placed.trainable if is_statistic(path))


def optimizer_groups(stage: Stage, paths: tuple[str, ...]) -> dict[str, str] | None:
    """Return the phase since which each path has been moving without a break; ``None`` where there is one phase only.

    Each cohort has a state of the optimizer of its own. What joins later starts with a fresh one: a count of updates
    shared with what moved before would make Adam's first steps several times too long.
    """
    groups = stage.model.groups()
    tables = stage.strategy.tables(groups)
    if len(tables) == 1:
        return None
    moves = [set(match_rules(table, paths, groups, part=True).trainable) for table in tables[: stage.phase + 1]]
    since = dict.fromkeys(paths, stage.phase)
    for path in paths:
        while since[path] > 0 and path in moves[since[path] - 1]:
            since[path] -= 1
    return {path: str(phase) for path, phase in since.items()}


def _rate(stage: Stage, count: Any) -> Any:
    return stage.lr * stage.schedule.shape(count, stage.steps)


def _transformation(stage: Stage, placed: ParamLabels) -> optax.GradientTransformation:
    paths = optimized_paths(stage, placed)
    lr_scale = {path: placed.lr_scale[path] for path in placed.lr_scale if not is_statistic(path)}
    rate = functools.partial(_rate, stage)
    form = stage.form or stage.strategy.freeze_impl
    return transformation(stage.optimizer, rate, lr_scale, form, optimizer_groups(stage, paths))


def frozen_paths(stage: Stage, whole: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of what stays outside a stage's state, of all its parameters (of one lane)."""
    placed = placement(stage, whole)
    state = {*optimized_paths(stage, placed), *moving_statistics(placed)}
    return tuple(path for path in whole if path not in state)


def start(stage: Stage, params: Params) -> State:
    """Return the state before the first update."""
    whole = params | added(stage, params)
    placed = placement(stage, whole)
    moving, rest = split(whole, optimized_paths(stage, placed))
    statistics, _ = split(rest, moving_statistics(placed))
    average = moving if stage.trainer.ema is not None else {}
    key = jax.random.fold_in(jax.random.PRNGKey(stage.seed), MEMORY_STREAM)
    memory = stage.objective.init_memory(key, whole, stage.outputs)
    return State(moving, _transformation(stage, placed).init(moving), statistics, average, memory)


def carry_over(state: State, before: State) -> State:
    """Return the state in which a phase begins: the optimizer goes on for what has been moving all along.

    Args:
        state: a fresh one.
        before: how the phase before ended.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(before.optimizer)}

    def of_cohort(path: Any, fresh: Any) -> Any:
        name = jax.tree_util.keystr(path)
        return known.get(name, fresh) if "inner_states" in name else fresh

    average = {path: before.average.get(path, leaf) for path, leaf in state.average.items()}
    return state._replace(
        optimizer=jax.tree_util.tree_map_with_path(of_cohort, state.optimizer),
        average=average,
    )


def eval_params(state: State) -> Params:
    """Return the moving parameters as they are evaluated and kept: averaged where an average is taken."""
    return {**state.params, **state.average, **state.statistics}


def compute(stage: Stage, params: Params, frozen: bool = False) -> Params:
    """Return parameters in the precision that the passes compute in; statistics stay as they are."""

    def cast(leaf: Array) -> Array:
        if frozen and stage.trainer.frozen_precision is Precision.bfloat16:
            leaf = leaf.astype(jnp.bfloat16)
        return leaf.astype(stage.trainer.precision.name)

    if stage.trainer.precision is stage.trainer.frozen_precision is Precision.float32:
        return params
    return {path: leaf if is_statistic(path) else cast(leaf) for path, leaf in params.items()}


def forward(stage: Stage, params: Params, frozen: Params, x: Array, how: ApplyOptions) -> tuple[Array, Params]:
    """Return a batch's outputs in float32, and the new values of the statistics that move."""
    strategy = stage.strategy
    how = how._replace(
        start=stage.bottom, adapter_params=frozenset(strategy.adapter_params), wrap_call=strategy.wrap_call
    )
    if jnp.issubdtype(x.dtype, jnp.floating) and stage.trainer.precision is not Precision.float32:
        x = x.astype(stage.trainer.precision.name)
    whole = join(compute(stage, params), compute(stage, frozen, frozen=True))
    outputs, seen = stage.model.forward(whole, x, stage.outputs, how)
    return outputs.astype(jnp.float32), seen


def forward_features_and_logits(
    stage: Stage, params: Params, frozen: Params, x: Array, how: ApplyOptions
) -> tuple[tuple[Array, Array], Params]:
    """Return a batch's features below the head and its outputs, of one pass that is cut there; statistics likewise."""
    top = len(stage.model.groups()) - 1
    features, below = forward(stage, params, frozen, x, how._replace(stop=top))
    outputs, above = forward(replace(stage, bottom=top), params, frozen, features, how)
    head = head_paths(stage.model, above)  # each half tells of all statistics, and has moved its own
    return (features, outputs), {**below, **{path: above[path] for path in head}}


def bottom_features(stage: Stage, params: Params, x: Array) -> Array:
    """Return what the groups below ``stage.bottom`` return for a batch, in the trainer's precision."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(stage.trainer.precision.name)
    return stage.model.apply(compute(stage, params, frozen=True), x, stage.outputs, ApplyOptions(stop=stage.bottom))


def stochastic(stage: Stage) -> bool:
    """Tell whether a training pass depends on chance."""
    return stage.model.stochastic or getattr(stage.strategy, "dropout", None) is not None


class Keys(NamedTuple):
    """The random keys of an update; ``None`` where nothing is drawn."""

    dropout: Any = None
    rehearsal: Any = None
    corruption: Any = None


def gradients(
    stage: Stage,
    state: State,
    frozen: Params,
    batch: Split,
    moving: frozenset[str],
    keys: Keys,
    kept: Kept,
    number: Any = 0,
) -> tuple[Float[Array, ""], Params, StepAux]:
    """Return the batch's loss, its gradients, and what else it leaves behind, computed in ``trainer.accumulate`` parts.

    What a retention method adds is part of the loss.
    """

    def loss_of(params: Params, statistics: Params, part: Split, keys: Keys) -> tuple[Float[Array, ""], StepAux]:
        rest = {**frozen, **statistics}

        draw = StepContext(keys.corruption, stage.first + number, stage.steps)
        network = network_of(stage, params, rest, ApplyOptions(mutable=moving, key=keys.dropout))
        loss, learned = stage.objective.loss_and_aux(network, part, draw, state.memory, stage.trainer.label_smoothing)
        if stage.retention.penalises:
            loss += stage.retention.penalty(params, kept["own"])
        if stage.retention.rehearses:
            source = source_network(stage, params, rest, kept)
            loss += stage.retention.loss(source, part.x, kept["own"], keys.rehearsal)
        return loss, learned

    slope = jax.value_and_grad(loss_of, has_aux=True)
    parts = stage.trainer.accumulate
    if parts == 1:
        (loss, learned), grads = slope(state.params, state.statistics, batch, keys)
        return loss, grads, learned

    def one(carry: Any, part: tuple[Any, Split]) -> tuple[Any, None]:
        sums, statistics, terms = carry
        number, rows = part
        own = jax.tree.map(lambda key: jax.random.fold_in(key, number), keys)
        (loss, learned), grads = slope(state.params, statistics, rows, own)
        # A part's loss is a mean over its own terms (labels, tokens): weighted by their number, the parts' sum is the
        # whole batch's, however unevenly the terms lie.
        count = stage.objective.count(rows.y)
        sums = jax.tree.map(lambda total, value: total + count * value, sums, (loss, grads))
        return (sums, learned.statistics, terms + count), None

    cut = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), batch)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    begin = (zero, state.statistics, jnp.zeros(()))
    ((loss, grads), seen, terms), _ = jax.lax.scan(one, begin, (jnp.arange(parts), cut))
    # Objectives with a memory or signals are those of pre-training, which does not accumulate.
    return loss / terms, jax.tree.map(lambda grad: grad / terms, grads), StepAux(seen, state.memory, {})


def keys_of(stage: Stage, number: Any) -> Keys:
    """Return the keys of update ``number``: they depend on the seed and on how many updates came before."""

    def key(stream: int) -> Array:
        own = jax.random.fold_in(jax.random.PRNGKey(stage.seed), stream)
        return jax.random.fold_in(own, stage.first + number)

    return Keys(
        key(DROPOUT_STREAM) if stochastic(stage) else None,
        key(REHEARSAL_STREAM) if stage.retention.rehearses else None,
        key(CORRUPTION_STREAM) if stage.objective.corrupts else None,
    )


def network_of(stage: Stage, params: Params, rest: Params, how: ApplyOptions) -> Network:
    """Return a stage's network as an objective sees it; where both halves have a leaf, a head, it is the rest's."""

    def run(x: Array, places: Array | None = None, other: Params | None = None) -> tuple[Array, Params]:
        own = how._replace(positions=places)
        return forward(stage, params, rest, x, own) if other is None else forward(stage, other, {}, x, own)

    return Network(run, {**params, **rest}, lambda x: forward_features_and_logits(stage, params, rest, x, how))


def source_network(stage: Stage, params: Params, rest: Params, kept: Kept) -> Network:
    """Return the network under training as the source task has it, with that task's own head where it has one."""
    task = kept["own"]["task"]
    source = replace(stage, model=task.model, outputs=task.outputs)
    return network_of(source, params, {**rest, **kept["head"]}, ApplyOptions())


def update(
    stage: Stage, state: State, frozen: Params, batch: Split, number: Any, kept: Kept | None = None
) -> tuple[State, Losses]:
    """Make update ``number`` (from 0) of a stage on one batch.

    Args:
        stage: what is trained.
        state: before the update.
        frozen: what stays outside the state.
        batch: the rows.
        number: of the update, in this phase.
        kept: what the retention method keeps of the source task (see :func:`src.recipe.run.keep_source`).
    """
    kept = kept or {}
    placed = placement(stage, join(state.params, {**frozen, **state.statistics}))
    moving, keys = moving_statistics(placed), keys_of(stage, number)
    loss, grads, learned = gradients(stage, state, frozen, batch, moving, keys, kept, number)
    updates: Any
    updates, optimizer = _transformation(stage, placed).update(grads, state.optimizer, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    if stage.retention.proximal:
        rates = {path: 0.0 if (m := placed.lr_scale[path]) is FROZEN else m * _rate(stage, number) for path in params}
        params = stage.retention.after_update(params, kept["own"], rates)
    average = state.average
    if stage.trainer.ema is not None:
        decay = stage.trainer.ema
        average = {path: decay * mean + (1.0 - decay) * params[path] for path, mean in average.items()}
    trainable = [path for path in state.params if placed.lr_scale[path] is not FROZEN]
    losses = Losses(
        loss,
        # Only of what moves: reading a frozen gradient would make XLA compute the whole backward pass for it.
        optax.tree.norm({path: grads[path] for path in trainable}),
        jnp.asarray(_rate(stage, number), jnp.float32),
        _rounded({path: (state.params[path], updates[path]) for path in trainable}),
        learned.signals,
    )
    return State(params, optimizer, {**state.statistics, **learned.statistics}, average, learned.memory), losses


def _rounded(leaves: Mapping[str, tuple[Array, Array]]) -> Float[Array, ""]:
    """Return the share of weights with an update that is not 0 and too small to change any of their bits."""
    lost = [jnp.sum((value + change == value) & (change != 0)) for value, change in leaves.values()]
    total = sum(value.size for value, _ in leaves.values())
    return jnp.asarray(sum(lost), jnp.float32) / total


def advance(
    stage: Stage,
    state: State,
    frozen: Params,
    data: Split,
    order: Int[Array, "log_every B"] | None,
    step: Any,
    count: Any,
    kept: Kept,
) -> tuple[State, Losses]:
    """Make ``count`` updates (at most ``log_every``) after the first ``step``.

    ``order`` names the rows of each update; with ``None`` every update takes all of them.
    """

    def body(i: Any, carry: tuple[State, Losses]) -> tuple[State, Losses]:
        state, series = carry
        batch = data if order is None else Split(data.x[order[i]], data.y[order[i]])
        state, losses = update(stage, state, frozen, batch, step + i, kept)
        return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), series, losses)

    empty = jnp.full(stage.log_every, jnp.nan)
    # A loop of traced length: one program serves the last, shorter interval and every number of steps.
    losses = Losses(empty, empty, empty, empty, dict.fromkeys(stage.objective.metric_names(), empty))
    return jax.lax.fori_loop(0, count, body, (state, losses))


def row_order(stage: Stage, rows: int, step: Any) -> Int[Array, "log_every B"]:
    """Return the rows of updates ``step`` to ``step + log_every``.

    The data is one endless stream of permutations, an epoch each, cut into batches: within an epoch no row comes twice,
    and none is dropped at its end. An update's rows depend on the seed and its number only.
    """
    batch = min(stage.batch_size or rows, rows)
    wanted = stage.log_every * batch
    first = (stage.first + step) * batch
    epochs = first // rows + jnp.arange(-(-wanted // rows) + 1)
    key = jax.random.fold_in(jax.random.PRNGKey(stage.seed), ORDER_STREAM)
    stream = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), rows))(epochs)
    cut = jax.lax.dynamic_slice(stream.reshape(-1), (first % rows,), (wanted,))
    return cut.reshape(stage.log_every, batch)


def evaluate(
    stage: Stage, moving: Params, frozen: Params, splits: Mapping[str, Split], full: bool = False
) -> dict[str, Float[Array, ""]]:
    """Return ``{"val_loss": ...}``: the objective's metrics of each split, prefixed with its name.

    Args:
        stage: what is trained.
        moving: the half that moves, as :func:`eval_params`.
        frozen: the other half.
        splits: by name.
        full: everything that is reported of an end, not only what is logged on the way.
    """
    found, objective = {}, stage.objective
    for name, data in splits.items():
        x, y = objective.corrupt(jax.random.PRNGKey(EVALUATION_KEY), *data) if objective.corrupts else data
        outputs = eval_outputs(stage, moving, frozen, Split(x, y))
        for metric, value in (objective.report if full else objective.metrics)(outputs, y).items():
            found[f"{name}_{metric}"] = value
    return found


def eval_outputs(stage: Stage, moving: Params, frozen: Params, data: Split) -> Array:
    """Return what the objective needs of all rows' outputs, computed for as many at once as the model allows."""

    def run(x: Array) -> Array:
        return forward(stage, moving, frozen, x, ApplyOptions())[0]

    def digested(part: Split) -> Array:
        return stage.objective.reduce_outputs(stage.objective.apply_eval(run, part.x), part.y)

    return by_chunks(digested, stage.model.eval_batch_size(data.x.shape[1:]), data)


def predictions(stage: Stage, moving: Params, frozen: Params, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of all rows of each part, computed for as many at once as the model allows."""

    def outputs(x: Array) -> Array:
        return forward(stage, moving, frozen, x, ApplyOptions())[0]

    return {name: by_chunks(outputs, stage.model.eval_batch_size(x.shape[1:]), x) for name, x in inputs.items()}


def by_chunks(function: Callable[[Any], Array], size: int | None, data: Any) -> Array:
    """Return ``function`` of all rows of a tree of arrays, computed for ``size`` of them at once; ``None``: for all."""
    count = len(jax.tree.leaves(data)[0])
    if size is None or size >= count:
        return function(data)
    chunks = -(-count // size)
    places = jnp.arange(chunks * size) % count  # the last chunk is filled up with the first rows
    whole = jax.lax.map(function, jax.tree.map(lambda rows: rows[places].reshape(chunks, size, *rows.shape[1:]), data))
    return whole.reshape(chunks * size, *whole.shape[2:])[:count]


class Best(NamedTuple):
    """The best evaluation so far."""

    params: Params  # as :func:`eval_params`
    loss: Float[Array, ""]
    step: Int[Array, ""]  # updates made before it
    waited: Int[Array, ""]  # evaluations since


def better(stage: Stage, best: Best, moving: Params, loss: Any, step: Any) -> Best:
    """Return the best evaluation after one more; once the patience is used up it stays what it is.

    A loss that is not a number compares as no improvement.
    """
    improved = loss < best.loss - jnp.where(jnp.isfinite(best.loss), stage.trainer.min_delta, 0.0)
    if stage.trainer.patience is not None:
        improved &= best.waited < stage.trainer.patience
    chosen = Best(moving, jnp.asarray(loss, jnp.float32), jnp.asarray(step, jnp.int32), jnp.zeros((), jnp.int32))
    kept = best._replace(waited=best.waited + 1)
    return jax.tree.map(lambda new, old: jnp.where(improved, new, old), chosen, kept)


def no_best(moving: Params) -> Best:
    """Return the best of no evaluation yet."""
    zero = jnp.zeros((), jnp.int32)
    return Best(jax.tree.map(jnp.zeros_like, moving), jnp.full((), jnp.inf), zero, zero)


def traced(stage: Stage) -> dict[str, np.ndarray]:
    """Return the stage's hyperparameters as the arrays that its programs take."""
    whole = {"seed": np.uint32, "steps": np.int32, "first": np.int32}
    return {path: np.asarray(value, whole.get(path, np.float32)) for path, value in hyperparameters(stage).items()}
