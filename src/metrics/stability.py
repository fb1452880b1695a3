"""Warnings about a contrastive pre-training from its logged rows: large gradients and collapsing embeddings.

The thresholds are rules of thumb; docs/self_supervision.md has their sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SPIKE = 100.0  # gradient norm; usual are 1 to 10
FLAT = 1.0  # temperature from which all similarities have almost the same weight
CHANCE = 0.99  # of the loss of equal embeddings
CROWDED = 0.95  # cosine similarity of different samples
NARROW = 0.2  # of the spread of uniformly distributed embeddings
FEW = 2.0  # effective rank
LAST = 0.1  # share of the rows that count as the end of a run

Rows = Iterable[Mapping[str, Any]]


def stability_warnings(rows: Rows, epoch: int, negatives: int | None = None, dim: int | None = None) -> list[str]:
    """Return a sentence for each problem; none for a healthy run.

    Args:
        rows: of the record (``metrics.jsonl``); those of stages other than ``pretrain`` are ignored. Missing values are
            not judged. Read are ``loss`` (nats), ``grad_norm``, ``grad_norm_max`` (since the previous row),
            ``temperature``, ``neg_similarity``, ``spread`` and ``rankme``.
        epoch: updates of one pass over the data.
        negatives: of each embedding: 2N - 2 for N pairs in a batch, or the size of the queue; ``None``: unknown.
        dim: dimensions of the embeddings; ``None``: unknown.
    """
    history = _of_pretraining(rows)
    return [*_gradients(history, epoch), *_learning(history, negatives), *_collapse(history, dim)]


def stability_facts(rows: Rows, epoch: int, negatives: int | None = None, dim: int | None = None) -> dict[str, float]:
    """Return the numbers behind :func:`stability_warnings`; the arguments are the same.

    ``first_epoch_grad_norm`` is the largest of the first epoch; ``collapsed`` is 1 if the embeddings have collapsed at
    the end, else 0. For comparison, ``equal_loss`` is the loss of equal embeddings, and ``even_spread`` the spread of
    uniformly distributed ones.
    """
    history = _of_pretraining(rows)
    norms = [norm for norm, _ in _first_epoch(history, epoch)]
    found = {"first_epoch_grad_norm": max(norms)} if norms else {}
    if negatives:
        found["equal_loss"] = math.log(negatives + 1)
    if dim:
        found["even_spread"] = 1 / math.sqrt(dim)
    return found | {"collapsed": float(any(_collapse(history, dim)))}


def _of_pretraining(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("stage", "pretrain") == "pretrain"]


def _first_epoch(history: list[Mapping[str, Any]], epoch: int) -> list[tuple[float, Mapping[str, Any]]]:
    """Return the gradient norms of the first epoch with their rows; an interval counts where it begins."""
    found, before = [], 0
    for row in history:
        interval = row.get("grad_norm_max", 0.0) if before < epoch else 0.0
        single = row.get("grad_norm", 0.0) if row["step"] <= epoch else 0.0
        norms = [norm for norm in (interval, single) if math.isfinite(norm)]
        found, before = [*found, (max(norms, default=0.0), row)], row["step"]
    return [(norm, row) for norm, row in found if norm > 0]


def _gradients(history: list[Mapping[str, Any]], epoch: int) -> Iterable[str]:
    """Yield a sentence for the first value that is not finite, and one for the largest gradient."""
    values = [(name, row) for row in history for name in ("loss", "grad_norm")]
    for name, row in [(name, row) for name, row in values if not math.isfinite(row.get(name, 0.0))][:1]:
        yield f"{name} stopped being finite at step {row['step']:,}."
    norm, row = max(_first_epoch(history, epoch), key=lambda found: found[0], default=(0.0, {}))
    if norm > SPIKE:
        when = "at" if norm == row.get("grad_norm") else "before"  # between two logged rows
        at = f" at temperature {row['temperature']:.3g}" if "temperature" in row else ""
        yield (
            f"The gradient norm reached {norm:.4g} {when} step {row['step']:,}{at}, above {SPIKE:g} in the first "
            "epoch: the temperature falls too early; begin hotter, or let it fall over a larger share of the run."
        )


def _learning(history: list[Mapping[str, Any]], negatives: int | None) -> Iterable[str]:
    """Yield a sentence for a flat temperature, and one for the loss of equal embeddings."""
    end = _end(history, "temperature")
    if end is not None and end >= FLAT:
        yield (
            f"The temperature ends at {end:.3g}: from {FLAT:g} on all similarities weigh almost the same, and little "
            "is learned from those that matter."
        )
    end, equal = _end(history, "loss"), math.log((negatives or 0) + 1)
    if end is not None and negatives and end >= CHANCE * equal:
        yield (
            f"The loss ends at {end:.4g}, and embeddings that are all equal have log({negatives + 1:,}) = {equal:.4g}: "
            "nothing has been learned, or the embeddings collapse."
        )


def _collapse(history: list[Mapping[str, Any]], dim: int | None) -> Iterable[str]:
    """Yield a sentence for each sign of a collapse of the embeddings."""
    end = _end(history, "neg_similarity")
    if end is not None and end > CROWDED:
        yield (
            f"Different samples end at a cosine similarity of {end:.3f}, above {CROWDED:g}: the embeddings have "
            "collapsed."
        )
    end = _end(history, "spread")
    if end is not None and dim and end * math.sqrt(dim) < NARROW:
        yield (
            f"The spread of the embeddings ends at {end:.3g}, below {NARROW:g} of the {1 / math.sqrt(dim):.3g} of "
            f"{dim:,} dimensions that are all used: they collapse."
        )
    end = _end(history, "rankme")
    if end is not None and end < FEW:
        yield f"The effective rank of the embeddings ends at {end:.3g}, below {FEW:g}: they have collapsed."


def _end(history: list[Mapping[str, Any]], name: str) -> float | None:
    """Return the median of the finite values over the last tenth of the rows, which a single batch cannot change."""
    values = [row[name] for row in history if math.isfinite(row.get(name, math.nan))]
    return float(np.median(values[-math.ceil(LAST * len(values)) :])) if values else None
