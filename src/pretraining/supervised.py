"""``pretrain=supervised``: the source task as the data has it."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Pretraining


@dataclass(frozen=True)
class Supervised(Pretraining):
    """``pretrain=supervised``: learn the source task as the data has it: from its labels, or its texts' own words."""
