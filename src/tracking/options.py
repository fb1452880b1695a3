"""``tracker=wandb`` and ``tracker=disk``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from src.config import POSITIVE, knob

Mode = Enum("Mode", ["auto", "online", "offline", "disabled"])


@dataclass(frozen=True)
class Disk:
    """The record on disk only."""


@dataclass(frozen=True)
class Wandb:
    """One W&B run a job. ``mode=auto`` is online where an API key is found and offline where not; it never asks."""

    mode: Mode = knob(Mode.auto)
    project: str = knob("thaw")
    entity: str | None = knob(None)
    group: str | None = knob(None)
    tags: tuple[str, ...] = knob(())
    timeout: float = knob(10.0, POSITIVE)
