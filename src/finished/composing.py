"""Adapters put together: their exact weighted sum, its best approximation of a lower rank, and the weights to take."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import ArrayLike, Float, Int

from ..checkpoints.adapters import SIDE, Adapter, B, Pair, another_base, apply, times
from ..errors import UserError, listed
from ..models.base import Model, same_bits
from ..objectives.base import Objective
from ..types import Params, Split


def compose(parts: Sequence[tuple[Adapter, float]], head: int | None = None) -> Adapter:
    """Return the adapter whose deltas are ``sum_i w_i s_i A_i B_i``, exactly, by concatenating the ranks.

    ``A = [A_1 | A_2 | ...]`` and ``B = [w_1 s_1 B_1; w_2 s_2 B_2; ...]`` with s = 1. Adding the factors instead, ``(sum
    A_i)(sum B_i)``, would add every cross term ``A_i B_j`` too. A module that an adapter leaves alone gets nothing from
    it; a negative weight takes its change away.

    Args:
        parts: adapters of one base with their weights.
        head: place in ``parts`` of the adapter whose head is taken; needed where their heads differ.

    Raises:
        UserError: no adapters, several bases, kernels of different shapes, weights that are not finite, or heads that
            nobody chose from.
    """
    if not parts:
        raise UserError("there are no adapters to compose; allowed: at least one")
    adapters, weights = [adapter for adapter, _ in parts], [float(weight) for _, weight in parts]
    if not all(map(math.isfinite, weights)):
        raise UserError(f"the weights of the adapters are {listed(map(str, weights))}; allowed: finite numbers")
    for adapter in adapters:
        if adapter.base != adapters[0].base:
            raise UserError(another_base(adapter.base, adapters[0].base))
    _check_shapes(adapters)
    modules = dict.fromkeys(module for adapter in adapters for module in adapter.deltas)
    return Adapter(
        deltas={module: _concatenated(parts, module) for module in modules},
        scales=dict.fromkeys(modules, 1.0),
        head=_chosen_head(adapters, head),
        base=adapters[0].base,
        head_paths=tuple(sorted({path for adapter in adapters for path in adapter.head_paths})),
        meta={
            "composed": [{"weight": weight, **adapter.meta} for adapter, weight in zip(adapters, weights, strict=True)]
        },
    )


def _concatenated(parts: Sequence[tuple[Adapter, float]], module: str) -> Pair:
    own = [(adapter, weight) for adapter, weight in parts if module in adapter.deltas]
    lefts = [adapter.deltas[module][0] for adapter, _ in own]
    rights = [times(weight * adapter.scales[module], adapter.deltas[module][1]) for adapter, weight in own]
    return np.concatenate(lefts, axis=-1), np.concatenate(rights, axis=-2)


def _check_shapes(adapters: Sequence[Adapter]) -> None:
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for adapter in adapters:
        for module, (a, b) in adapter.deltas.items():
            shapes.setdefault(module, set()).add((*a.shape[:-1], b.shape[-1]))
    wrong = [f"{module} has {listed(map(str, sorted(found)))}" for module, found in shapes.items() if len(found) > 1]
    if wrong:
        raise UserError(f"the adapters change kernels of different shapes: {listed(wrong, 40)}; allowed: one a module")


def _chosen_head(adapters: Sequence[Adapter], head: int | None) -> Mapping[str, np.ndarray]:
    """Return the one head there is, or the one that was named: a mean of two tasks' heads is the head of neither."""
    if head is not None:
        if not 0 <= head < len(adapters):
            raise UserError(f"head is {head}; allowed: the place of an adapter, 0 to {len(adapters) - 1}")
        return adapters[head].head
    carrying = [i for i, adapter in enumerate(adapters) if adapter.head]
    heads = [adapters[i].head for i in carrying]
    if any(h.keys() != heads[0].keys() or not all(same_bits(h[path], heads[0][path]) for path in h) for h in heads):
        raise UserError(
            f"adapters {listed(map(str, carrying))} carry different heads, and a mixture of heads is the head of no "
            f"task; name the one to take: {' or '.join(f'head={i}' for i in carrying)}"
        )
    return heads[0] if heads else {}


class Truncated(NamedTuple):
    """An adapter of a lower rank, and what that cost."""

    adapter: Adapter
    error: float  # Frobenius norm of what was cut off over that of the whole, all modules together
    errors: dict[str, float]  # the same of each module


def truncate(adapter: Adapter, rank: int) -> Truncated:
    """Return the closest adapter whose modules have at most this rank, by singular value decomposition.

    Nothing of the rank is closer in the Frobenius norm (Eckart & Young 1936). The decomposition is of ``R_A R_B^T``, r
    by r, where ``A = Q_A R_A`` and ``B^T = Q_B R_B``; ``A B`` itself is never formed.

    Raises:
        UserError: a rank below 1.
    """
    if rank < 1:
        raise UserError(f"rank is {rank}; allowed: a whole number >= 1")
    deltas, lost, norms = {}, {}, {}
    for module, (a, b) in adapter.deltas.items():
        deltas[module], values = _lower(adapter.scales[module], a, b, rank)
        norms[module], lost[module] = np.linalg.norm(values), np.linalg.norm(values[rank:])
    scales, meta = dict.fromkeys(deltas, 1.0), {**adapter.meta, "truncated": rank}
    return Truncated(
        Adapter(deltas, scales, adapter.head, adapter.base, adapter.head_paths, meta),
        _ratio(math.hypot(*lost.values()), math.hypot(*norms.values())),
        {module: _ratio(lost[module], norms[module]) for module in deltas},
    )


def _lower(scale: float, a: np.ndarray, b: np.ndarray, rank: int) -> tuple[Pair, np.ndarray]:
    """Return the pair of a rank, with the scale in it, and all singular values."""
    left, right = a.reshape(-1, a.shape[-1]).astype(np.float64), scale * b.reshape(b.shape[-2:]).astype(np.float64)
    q_a, r_a = np.linalg.qr(left)
    q_b, r_b = np.linalg.qr(right.T)
    u, values, v = np.linalg.svd(r_a @ r_b.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    new_a, new_b = q_a @ u[:, :kept] * root[None], root[:, None] * (v[:kept] @ q_b.T)
    pair = new_a.reshape(*a.shape[:-1], kept), new_b.reshape(*b.shape[:-2], kept, b.shape[-1])
    return tuple(new.astype(np.result_type(a.dtype, b.dtype, np.float32)) for new in pair), values  # type: ignore[return-value]


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole > 0 else 0.0


# --- which weights -------------------------------------------------------------------------------------------------


def weight_grid(adapters: int, values: Sequence[float]) -> Float[np.ndarray, "points adapters"]:
    """Return every combination of the values, one weight an adapter."""
    return np.array(list(itertools.product(values, repeat=adapters)), np.float32).reshape(-1, adapters)


def search_weights(
    model: Model,
    base: Mapping[str, Any],
    adapters: Sequence[Adapter],
    data: Split,
    objective: Objective,
    outputs: int,
    grid: Float[ArrayLike, "points adapters"],
    head: int | None = None,
    at_once: int = 16,
) -> pd.DataFrame:
    """Measure weighted sums of adapters, all points of a grid in one program.

    The weights are arguments of that program. A sum acts on the side path, with the ranks of all adapters beside each
    other and B's rows weighted, so no kernel is written for a point.

    Args:
        model: the network.
        base: what the adapters were trained on.
        adapters: of that base.
        data: rows that choose the weights: of validation, never of the test.
        objective: gives the loss and what is reported with it.
        outputs: units of the head.
        grid: one row of weights a point (:func:`weight_grid`).
        head: place of the adapter whose head is taken, see :func:`compose`.
        at_once: points that are computed side by side; memory grows with it.

    Returns:
        A table with a row a point, the lowest loss first: ``weight_0``, ``weight_1``, ..., then ``loss`` and the
        objective's other metrics (``accuracy`` or ``r2``).

    Raises:
        UserError: a grid of another width or with numbers that are not finite, or adapters that do not go together.
    """
    points = np.asarray(grid, np.float32)
    if points.ndim != 2 or points.shape[1] != len(adapters) or not len(points) or not np.isfinite(points).all():
        raise UserError(
            f"the grid of weights has the shape {points.shape}; allowed: (points, {len(adapters)}) finite numbers"
        )
    together = compose([(adapter, 1.0) for adapter in adapters], head)
    owners = {
        module: np.repeat(
            [i for i, adapter in enumerate(adapters) if module in adapter.deltas],
            [adapter.ranks[module] for adapter in adapters if module in adapter.deltas],
        ).astype(np.int32)
        for module in together.deltas
    }
    at_once = min(at_once, len(points))
    padded = np.concatenate([points, np.repeat(points[-1:], -len(points) % at_once, axis=0)])
    chunks = padded.reshape(-1, at_once, len(adapters))
    measured = jax.device_get(_measured(model, objective, outputs, apply(together, base), owners, data, chunks))
    table = {f"weight_{i}": points[:, i] for i in range(len(adapters))}
    # JAX hands dictionaries back with sorted keys; the loss decides, so it comes first.
    names = sorted(measured, key=lambda name: name != "loss")
    table |= {name: measured[name].reshape(-1)[: len(points)] for name in names}
    return pd.DataFrame(table).sort_values("loss", kind="stable", ignore_index=True)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(
    model: Model,
    objective: Objective,
    outputs: int,
    params: Params,
    owners: Mapping[str, Int[Any, " ranks"]],
    data: Split,
    weights: Float[Any, "chunks at_once adapters"],
) -> dict[str, Any]:
    """Return the objective's metrics of every point; ``owners`` says which adapter each of a module's ranks is of."""

    def one(point: Float[Any, " adapters"]) -> dict[str, Any]:
        scaled = {f"{m}/{B}": jnp.einsum("...ro,r->...ro", params[f"{m}/{B}"], point[own]) for m, own in owners.items()}
        return objective.metrics(model.apply(params | scaled, data.x, outputs, SIDE), data.y)

    return jax.lax.map(jax.vmap(one), weights)
