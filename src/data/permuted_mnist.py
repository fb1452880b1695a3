"""``data=permuted_mnist``: the same digits again and again, their pixels in another order each time."""

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
    """MNIST under another order of the pixels in each task (Goodfellow et al. 2013, arXiv 1312.6211); one head of 10.

    ``tasks``: how many, the first with the pixels as they are. ``permutation_seed`` draws the orders of the others:
    more tasks begin with the fewer.
    """

    tasks: int = hparam(5, SEVERAL)
    permutation_seed: int = hparam(0, NATURAL)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the tasks, all of the same images."""
        orders = permutations(self.tasks - 1, pools.train.x.shape[1], self.permutation_seed)
        return self.changed(pools, rng, [None, *orders])


def permutations(count: int, size: int, seed: int) -> list[np.ndarray]:
    """Return ``count`` random orders of ``range(size)``, all different and none as it was."""
    if count >= math.factorial(min(size, 20)):  # of 20 pixels there are more than could ever be asked for
        raise UserError(
            f"data.tasks is {count + 1}; allowed: at most {math.factorial(size)}, the orders that {size} pixels have"
        )
    rng = np.random.default_rng(seed)
    orders = {tuple(range(size)): np.arange(size)}
    while len(orders) <= count:
        order = rng.permutation(size)
        orders.setdefault(tuple(order.tolist()), order)
    return list(orders.values())[1:]
