"""``data=split_digits``: ten small digits, two at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.hparams import hparam
from .base import TaskSequence
from .sequences import DigitImages, DigitsSequence, Heads


@dataclass(frozen=True)
class SplitDigits(DigitsSequence):
    """The tasks of ``split_mnist``, of 8 x 8 pixels and without a file to fetch.

    ``heads``: ``each`` is task-incremental learning, a head a task with 2 outputs, and the task is known when it is
    tested; ``one`` is class-incremental learning, one head with 10 outputs for all.
    """

    heads: Heads = hparam(Heads.each)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the five tasks."""
        return self.paired(pools, rng, self.heads)
