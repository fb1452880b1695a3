"""``retention=l2_sp``: parameters are pulled back to where pre-training left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import NON_NEGATIVE, hparam
from ..types import Params
from .base import Kept, Rate, Retention, SourceTask, anchors, distance


@dataclass(frozen=True)
class L2Sp(Retention):
    """L2-SP (Li, Grandvalet and Davoine, arXiv 1802.01483, eq. 3), over all parameters that were pre-trained and move.

    ``strength / 2 * sum (w - w0)**2 + head_decay / 2 * sum w_head**2``. A new head has no ``w0``, nor has what a
    strategy adds; a head that is kept has one, and ``head_decay`` acts on it as well. An optimizer's own weight decay
    pulls the same parameters to 0: leave it at 0.

    In the loss, the penalty makes plain gradient descent diverge at ``lr * strength >= 2``, and Adam rescales it. With
    ``proximal`` it is no part of the loss: after each update its proximal operator is applied (Parikh and Boyd 2014,
    "Proximal algorithms", section 4.2), ``w <- (w + lr * strength * w0) / (1 + lr * strength)``, which never diverges
    and has freezing as its limit.
    """

    strength: float = hparam(0.01, NON_NEGATIVE, traced=True)
    head_decay: float = hparam(0.0, NON_NEGATIVE, traced=True)
    proximal: bool = hparam(False)  # type: ignore[override]  # the knob is what the base asks for

    @property
    def penalises(self) -> bool:
        """Whether the penalty is part of the loss."""
        return not self.proximal

    def init_state(self, task: SourceTask) -> Kept:
        """Return where the parameters are pulled, the head to 0."""
        return {"anchor": anchors(task), "head": {path: jnp.zeros(()) for path in task.head}}

    def penalty(self, params: Params, kept: Kept) -> Float[Array, ""]:
        """Return the two sums; 0 where the proximal step takes their place."""
        if self.proximal:
            return jnp.zeros(())
        pull = self.strength * distance(params, kept["anchor"])
        return pull + self.head_decay * distance(params, kept["head"])

    def after_update(self, params: Params, kept: Kept, lr: Rate) -> Params:
        """Return the point that minimises ``lr * penalty + 1/2 (distance to params)**2``."""
        if not self.proximal:
            return params
        return {path: self._pulled(path, leaf, kept, lr) for path, leaf in params.items()}

    def _pulled(self, path: str, leaf: Array, kept: Kept, lr: Rate) -> Array:
        rate: Any = lr[path] if isinstance(lr, Mapping) else lr
        total, divisor = leaf, jnp.ones((), leaf.dtype)
        if path in kept["anchor"]:
            pull = jnp.asarray(rate * self.strength, leaf.dtype)
            total, divisor = total + pull * kept["anchor"][path], divisor + pull
        if path in kept["head"]:
            divisor += jnp.asarray(rate * self.head_decay, leaf.dtype)
        return total / divisor
