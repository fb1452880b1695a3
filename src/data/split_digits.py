"""``data=split_digits``: ten small digits as five tasks of two."""

from __future__ import annotations

from dataclasses import dataclass

from .sequences import DigitsSequence, SplitSequence


@dataclass(frozen=True)
class SplitDigits(SplitSequence, DigitsSequence):
    """The tasks of ``split_mnist`` with digits of 8 x 8 pixels from scikit-learn."""
