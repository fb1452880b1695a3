"""Diagnostics of every run: which parameters changed, and the signals of overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ..models.base import same_bits
from ..types import LogFn, Params, Row
from .loop import Fit


class Moved(NamedTuple):
    """Which leaves fine-tuning changed, compared bit by bit with its start."""

    frozen: int  # leaves that no phase trains, batch statistics included
    frozen_changed: tuple[str, ...]  # those of them that changed: none, unless there is a bug
    unchanged: tuple[str, ...]  # trainable leaves that did not change
    rounded: float | None  # share of the trainable weights whose last logged update rounded to zero


def what_moved(trainable: set[str], start: Params, end: Fit) -> Moved:
    """Compare the parameters before and after fine-tuning.

    Args:
        trainable: paths that some phase trains.
        start: parameters before fine-tuning.
        end: of fine-tuning.
    """
    changed = {path for path, leaf in start.items() if not same_bits(leaf, end.params[path])}
    frozen = [path for path in start if path not in trainable]
    return Moved(
        len(frozen),
        tuple(path for path in frozen if path in changed),
        tuple(path for path in start if path in trainable and path not in changed),
        end.rounded,
    )


class ValLosses:
    """A ``log_fn`` that passes rows on and keeps the validation losses."""

    def __init__(self, log_fn: LogFn) -> None:
        self._log_fn = log_fn
        self.losses: list[tuple[int, float]] = []  # (updates made, validation loss)

    def __call__(self, row: Row) -> None:
        """Take one logged row."""
        if "val_loss" in row and math.isfinite(row["val_loss"]):
            self.losses.append((int(row["step"]), row["val_loss"]))
        self._log_fn(row)


def overfitting(metrics: Mapping[str, float], curve: ValLosses, end: Fit) -> dict[str, float]:
    """Return the signals of overfitting of a run; none without a validation part.

    ``gap``: validation loss minus training loss of the kept parameters. ``best_step`` and ``best_val_loss``: where the
    validation loss was lowest. ``plateau``: share of the updates since then. ``kept_step``: updates behind the kept
    parameters. Confidence and calibration are among the metrics.
    """
    if not curve.losses or "val_loss" not in metrics:
        return {}
    step, lowest = min(curve.losses, key=lambda point: point[1])
    last = curve.losses[-1][0]
    return {
        "gap": metrics["val_loss"] - metrics["train_loss"],
        "best_step": step,
        "best_val_loss": lowest,
        "plateau": (last - step) / last if last else 0.0,
        "kept_step": end.kept_step,
    }
