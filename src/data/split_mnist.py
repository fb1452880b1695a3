"""``data=split_mnist``: ten digits, two at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.hparams import hparam
from .base import TaskSequence
from .sequences import DigitImages, Heads, MnistSequence


@dataclass(frozen=True, kw_only=True)
class SplitMnist(MnistSequence):
    """MNIST as five tasks, 0 and 1 to 8 and 9 (Zenke et al. 2017, arXiv 1703.04200).

    ``heads``: ``each`` is task-incremental learning, a head a task with 2 outputs, and the task is known when it is
    tested; ``one`` is class-incremental learning, one head with 10 outputs for all (van de Ven and Tolias 2019, arXiv
    1904.07734).
    """

    heads: Heads = hparam(Heads.each)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the five tasks."""
        return self.paired(pools, rng, self.heads)
