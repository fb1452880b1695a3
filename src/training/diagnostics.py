"""What is told of every run: what moved and what did not, and the signals of overfitting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..models.base import same_bits
from ..types import Params, Row
from .loop import Fit


class Moved(NamedTuple):
    """Which leaves fine-tuning changed, compared bit by bit with what it started from."""

    frozen: int  # leaves that no phase of the strategy moves, batch statistics included
    frozen_changed: tuple[str, ...]  # those of them that changed: none, unless something is wrong
    still: tuple[str, ...]  # leaves that were to move and did not change at all
    rounded: float | None  # share of the trainable weights whose last logged update rounded to zero


def what_moved(moving: set[str], begin: Params, end: Fit) -> Moved:
    """Compare what fine-tuning started from with what it ended with.

    Args:
        moving: the paths that some phase moves.
        begin: the parameters it started from.
        end: how it ended.
    """
    changed = {path for path, leaf in begin.items() if not same_bits(leaf, end.params[path])}
    frozen = [path for path in begin if path not in moving]
    return Moved(
        len(frozen),
        tuple(path for path in frozen if path in changed),
        tuple(path for path in begin if path in moving and path not in changed),
        end.rounded,
    )


class Curve:
    """Passes rows on, and remembers the validation losses."""

    def __init__(self, watch: Callable[[Row], None]) -> None:
        self._watch = watch
        self.losses: list[tuple[int, float]] = []  # (updates made, validation loss)

    def __call__(self, row: Row) -> None:
        """Take one logged row."""
        if "val_loss" in row and math.isfinite(row["val_loss"]):
            self.losses.append((int(row["step"]), row["val_loss"]))
        self._watch(row)


def overfitting(metrics: Mapping[str, float], curve: Curve, end: Fit) -> dict[str, float]:
    """Return the signals of overfitting that a run shows (none where there is no validation part).

    ``gap``: validation loss minus training loss of what is kept. ``best_step`` and ``best_val_loss``: where the
    validation loss was lowest. ``plateau``: share of the updates since then. ``kept_step``: updates that the kept
    parameters have seen. Confidence and calibration are among the metrics.
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
