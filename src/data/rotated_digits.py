"""``data=rotated_digits``: the same small digits in every task, rotated further each time."""

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
    """Handwritten digits of 8 x 8 pixels, rotated counter-clockwise by ``angle_step`` more degrees in each task.

    There is one head of 10. ``tasks``: their number; the first is not rotated, and all rotations are below 360 degrees,
    so that no task repeats. Multiples of 90 degrees permute pixels exactly; other angles interpolate linearly, and lose
    the corners that leave the image.
    """

    tasks: int = hparam(4, SEVERAL)
    angle_step: float = hparam(90.0, POSITIVE)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the tasks."""
        if (self.tasks - 1) * self.angle_step >= 360:
            raise UserError(
                f"data.angle_step is {self.angle_step:g} and data.tasks {self.tasks}; allowed: a step below "
                f"{360 / (self.tasks - 1):g} for so many tasks, so that no task repeats"
            )
        side = math.isqrt(pools.train.x.shape[1])
        angles = [task * self.angle_step for task in range(1, self.tasks)]
        return self.transformed(pools, rng, [None, *(rotation(angle, side) for angle in angles)])


def rotation(angle: float, side: int) -> np.ndarray:
    """Return a counter-clockwise rotation of square images by ``angle`` degrees, for :class:`ImageTask`.

    It is a permutation of the pixels for multiples of 90, else a matrix whose row i is the rotated image of pixel i.
    """
    if angle % 90 == 0:
        return np.rot90(np.arange(side * side).reshape(side, side), round(angle / 90)).ravel()
    from scipy import ndimage  # slow to import, and only these angles need it

    each_pixel = np.eye(side * side).reshape(-1, side, side)
    return ndimage.rotate(each_pixel, angle, axes=(1, 2), reshape=False, order=1).reshape(-1, side * side)
