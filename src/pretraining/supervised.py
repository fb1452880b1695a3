"""``pretrain=supervised``: train on the data's source task: on its labels, or on the tokens of its texts."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Pretraining


@dataclass(frozen=True)
class Supervised(Pretraining):
    """Train on the data's source task: on its labels, or on the tokens of its texts."""
