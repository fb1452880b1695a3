"""Weighted sums of LoRA adapters: exact, truncated to a lower rank, and with weights chosen on validation rows."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import ArrayLike, Float, Int

from ..checkpoints.adapters import LORA_OPTIONS, MAX_NAMED, B, LoraAdapter, add_adapter, different_bases, scale_factor
from ..errors import UserError, listed
from ..models.base import Model, same_bits
from ..objectives.base import Objective
from ..types import Params, Split

Weighted = Sequence[tuple[LoraAdapter, float]]


def add_weighted_adapter(parts: Weighted, head: int | None = None) -> LoraAdapter:
    """Return the adapter whose changes are ``sum_i w_i s_i A_i B_i``, exactly, by concatenating the ranks.

    This is PEFT's ``add_weighted_adapter`` with ``combination_type="cat"``: ``A = [A_1 | A_2 | ...]`` and
    ``B = [w_1 s_1 B_1; w_2 s_2 B_2; ...]`` with s = 1. Its type ``linear``, ``(sum A_i)(sum B_i)``, adds cross terms
    ``A_i B_j``. A negative weight subtracts an adapter's change.

    The head is that of the adapter at the index ``head``, which is needed where their heads differ.

    Raises:
        UserError: no adapters, several bases, kernels of different shapes, weights that are not finite, or different
            heads without ``head``.
    """
    if not parts:
        raise UserError("there are no adapters to add; allowed: at least one")
    adapters, weights = [adapter for adapter, _ in parts], [float(weight) for _, weight in parts]
    if not all(map(math.isfinite, weights)):
        raise UserError(f"the weights of the adapters are {listed(map(str, weights))}; allowed: finite numbers")
    for adapter in adapters:
        if adapter.base != adapters[0].base:
            raise UserError(different_bases(adapter.base, adapters[0].base))
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for adapter in adapters:
        for module, (a, b) in adapter.factors.items():
            shapes.setdefault(module, set()).add((*a.shape[:-1], b.shape[-1]))
    if wrong := [f"{module} has {listed(map(str, sorted(own)))}" for module, own in shapes.items() if len(own) > 1]:
        raise UserError(
            f"the adapters change kernels of different shapes: {listed(wrong, MAX_NAMED)}; allowed: one a module"
        )
    composed = [{"weight": weight, **adapter.meta} for adapter, weight in zip(adapters, weights, strict=True)]
    return LoraAdapter(
        factors={module: _concatenate(parts, module) for module in shapes},
        scaling=dict.fromkeys(shapes, 1.0),
        head=_choose_head(adapters, head),
        base=adapters[0].base,
        head_paths=tuple(sorted({path for adapter in adapters for path in adapter.head_paths})),
        meta={"composed": composed},
    )


def _concatenate(parts: Weighted, module: str) -> tuple[np.ndarray, np.ndarray]:
    own = [(adapter, weight) for adapter, weight in parts if module in adapter.factors]
    a = [adapter.factors[module][0] for adapter, _ in own]
    b = [scale_factor(weight * adapter.scaling[module], adapter.factors[module][1]) for adapter, weight in own]
    return np.concatenate(a, axis=-1), np.concatenate(b, axis=-2)


def _choose_head(adapters: Sequence[LoraAdapter], head: int | None) -> Mapping[str, np.ndarray]:
    """Return the head at an index, or the only one there is: heads of different tasks are not averaged."""
    if head is not None:
        if not 0 <= head < len(adapters):
            raise UserError(f"head is {head}; allowed: the index of an adapter, 0 to {len(adapters) - 1}")
        return adapters[head].head
    owners = [i for i, adapter in enumerate(adapters) if adapter.head]
    heads = [adapters[i].head for i in owners]
    if any(h.keys() != heads[0].keys() or not all(same_bits(h[path], heads[0][path]) for path in h) for h in heads):
        raise UserError(
            f"adapters {listed(map(str, owners))} have different heads, and heads are not averaged; "
            f"allowed: {' or '.join(f'head={i}' for i in owners)}"
        )
    return heads[0] if heads else {}


class TruncatedAdapter(NamedTuple):
    """An adapter of a lower rank, and its relative errors in the Frobenius norm."""

    adapter: LoraAdapter
    error: float  # of all modules together
    errors: dict[str, float]  # of each module


def truncate(adapter: LoraAdapter, rank: int) -> TruncatedAdapter:
    """Return the closest adapter of at most this rank in the Frobenius norm (Eckart & Young 1936).

    The singular value decomposition is that of ``R_A R_B^T``, r by r, where ``A = Q_A R_A`` and ``B^T = Q_B R_B``, so
    ``A B`` is never formed.

    Raises:
        UserError: a rank below 1.
    """
    if rank < 1:
        raise UserError(f"rank is {rank}; allowed: a whole number >= 1")
    factors, lost, norms = {}, {}, {}
    for module, (a, b) in adapter.factors.items():
        q_a, r_a = np.linalg.qr(a.reshape(-1, a.shape[-1]).astype(np.float64))
        q_b, r_b = np.linalg.qr((adapter.scaling[module] * b.reshape(b.shape[-2:]).astype(np.float64)).T)
        u, values, v = np.linalg.svd(r_a @ r_b.T)
        r = min(rank, len(values))
        root = np.sqrt(values[:r])
        new_a, new_b = q_a @ u[:, :r] * root[None], root[:, None] * (v[:r] @ q_b.T)
        dtype = np.result_type(a.dtype, b.dtype, np.float32)
        shape_a, shape_b = (*a.shape[:-1], r), (*b.shape[:-2], r, b.shape[-1])
        factors[module] = new_a.reshape(shape_a).astype(dtype), new_b.reshape(shape_b).astype(dtype)
        norms[module], lost[module] = np.linalg.norm(values), np.linalg.norm(values[rank:])
    total = math.hypot(*norms.values())
    meta = {**adapter.meta, "truncated": rank}
    return TruncatedAdapter(
        replace(adapter, factors=factors, scaling=dict.fromkeys(factors, 1.0), meta=meta),
        math.hypot(*lost.values()) / total if total > 0 else 0.0,
        {module: float(lost[module] / norm) if norm > 0 else 0.0 for module, norm in norms.items()},
    )


# --- the choice of weights -----------------------------------------------------------------------------------------


def weight_grid(adapters: int, values: Sequence[float]) -> Float[np.ndarray, "points adapters"]:
    """Return every combination of the values, one weight an adapter."""
    return np.array(list(itertools.product(values, repeat=adapters)), np.float32).reshape(-1, adapters)


def search_weights(
    model: Model,
    base: Mapping[str, Any],
    adapters: Sequence[LoraAdapter],
    data: Split,
    *,
    objective: Objective,
    outputs: int,
    grid: Float[ArrayLike, "points adapters"],
    head: int | None = None,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Evaluate weighted sums of adapters of ``base``, all points of a grid (:func:`weight_grid`) in one program.

    The weights are arguments of that program: the adapters' ranks lie side by side, and a point scales the rows of B.
    ``batch_size`` points are computed side by side; memory grows with it. The head is chosen as in
    :func:`add_weighted_adapter`.

    Returns:
        A row a point, the lowest loss first: ``weight_0``, ``weight_1``, ..., ``loss``, and the objective's other
        metrics.

    Raises:
        UserError: a grid of another width or with numbers that are not finite, or adapters that cannot be added.
    """
    points = np.asarray(grid, np.float32)
    if points.ndim != 2 or points.shape[1] != len(adapters) or not len(points) or not np.isfinite(points).all():
        raise UserError(
            f"the grid of weights has the shape {points.shape}; allowed: (points, {len(adapters)}) finite numbers"
        )
    total = add_weighted_adapter([(adapter, 1.0) for adapter in adapters], head)
    owners = {  # the index of the adapter that each rank of a module's factors belongs to
        module: np.array([i for i, own in enumerate(adapters) for _ in range(own.ranks.get(module, 0))], np.int32)
        for module in total.factors
    }
    batch_size = min(batch_size, len(points))
    padded = np.concatenate([points, np.repeat(points[-1:], -len(points) % batch_size, axis=0)])
    batches = padded.reshape(-1, batch_size, len(adapters))
    metrics = jax.device_get(_evaluate(model, objective, outputs, add_adapter(total, base), owners, data, batches))
    table = {f"weight_{i}": points[:, i] for i in range(len(adapters))}
    for name in sorted(metrics, key=lambda name: name != "loss"):  # the loss goes first
        table[name] = metrics[name].reshape(-1)[: len(points)]
    return pd.DataFrame(table).sort_values("loss", kind="stable", ignore_index=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate(
    model: Model,
    objective: Objective,
    outputs: int,
    params: Params,
    owners: Mapping[str, Int[Any, " ranks"]],
    data: Split,
    weights: Float[Any, "batches batch_size adapters"],
) -> dict[str, Any]:
    def one(point: Float[Any, " adapters"]) -> dict[str, Any]:
        scaled = {f"{m}/{B}": jnp.einsum("...ro,r->...ro", params[f"{m}/{B}"], point[own]) for m, own in owners.items()}
        return objective.metrics(model.apply(params | scaled, data.x, outputs, LORA_OPTIONS), data.y)

    return jax.lax.map(jax.vmap(one), weights)
