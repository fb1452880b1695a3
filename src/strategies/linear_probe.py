"""``strategy=linear_probe``: a new head learns on what the pre-trained trunk gives, and nothing else moves."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..config.hparams import NON_NEGATIVE, hparam
from ..models.base import Model, head_paths
from ..optim.partition import FROZEN, Groups, Rule
from ..types import Params
from .base import Strategy


@dataclass(frozen=True)
class LinearProbe(Strategy):
    """The linear protocol of MoCo (He et al., arXiv 1911.05722, section 4.1): how good are the frozen features?

    The head starts anew, as in the paper's code: kernel ``N(0, std**2)`` with ``std = 0.01``, bias zero, whatever the
    pre-trained one was. Batch statistics are frozen with the trunk. The rest of that protocol, for ImageNet:
    ``optimizer=momentum`` (0.9) without weight decay, 256 rows an update, 100 epochs at a rate of 30 that is divided
    by 10 after the 60th and the 80th. Such a rate is no slip: good rates of a probe can lie far above those of
    ``full``, so sweep further up.
    """

    std: float = hparam(0.01, NON_NEGATIVE, traced=True)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return: the head moves, the rest does not."""
        return ((groups[-1][0], 1.0), (".*", FROZEN))

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return the new head: normal kernels, zero biases; other leaves of it (a scale) stay what they are."""
        fresh: Params = {}
        for number, path in enumerate(sorted(head_paths(model, params))):
            leaf, name = params[path], path.rsplit("/", 1)[-1]
            if name == "kernel":
                draws = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
                fresh[path] = jnp.asarray(self.std, leaf.dtype) * draws
            elif name == "bias":
                fresh[path] = jnp.zeros_like(leaf)
        return fresh
