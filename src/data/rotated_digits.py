"""``data=rotated_digits``: the same small digits again and again, turned a little further each time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config.hparams import POSITIVE, SEVERAL, hparam
from ..errors import UserError
from .base import TaskSequence
from .sequences import DigitImages, DigitsSequence


@dataclass(frozen=True)
class RotatedDigits(DigitsSequence):
    """Handwritten digits of 8 x 8 pixels, turned counter-clockwise by ``angle_step`` degrees more in each task.

    There is one head of 10. ``tasks``: how many, the first with the digits as they are; together they turn by less than
    360 degrees, so that none comes twice. Multiples of 90 degrees move pixels and are exact. Others interpolate
    linearly between pixels, and lose what turns over the edge.
    """

    tasks: int = hparam(4, SEVERAL)
    angle_step: float = hparam(90.0, POSITIVE)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the tasks, all of the same images."""
        if (self.tasks - 1) * self.angle_step >= 360:
            raise UserError(
                f"data.angle_step is {self.angle_step:g} and data.tasks {self.tasks}; allowed: a step below "
                f"{360 / (self.tasks - 1):g} for so many tasks, so that the first does not come again"
            )
        side = math.isqrt(pools.train.x.shape[1])
        angles = [task * self.angle_step for task in range(1, self.tasks)]
        return self.changed(pools, rng, [None, *(rotation(angle, side) for angle in angles)])


def rotation(angle: float, side: int) -> np.ndarray:
    """Return what turns square images counter-clockwise by ``angle`` degrees, as :class:`ImageTask` takes it.

    It is the order of the pixels for a multiple of 90, and else the matrix whose row i is what pixel i becomes.
    """
    if angle % 90 == 0:
        return np.rot90(np.arange(side * side).reshape(side, side), round(angle / 90)).ravel()
    from scipy import ndimage  # slow to import, and only these angles need it

    each_pixel = np.eye(side * side).reshape(-1, side, side)
    return ndimage.rotate(each_pixel, angle, axes=(1, 2), reshape=False, order=1).reshape(-1, side * side)
