"""``tracker=wandb`` and ``tracker=disk``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..config.hparams import POSITIVE, hparam

WandbMode = Enum("WandbMode", ["auto", "online", "offline", "disabled"])


@dataclass(frozen=True)
class Disk:
    """Only the record on disk."""


@dataclass(frozen=True)
class Wandb:
    """One W&B run per job. ``mode=auto`` is online if an API key is found, else offline; it never prompts."""

    mode: WandbMode = hparam(WandbMode.auto)
    project: str = hparam("thaw")
    entity: str | None = hparam(None)
    group: str | None = hparam(None)
    tags: tuple[str, ...] = hparam(())
    timeout: float = hparam(10.0, POSITIVE)
