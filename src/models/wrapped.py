"""A network with something else in the place of its head, for pre-training only."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .base import Model


@dataclass(frozen=True)
class Wrapped(Model):
    """Base of these: what does not depend on the head is the network's."""

    model: Model = hparam()

    @property
    def stochastic(self) -> bool:
        """As the network."""
        return self.model.stochastic

    def rows_at_once(self, features: tuple[int, ...]) -> int | None:
        """As the network."""
        return self.model.rows_at_once(features)

    @property
    def has_checkpoint(self) -> bool:
        """As the network."""
        return self.model.has_checkpoint
