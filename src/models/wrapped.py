"""Base of the models that replace the head of another model during pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
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

    @property
    def has_checkpoint(self) -> bool:
        """As the network."""
        return self.model.has_checkpoint
