"""``retention=none``: plain fine-tuning; nothing protects the source task."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Retention


@dataclass(frozen=True)
class NoRetention(Retention):
    """Plain fine-tuning: forgetting is measured only."""
