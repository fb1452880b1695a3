"""``data=split_digits``: ten small digits as five tasks of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.hparams import hparam
from .base import TaskSequence
from .sequences import DigitImages, DigitsSequence, Heads


@dataclass(frozen=True)
class SplitDigits(DigitsSequence):
    """The tasks of ``split_mnist`` with digits of 8 x 8 pixels from scikit-learn.

    ``heads``: ``each`` is task-incremental learning, with a head of 2 outputs for each task, which is known when
    testing; ``one`` is class-incremental learning, with one head of 10 outputs.
    """

    heads: Heads = hparam(Heads.each)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the five tasks."""
        return self.paired(pools, rng, self.heads)
