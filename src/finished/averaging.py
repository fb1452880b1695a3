"""Averages of fine-tuned weights: interpolation with the pre-trained weights (WiSE-FT), and model soups.

Sources: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), and "Model soups" (arXiv
2203.05482). Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError, listed
from ..models.base import same_bits
from ..types import Params


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

    Batch statistics are averaged like weights; ``evaluation.recompute_statistics`` estimates them.

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
