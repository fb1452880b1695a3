"""The metrics of many sets of weights, computed by one program, and the batch statistics of averaged weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
from .averaging import as_numpy, shared, stack


class Interpolation(NamedTuple):
    """Points between ``a`` and ``b``, as :func:`~src.finished.averaging.interpolate` computes them."""

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
    """Evaluate many sets of weights with one compiled program, ``batch_size`` of them side by side.

    Parameters that are equal at both ends of an interpolation are not repeated for each point. All are computed in the
    trainer's ``precision``; ``frozen_precision``, which concerns frozen parameters only, is not used.

    Args:
        points: an interpolation, or parameters along a new first axis (:func:`~src.finished.averaging.stack`).
        tasks: whose splits all have different names.
        batch_size: of points; memory grows with it.

    Returns:
        A row a point: ``alpha`` of an interpolation, then ``val_loss`` and so on, split by split.

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
            params = {**end, **{path: _between(leaf, end[path], point) for path, leaf in starts.items()}}
        found: dict[str, Array] = {}
        for static, hyper, (splits, head) in zip(stages, hypers, data, strict=True):
            stage = bind(static, hyper)
            own = head_paths(stage.model, params) if head else ()
            with_head = {**{path: leaf for path, leaf in params.items() if path not in own}, **head}
            found |= evaluate(stage, with_head, {}, splits)
        return found

    return jax.vmap(one)(batch)


def _between(a: Array, b: Array, alpha: Array) -> Array:
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

    Args:
        stage: its model, and its strategy's adapter parameters.
        params: returned as they are if they have no batch statistics.
        x: training rows.
    """
    paths = frozenset(path for path in params if is_statistic(path))
    if not paths:
        return as_numpy(params)

    @jax.jit
    def moved_from(old: Array) -> Params:
        start = {**params, **{path: jnp.full_like(params[path], old) for path in paths}}
        return forward(stage, start, {}, jnp.asarray(x), ApplyOptions(mutable=paths))[1]

    zero, one = jax.device_get((moved_from(jnp.zeros(())), moved_from(jnp.ones(()))))
    return as_numpy(params) | {path: zero[path] / (1.0 - (one[path] - zero[path])) for path in zero}
