"""``data=split_mnist``: ten digits as five tasks of two."""

from __future__ import annotations

from dataclasses import dataclass

from .sequences import MnistSequence, SplitSequence


@dataclass(frozen=True, kw_only=True)
class SplitMnist(SplitSequence, MnistSequence):
    """MNIST as five tasks, 0 or 1 to 8 or 9."""
