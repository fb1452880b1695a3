"""What the logged rows of a contrastive pre-training warn of: blown-up gradients, and embeddings that collapse.

The thresholds are rules of thumb, to be looked at by a person; docs/self_supervision.md says where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SPIKE = 100.0  # gradient norm; a healthy run's is of the order of 1 to 10
FLAT = 1.0  # temperature from which on all similarities weigh almost the same
CHANCE = 0.99  # of the loss of embeddings that are all equal
CROWDED = 0.95  # cosine similarity of different samples
NARROW = 0.2  # of the spread of embeddings that point everywhere alike
FEW = 2.0  # effective rank
LAST = 0.1  # share of the rows that say how a run ends


def stability_warnings(
    rows: Iterable[Mapping[str, Any]], epoch: int, negatives: int | None = None, dim: int | None = None
) -> list[str]:
    """Return one sentence for each thing that looks wrong; none for a healthy run.

    Args:
        rows: the record's rows (``metrics.jsonl``), of which those of another stage than ``pretrain`` are left out.
            Looked at are ``loss`` (nats), ``grad_norm``, ``grad_norm_max`` (since the row before), ``temperature``,
            ``neg_similarity``, ``spread`` and ``rankme``; what a row does not have is not judged.
        epoch: updates in which every row of the data is seen once.
        negatives: how many embeddings each is told from: 2N - 2 for N pairs in a batch, or the queue's size. ``None``:
            the loss is not judged.
        dim: of the embeddings. ``None``: their spread is not judged.
    """
    history = _of_pretraining(rows)
    found = [_not_finite(history), _spike(history, epoch), _flat(history)]
    found += [_chance(history, negatives), _crowded(history), _narrow(history, dim), _few(history)]
    return [sentence for sentence in found if sentence]


def stability_facts(
    rows: Iterable[Mapping[str, Any]], epoch: int, negatives: int | None = None, dim: int | None = None
) -> dict[str, float]:
    """Return the numbers behind :func:`stability_warnings`, for tables of runs; the arguments are the same.

    ``first_epoch_grad_norm`` is the largest of the first epoch, ``collapsed`` 1 where the embeddings end in a corner or
    a line. ``equal_loss`` is the loss of embeddings that are all equal, ``even_spread`` the spread of those that point
    everywhere alike: what a picture compares with.
    """
    history = _of_pretraining(rows)
    norms = [norm for norm, _ in _first_epoch(history, epoch)]
    found = {"first_epoch_grad_norm": max(norms)} if norms else {}
    if negatives:
        found["equal_loss"] = math.log(negatives + 1)
    if dim:
        found["even_spread"] = 1 / math.sqrt(dim)
    collapsed = _crowded(history) or _narrow(history, dim) or _few(history)
    return found | {"collapsed": float(collapsed is not None)}


def _of_pretraining(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("stage", "pretrain") == "pretrain"]


def _first_epoch(history: list[Mapping[str, Any]], epoch: int) -> list[tuple[float, Mapping[str, Any]]]:
    """Return the gradient norms of the first epoch with their rows.

    An interval that begins in it counts as a whole: an epoch may be shorter than the way to the first row.
    """
    found, before = [], 0
    for row in history:
        worst = row.get("grad_norm_max", 0.0) if before < epoch else 0.0
        own = row.get("grad_norm", 0.0) if row["step"] <= epoch else 0.0
        norms = [norm for norm in (worst, own) if math.isfinite(norm)]
        found, before = [*found, (max(norms, default=0.0), row)], row["step"]
    return [(norm, row) for norm, row in found if norm > 0]


def _not_finite(history: list[Mapping[str, Any]]) -> str | None:
    for row in history:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(row.get(name, 0.0)):
                return f"{name} stopped being finite at step {row['step']:,}."
    return None


def _spike(history: list[Mapping[str, Any]], epoch: int) -> str | None:
    first = [(norm, row) for norm, row in _first_epoch(history, epoch) if norm > SPIKE]
    if not first:
        return None
    norm, worst = max(first, key=lambda found: found[0])
    when = "at" if norm == worst.get("grad_norm") else "before"  # between two logged rows
    at = f" at temperature {worst['temperature']:.3g}" if "temperature" in worst else ""
    return (
        f"The gradient norm reached {norm:.4g} {when} step {worst['step']:,}{at}, above {SPIKE:g} in the first epoch: "
        "the temperature falls too early; begin hotter, or let it fall over a larger share of the run."
    )


def _flat(history: list[Mapping[str, Any]]) -> str | None:
    end = _end(history, "temperature")
    if end is None or end < FLAT:
        return None
    return (
        f"The temperature ends at {end:.3g}: from {FLAT:g} on all similarities weigh almost the same, and little is "
        "learned from those that matter."
    )


def _chance(history: list[Mapping[str, Any]], negatives: int | None) -> str | None:
    end = _end(history, "loss")
    if end is None or not negatives or end < CHANCE * math.log(negatives + 1):
        return None
    return (
        f"The loss ends at {end:.4g}, and embeddings that are all equal have log({negatives + 1:,}) = "
        f"{math.log(negatives + 1):.4g}: nothing has been learned, or the embeddings collapse."
    )


def _crowded(history: list[Mapping[str, Any]]) -> str | None:
    end = _end(history, "neg_similarity")
    if end is None or end <= CROWDED:
        return None
    return (
        f"Different samples end at a cosine similarity of {end:.3f}, above {CROWDED:g}: the embeddings have collapsed."
    )


def _narrow(history: list[Mapping[str, Any]], dim: int | None) -> str | None:
    end = _end(history, "spread")
    if end is None or not dim or end * math.sqrt(dim) >= NARROW:
        return None
    return (
        f"The spread of the embeddings ends at {end:.3g}, below {NARROW:g} of the {1 / math.sqrt(dim):.3g} of "
        f"{dim:,} dimensions that are all used: they collapse."
    )


def _few(history: list[Mapping[str, Any]]) -> str | None:
    end = _end(history, "rankme")
    if end is None or end >= FEW:
        return None
    return f"The effective rank of the embeddings ends at {end:.3g}, below {FEW:g}: they collapse to a line or a point."


def _end(history: list[Mapping[str, Any]], name: str) -> float | None:
    """Return the median over the last tenth of the rows in which this value is finite: one batch may be odd."""
    values = [row[name] for row in history if math.isfinite(row.get(name, math.nan))]
    return float(np.median(values[-math.ceil(LAST * len(values)) :])) if values else None
