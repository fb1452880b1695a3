"""``data=permuted_mnist``: the same digits in every task, with permuted pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config.hparams import NATURAL, SEVERAL, hparam
from ..errors import UserError
from .base import TaskSequence
from .sequences import DigitImages, MnistSequence


@dataclass(frozen=True, kw_only=True)
class PermutedMnist(MnistSequence):
    """MNIST with another permutation of the pixels in each task, and one head of 10.

    The task is that of Goodfellow et al. 2013 (arXiv 1312.6211). ``tasks``: their number; the first has the original
    pixels. ``permutation_seed`` draws the other permutations; a longer sequence begins with a shorter one.
    """

    tasks: int = hparam(5, SEVERAL)
    permutation_seed: int = hparam(0, NATURAL)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the tasks."""
        orders = permutations(self.tasks - 1, pools.train.x.shape[1], self.permutation_seed)
        return self.transformed(pools, rng, [None, *orders])


def permutations(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Return ``count`` distinct random permutations of ``range(size)``, without the identity."""
    if count >= math.factorial(min(size, 20)):  # 20! exceeds any number of tasks
        raise UserError(
            f"data.tasks is {count + 1}; allowed: at most {math.factorial(size)}, the permutations of {size} pixels"
        )
    rng = np.random.default_rng(seed)
    orders = {tuple(range(size)): np.arange(size)}
    while len(orders) <= count:
        order = rng.permutation(size)
        orders.setdefault(tuple(order.tolist()), order)
    return list(orders.values())[1:]
