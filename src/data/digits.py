"""``data=digits``: small handwritten digits; the target task has other digits, or changed images of the same digits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float, Int

from ..config.hparams import hparam
from .base import DataSource, Table, rank_in_class, read_embedded

DigitsTask = Enum("DigitsTask", ["new_digits", "rotated", "inverted", "both", "union"])
SIDE = 8  # pixels


@dataclass(frozen=True)
class Digits(DataSource):
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), a classification.

    ``task``: ``new_digits`` has the source digits 0 to 4 and the target digits 5 to 9, with a new head. The others have
    one half of all ten digits as the source, and the other half, changed, as the target, with the same labels:
    ``rotated`` by 90 degrees, ``inverted`` in brightness, ``both`` at once, or ``union``: one half of the rows rotated,
    the other inverted.

    The changes test the composition of adapters. A row is the same digit in all four tasks, and for the same
    ``split_seed`` in the same part, so adapters of ``rotated`` and ``inverted`` have not seen the test digits of
    ``both`` or ``union``.

    ``images``: uint8 of shape ``(N, 8, 8, 1)`` for models of images, 255 for full ink, instead of rows of standardised
    numbers.
    """

    task: DigitsTask = hparam(DigitsTask.new_digits)
    images: bool = hparam(False)

    def tables(self) -> tuple[Table, Table, str]:
        """Return the digits of the two tasks."""
        rows = read_embedded("digits.csv.gz")
        x, y = rows[:, :-1] / 16.0, rows[:, -1].astype(int)
        rank = rank_in_class(y)
        if self.task is DigitsTask.new_digits:
            first, names = y < 5, ("the digits 0 to 4", "the digits 5 to 9")
        else:  # alternating within each digit: both halves have the same classes and writers, for any seed
            first, names = rank % 2 == 0, ("the digits as they are", "the changed digits")
            x = np.where(first[:, None], x, transform(x, rank // 2, self.task))
        if self.images:
            x = np.rint(255 * x).astype(np.uint8).reshape(-1, SIDE, SIDE, 1)
        source, target = (
            Table(x[own], y[own], name, image=True) for own, name in zip((first, ~first), names, strict=True)
        )
        return source, target, "classification"


def transform(x: Float[np.ndarray, "N 64"], rank: Int[np.ndarray, " N"], task: DigitsTask) -> Float[np.ndarray, "N 64"]:
    """Return changed images, from 0 (paper) to 1 (ink); ``rank`` numbers the rows of each digit."""
    turned = np.rot90(x.reshape(-1, SIDE, SIDE), axes=(1, 2)).reshape(x.shape)  # counter-clockwise
    if task is DigitsTask.union:
        return np.where(rank[:, None] % 2 == 0, turned, 1.0 - x)
    return {DigitsTask.rotated: turned, DigitsTask.inverted: 1.0 - x, DigitsTask.both: 1.0 - turned}[task]
