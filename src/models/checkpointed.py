"""The base of models that can start from a checkpoint of Hugging Face.

Models never read files. ``src/checkpoints/huggingface.py`` reads ``config.json`` once, while a run is resolved
(``load_config``), and hands the model what it found; later it reads the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.hparams import hparam
from ..errors import UserError
from .base import Model


@dataclass(frozen=True)
class CheckpointConfig:
    """What the JSON files of a checkpoint say about the network.

    Attributes:
        network: the sizes in ``config.json``, a ``TransformerConfig``, ``ResNetConfig`` or ``ViTConfig``.
        scaling: the mean and standard deviation of pixels in ``preprocessor_config.json``; ``None``: not needed.
    """

    network: Any
    scaling: Any = None


@dataclass(frozen=True)
class Checkpointed(Model):
    """``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: there is none."""

    architecture: ClassVar[str]  # `model_type` in config.json

    checkpoint: str | None = hparam(None)
    checkpoint_config: Any = field(default=None, repr=False, metadata={"setting": False})

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint."""
        return self.checkpoint is not None

    def loaded_config(self) -> CheckpointConfig | None:
        """Return what the checkpoint's files say; ``None`` without a checkpoint."""
        if self.checkpoint is not None and self.checkpoint_config is None:
            raise TypeError(f"{type(self).__name__} has a checkpoint whose config.json is not read: call load_config")
        return self.checkpoint_config

    def check_matches(self, known: Mapping[str, Any]) -> None:
        """Refuse settings that are neither null nor the checkpoint's values, ``known`` by the names of the settings."""
        for name, expected in known.items():
            value = getattr(self, name)
            value = getattr(value, "name", value)
            if value not in (None, expected):
                raise UserError(
                    f"model.{name} is {value}, and the checkpoint '{self.checkpoint}' has {expected}; "
                    "allowed: null, which takes the checkpoint's"
                )
