"""What models with a checkpoint in Hugging Face's files share: its parameters, and that settings agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.hparams import hparam
from ..errors import UserError
from ..types import Params
from .base import Model


@dataclass(frozen=True)
class Checkpointed(Model):
    """``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: there is none."""

    checkpoint: str | None = hparam(None)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint; nothing is read for the answer."""
        return self.checkpoint is not None

    def checkpoint_fingerprint(self) -> str | None:
        """Return a digest of the checkpoint's files."""
        if self.checkpoint is None:
            return None
        from ..checkpoints.huggingface import fingerprint

        return fingerprint(self.checkpoint)

    def pretrained(self, outputs: int | None = None) -> Params:
        """Return the checkpoint's parameters, with its head where that is of the same kind and size."""
        if self.checkpoint is None:
            return {}
        from ..checkpoints.huggingface import read_checkpoint

        return dict(read_checkpoint(self, outputs))  # type: ignore[arg-type]

    def agreed(self, known: Mapping[str, Any]) -> None:
        """Refuse a setting that contradicts the checkpoint.

        Args:
            known: what the checkpoint has, by the names of the settings.
        """
        for name, own in known.items():
            value = getattr(self, name)
            value = getattr(value, "name", value)
            if value not in (None, own):
                raise UserError(
                    f"model.{name} is {value}, and the checkpoint '{self.checkpoint}' has {own}; "
                    "allowed: null, which takes the checkpoint's"
                )
