"""``strategy=scratch``: no pre-training, the baseline of every transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .full import Full


@dataclass(frozen=True)
class Scratch(Full):
    """Training from random initial parameters (compare He, Girshick and Dollár, arXiv 1811.08883)."""

    pretrained: ClassVar[bool] = False
