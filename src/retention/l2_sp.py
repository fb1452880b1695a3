"""``retention=l2_sp``: parameters are pulled towards their pre-trained values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import NON_NEGATIVE, hparam
from ..types import Params
from .base import Rate, Retention, RetentionState, SourceTask, anchors, distance


@dataclass(frozen=True)
class L2Sp(Retention):
    """L2-SP (Li, Grandvalet and Davoine, arXiv 1802.01483, eq. 3), over all trainable parameters that were pre-trained.

    ``strength / 2 * sum (w - w0)**2 + head_decay / 2 * sum w_head**2``. A new head and the strategy's added parameters
    have no ``w0``; a head that is kept has one, and ``head_decay`` acts on it as well. Weight decay should be 0.

    The penalty makes plain gradient descent diverge at ``lr * strength >= 2``, and Adam rescales it. With ``proximal``
    its proximal operator is applied after each update instead (Parikh and Boyd 2014, "Proximal algorithms", section
    4.2), ``w <- (w + lr * strength * w0) / (1 + lr * strength)``, which never diverges and tends to freezing.
    """

    strength: float = hparam(0.01, NON_NEGATIVE, traced=True)
    head_decay: float = hparam(0.0, NON_NEGATIVE, traced=True)
    proximal: bool = hparam(False)  # type: ignore[override]  # the setting implements the base's property

    @property
    def penalises(self) -> bool:
        """Whether the penalty is part of the loss."""
        return not self.proximal

    def init_state(self, task: SourceTask) -> RetentionState:
        """Return the values that parameters are pulled to; 0 for the head."""
        return {"anchor": anchors(task), "head": {path: jnp.zeros(()) for path in task.head}}

    def penalty(self, params: Params, state: RetentionState) -> Float[Array, ""]:
        """Return the two sums; 0 with ``proximal``."""
        if self.proximal:
            return jnp.zeros(())
        pull = self.strength * distance(params, state["anchor"])
        return pull + self.head_decay * distance(params, state["head"])

    def after_update(self, params: Params, state: RetentionState, lr: Rate) -> Params:
        """Return the point that minimises ``lr * penalty + 1/2 (distance to params)**2``."""
        if not self.proximal:
            return params
        return {path: self._proximal_step(path, leaf, state, lr) for path, leaf in params.items()}

    def _proximal_step(self, path: str, leaf: Array, state: RetentionState, lr: Rate) -> Array:
        rate: Any = lr[path] if isinstance(lr, Mapping) else lr
        total, divisor = leaf, jnp.ones((), leaf.dtype)
        if path in state["anchor"]:
            pull = jnp.asarray(rate * self.strength, leaf.dtype)
            total, divisor = total + pull * state["anchor"][path], divisor + pull
        if path in state["head"]:
            divisor += jnp.asarray(rate * self.head_decay, leaf.dtype)
        return total / divisor
