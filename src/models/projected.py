"""Models whose head is replaced during pre-training: the base class, and the projection head of contrastive losses."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from ..config.hparams import hparam
from ..types import Params
from .base import PLAIN, ApplyOptions, Model


@dataclass(frozen=True)
class Wrapped(Model):
    """A model with another head; whatever does not depend on the head is the wrapped model's."""

    model: Model = hparam()

    @property
    def stochastic(self) -> bool:
        """As the wrapped model."""
        return self.model.stochastic

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """As the wrapped model."""
        return self.model.eval_batch_size(features)

    @property
    def has_checkpoint(self) -> bool:
        """As the wrapped model."""
        return self.model.has_checkpoint


@dataclass(frozen=True)
class Projected(Wrapped):
    """A model with the projection head ``g(h) = W2 relu(W1 h + b1)`` (Chen et al., arXiv 2002.05709, section 2.1).

    The model's own head is the first of the two layers. Contrastive losses compare ``g(h)``; ``h`` is transferred.
    """

    hidden: int | None = 128  # units of the first layer; None: the head alone is the projection

    def module(self, outputs: int) -> nn.Module:
        """Return the model up to the first layer of the head."""
        return self.model.module(self.hidden or outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the model's groups; both layers belong to the head."""
        *below, (name, head) = self.model.groups()
        return (*below, (name, f"{head}|projection/.*"))

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters of the model and of the second layer."""
        own, last = jax.random.split(key)
        params = self.model.init(own, features, self.hidden or outputs)
        if self.hidden is None:
            return params
        return params | {"projection/kernel": nn.initializers.lecun_normal()(last, (self.hidden, outputs), jnp.float32)}

    def forward(self, params: Params, x: Array, outputs: int, options: ApplyOptions = PLAIN) -> tuple[Array, Params]:
        """Return the embeddings of a batch, not normalised."""
        own = {path: leaf for path, leaf in params.items() if path != "projection/kernel"}
        h, seen = self.model.forward(own, x, self.hidden or outputs, options)
        if self.hidden is None or (options.stop is not None and options.stop < len(self.groups())):
            return h, seen
        return nn.relu(h) @ params["projection/kernel"], seen
