"""A network with a projection head in the place of its own, as contrastive pre-training needs it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from src.config import knob
from src.models.base import PLAIN, Forward, Model, Params


@dataclass(frozen=True)
class Projected(Model):
    """A network whose head has become a projection head: two dense layers, the first of which is the head itself.

    ``g(h) = W2 relu(W1 h + b1)`` (Chen et al., arXiv 2002.05709, section 2.1): what contrastive losses compare lies
    behind it, what is transferred before it.
    """

    model: Model = knob()
    hidden: int = 128  # units between the two layers

    def module(self, outputs: int) -> nn.Module:
        """Return the network up to the units between."""
        return self.model.module(self.hidden)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the network's groups, the second layer in the head."""
        *below, (name, head) = self.model.groups()
        return (*below, (name, f"{head}|projection/.*"))

    @property
    def stochastic(self) -> bool:
        """As the network."""
        return self.model.stochastic

    def rows_at_once(self, features: tuple[int, ...]) -> int | None:
        """As the network."""
        return self.model.rows_at_once(features)

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters: the network's, and the second layer's."""
        own, last = jax.random.split(key)
        kernel = nn.initializers.lecun_normal()(last, (self.hidden, outputs), jnp.float32)
        return self.model.init(own, features, self.hidden) | {"projection/kernel": kernel}

    def forward(self, params: Params, x: Array, outputs: int, how: Forward = PLAIN) -> tuple[Array, Params]:
        """Return the embeddings of a batch, not normalised."""
        own = {path: leaf for path, leaf in params.items() if path != "projection/kernel"}
        h, seen = self.model.forward(own, x, self.hidden, how)
        if how.stop is not None and how.stop < len(self.groups()):
            return h, seen
        return nn.relu(h) @ params["projection/kernel"], seen

    def pretrained(self, outputs: int | None = None) -> Params:
        """Return the network's checkpoint."""
        return self.model.pretrained(None)

    @property
    def has_checkpoint(self) -> bool:
        """As the network."""
        return self.model.has_checkpoint

    def checkpoint_fingerprint(self) -> str | None:
        """As the network."""
        return self.model.checkpoint_fingerprint()
