"""Base of the models that replace the head of another model during pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from ..types import Params
from .base import Model


@dataclass(frozen=True)
class Wrapped(Model):
    """A model with another head; whatever does not depend on the head is the wrapped model's."""

    model: Model = hparam()

    @property
    def stochastic(self) -> bool:
        """As the network."""
        return self.model.stochastic

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """As the network."""
        return self.model.eval_batch_size(features)

    def pretrained(self, outputs: int | None = None) -> Params:
        """Return the network's checkpoint, whose head is for something else."""
        return self.model.pretrained(None)

    @property
    def has_checkpoint(self) -> bool:
        """As the network."""
        return self.model.has_checkpoint

    def checkpoint_fingerprint(self) -> str | None:
        """As the network."""
        return self.model.checkpoint_fingerprint()
