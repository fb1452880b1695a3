"""``data=split_mnist``: ten digits as five tasks of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.hparams import hparam
from .base import TaskSequence
from .sequences import DigitImages, Heads, MnistSequence


@dataclass(frozen=True, kw_only=True)
class SplitMnist(MnistSequence):
    """MNIST as five tasks, 0 or 1 to 8 or 9 (Zenke et al. 2017, arXiv 1703.04200).

    ``heads``: ``each`` is task-incremental learning, with a head of 2 outputs for each task, which is known when
    testing; ``one`` is class-incremental learning, with one head of 10 outputs (van de Ven and Tolias 2019, arXiv
    1904.07734).
    """

    heads: Heads = hparam(Heads.each)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the five tasks."""
        return self.paired(pools, rng, self.heads)
