"""A network with a projection head in the place of its own, as contrastive pre-training needs it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from ..types import Params
from .base import PLAIN, ApplyOptions
from .wrapped import Wrapped


@dataclass(frozen=True)
class Projected(Wrapped):
    """A network whose head has become a projection head: two dense layers, the first of which is the head itself.

    ``g(h) = W2 relu(W1 h + b1)`` (Chen et al., arXiv 2002.05709, section 2.1): what contrastive losses compare lies
    behind it, what is transferred before it.
    """

    hidden: int | None = 128  # units between the two layers; None: the head alone is the projection

    def module(self, outputs: int) -> nn.Module:
        """Return the network up to the units between."""
        return self.model.module(self.hidden or outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the network's groups, the second layer in the head."""
        *below, (name, head) = self.model.groups()
        return (*below, (name, f"{head}|projection/.*"))

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters: the network's, and the second layer's."""
        own, last = jax.random.split(key)
        params = self.model.init(own, features, self.hidden or outputs)
        if self.hidden is None:
            return params
        return params | {"projection/kernel": nn.initializers.lecun_normal()(last, (self.hidden, outputs), jnp.float32)}

    def forward(self, params: Params, x: Array, outputs: int, how: ApplyOptions = PLAIN) -> tuple[Array, Params]:
        """Return the embeddings of a batch, not normalised."""
        own = {path: leaf for path, leaf in params.items() if path != "projection/kernel"}
        h, seen = self.model.forward(own, x, self.hidden or outputs, how)
        if self.hidden is None or (how.stop is not None and how.stop < len(self.groups())):
            return h, seen
        return nn.relu(h) @ params["projection/kernel"], seen
