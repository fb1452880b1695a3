"""``retention=none``: plain fine-tuning; forgetting is measured only."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Retention


@dataclass(frozen=True)
class NoRetention(Retention):
    """``retention=none``: plain fine-tuning; forgetting is measured only."""
