"""Averages of fine-tuned weights, WiSE-FT and model soups: the weights, their metrics and their batch statistics.

Sources: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), and "Model soups" (arXiv
2203.05482). Averages are computed in float64 and rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, ArrayLike, Float

from ..config.hparams import bind, static_part
from ..errors import UserError, listed
from ..models.base import ApplyOptions, head_paths, is_statistic, same_bits
from ..training.evaluation import evaluate
from ..training.forward import forward
from ..training.loop import shortest_float
from ..training.stage import Stage, traced
from ..types import Params, Split


def interpolate(a: Mapping[str, Any], b: Mapping[str, Any], alpha: float, kept: Iterable[str] = ()) -> Params:
    """Return ``(1 - alpha) a + alpha b`` (arXiv 2109.01903, eq. 1): WiSE-FT for pre-trained ``a`` and fine-tuned ``b``.

    At 0 and 1 the bits are those of ``a`` and ``b``; parameters that are equal in both keep theirs at every alpha.
    The paths in ``kept`` are ``b``'s at every alpha: a new head, even where it has the shape of the old one. So are
    parameters that ``a`` lacks. Batch statistics are interpolated like weights.

    Raises:
        UserError: ``a`` has parameters that ``b`` lacks or has in another shape, or alpha is outside 0 to 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}; allowed: a number from 0 to 1")
    return as_numpy(b) | {path: _between(start, b[path], alpha) for path, start in shared(a, b, kept).items()}


def _between(a: Any, b: Any, alpha: float) -> Any:
    if alpha in (0.0, 1.0) or same_bits(a, b):  # 0 * a + 1 * b would turn -0.0 into 0.0
        return np.asarray(b if alpha else a)
    start, end = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ((1.0 - alpha) * start + alpha * end).astype(np.asarray(b).dtype)


def shared(a: Mapping[str, Any], b: Mapping[str, Any], kept: Iterable[str] = ()) -> dict[str, Any]:
    """Return the parameters of ``a``, all but ``kept``; refuse any that ``b`` lacks or has in another shape or type."""
    found = {path: leaf for path, leaf in a.items() if path not in set(kept)}
    check_architecture(found, {path: leaf for path, leaf in b.items() if path in found}, "the ends of the path")
    return found


def uniform_soup(members: Sequence[Mapping[str, Any]]) -> Params:
    """Return the mean of the members, parameter by parameter (arXiv 2203.05482, section 2, "uniform soup").

    Batch statistics are averaged like weights; ``recompute_statistics`` estimates them.

    Raises:
        UserError: there are no members, or their architectures differ.
    """
    check_members(members)
    return {path: _mean([member[path] for member in members]) for path in members[0]}


def _mean(leaves: Sequence[Any]) -> Any:
    if all(same_bits(leaf, leaves[0]) for leaf in leaves):  # parameters that fine-tuning did not change keep their bits
        return np.asarray(leaves[0])
    total = np.zeros(np.shape(leaves[0]), np.float64)
    for leaf in leaves:
        total += np.asarray(leaf, np.float64)
    return (total / len(leaves)).astype(np.asarray(leaves[0]).dtype)


def greedy_soup(
    members: Sequence[Mapping[str, Any]], evaluate: Callable[[Params], float]
) -> tuple[Params, tuple[int, ...]]:
    """Return the greedy soup (arXiv 2203.05482, recipe 1), and its members' indices in the order of their addition.

    Members are added in the order of their loss alone, which ``evaluate`` returns, if that makes the soup no worse; so
    it is never worse than the best of them. NaN counts as the worst loss; among equal ones the earlier member is first.

    Raises:
        UserError: there are no members, no member has a finite loss, or architectures differ.
    """
    check_members(members)
    losses = [float(evaluate(as_numpy(member))) for member in members]
    order = sorted(range(len(members)), key=lambda i: math.inf if math.isnan(losses[i]) else losses[i])
    if not math.isfinite(losses[order[0]]):
        raise UserError("no member has a finite validation loss; allowed: at least one")
    kept, params, best = (order[0],), as_numpy(members[order[0]]), losses[order[0]]
    for i in order[1:]:
        candidate = uniform_soup([members[j] for j in (*kept, i)])
        loss = float(evaluate(candidate))
        if loss <= best:  # false for NaN
            kept, params, best = (*kept, i), candidate, loss
    return params, kept


def stack(members: Sequence[Mapping[str, Any]]) -> Params:
    """Return the members' parameters along a new first axis; their architectures must be the same."""
    check_members(members)
    return {path: np.stack([np.asarray(member[path]) for member in members]) for path in members[0]}  # type: ignore[return-value]


def check_members(members: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an empty list, and members of different architectures."""
    if not members:
        raise UserError("there are no members to average; allowed: at least one")
    for i, other in enumerate(members[1:], start=1):
        check_architecture(members[0], other, f"members 0 and {i}")


def check_architecture(a: Mapping[str, Any], b: Mapping[str, Any], what: str) -> None:
    """Refuse weights whose paths, shapes or types differ; the first differences are named."""

    def describe(params: Mapping[str, Any], path: str) -> str:
        return f"{tuple(np.shape(params[path]))} {params[path].dtype}" if path in params else "absent"

    pairs = {path: (describe(a, path), describe(b, path)) for path in sorted({*a, *b})}
    if wrong := [f"{path} is {one} and {other}" for path, (one, other) in pairs.items() if one != other]:
        raise UserError(f"{what} differ in architecture: {listed(wrong, 3)}; allowed: the same paths and shapes")


def as_numpy(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as NumPy arrays."""
    return {path: np.asarray(leaf) for path, leaf in params.items()}


# --- metrics ---------------------------------------------------------------------------------------------------------


class Interpolation(NamedTuple):
    """Points between ``a`` and ``b``, as :func:`interpolate` computes them."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    alphas: Float[ArrayLike, " points"]
    kept: tuple[str, ...] = ()


class EvalTask(NamedTuple):
    """A task on which weights are evaluated."""

    stage: Stage  # its model, outputs, objective and precision, and its strategy's adapter parameters
    splits: Mapping[str, Split]
    head: Mapping[str, Any] = {}  # replaces the weights' own head; empty: their own


def evaluate_weights(
    points: Interpolation | Mapping[str, Any], tasks: Sequence[EvalTask], batch_size: int = 16
) -> pd.DataFrame:
    """Return a row of metrics a point, computed by one compiled program, ``batch_size`` points side by side.

    Columns are ``alpha`` of an interpolation, then ``val_loss`` and so on, split by split. Parameters that are equal at
    both ends of an interpolation are not repeated for each point. All are computed in the trainer's ``precision``;
    ``frozen_precision``, which concerns frozen parameters only, is not used.

    Args:
        points: an interpolation, or parameters along a new first axis (:func:`stack`).
        tasks: whose splits all have different names.
        batch_size: memory grows with it.

    Raises:
        UserError: there is no point, an alpha is outside 0 to 1, or the ends differ in architecture.
    """
    between = isinstance(points, Interpolation)
    each: Any = np.asarray(points.alphas, np.float32) if between else dict(points)
    lengths = {len(leaf) for leaf in jax.tree.leaves(each)}
    count = max(lengths, default=0)
    if len(lengths) != 1 or count == 0:
        raise UserError(f"the points of the path have the lengths {sorted(lengths)}; allowed: one length >= 1")
    if between and not ((each >= 0) & (each <= 1)).all():
        raise UserError(f"the alphas are {listed(map(str, each))}; allowed: numbers from 0 to 1")
    ends = None
    if between:
        starts = shared(points.a, points.b, points.kept)
        ends = {path: leaf for path, leaf in starts.items() if not same_bits(leaf, points.b[path])}, dict(points.b)
    batch_size = min(batch_size, count)
    stages, hypers = tuple(static_part(task.stage) for task in tasks), [traced(task.stage) for task in tasks]
    data = [(dict(task.splits), dict(task.head)) for task in tasks]
    batches = []
    for first in range(0, count, batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), count - 1)  # the last batch repeats the last point
        batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], each)
        batches.append(jax.device_get(_evaluate_batch(stages, hypers, ends, batch, data)))
    # JAX returns dictionaries with sorted keys; the table goes split by split, the loss first.
    metrics = sorted(batches[0], key=lambda name: not name.endswith("_loss"))
    names = [name for task in tasks for split in task.splits for name in metrics if name.startswith(f"{split}_")]
    columns: dict[str, Any] = {"alpha": each} if between else {}
    columns |= {name: np.concatenate([batch[name] for batch in batches])[:count] for name in names}
    return pd.DataFrame({name: [shortest_float(value) for value in values] for name, values in columns.items()})


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_batch(stages: tuple[Stage, ...], hypers: Any, ends: Any, batch: Any, data: Any) -> dict[str, Array]:
    """Return the tasks' metrics of a batch of points: alphas between the ends, or stacked parameters."""

    def one(point: Any) -> dict[str, Array]:
        if ends is None:
            params = point
        else:
            starts, end = ends
            params = {**end, **{path: _point_between(leaf, end[path], point) for path, leaf in starts.items()}}
        found: dict[str, Array] = {}
        for static, hyper, (splits, head) in zip(stages, hypers, data, strict=True):
            stage = bind(static, hyper)
            own = head_paths(stage.model, params) if head else ()
            with_head = {**{path: leaf for path, leaf in params.items() if path not in own}, **head}
            found |= evaluate(stage, with_head, {}, splits)
        return found

    return jax.vmap(one)(batch)


def _point_between(a: Array, b: Array, alpha: Array) -> Array:
    # Not (1 - alpha) a + alpha b: in float32 that rounds twice, which matters where the ends are close.
    return jnp.where(alpha == 1.0, b, a + alpha.astype(a.dtype) * (b - a))


def validation_loss(task: EvalTask) -> Callable[[Params], float]:
    """Return the function that computes the loss of weights on a task's validation rows."""
    validation = [task._replace(splits={"val": task.splits["val"]})]
    return lambda params: float(evaluate_weights(stack([params]), validation)["val_loss"].to_numpy()[0])


def recompute_statistics(stage: Stage, params: Mapping[str, Any], x: Float[ArrayLike, "N ..."]) -> Params:
    """Return the parameters with the batch statistics of these rows, taken as one batch.

    Statistics of averaged weights are not averages of statistics (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).
    Batch normalisation moves each statistic to ``m old + (1 - m) batch``; the results for ``old = 0`` and ``old = 1``
    give the batch's, whatever the momentum m is.
    """
    paths = frozenset(path for path in params if is_statistic(path))

    @jax.jit
    def moved_from(old: Array) -> Params:
        start = {**params, **{path: jnp.full_like(params[path], old) for path in paths}}
        return forward(stage, start, {}, jnp.asarray(x), ApplyOptions(mutable=paths))[1]

    zero, one = jax.device_get((moved_from(jnp.zeros(())), moved_from(jnp.ones(()))))
    return as_numpy(params) | {path: zero[path] / (1.0 - (one[path] - zero[path])) for path in zero}
