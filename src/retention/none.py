"""``retention=none``: nothing protects the source task."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Retention


@dataclass(frozen=True)
class NoRetention(Retention):
    """Fine-tuning as it is: what is forgotten is measured, not held back."""
