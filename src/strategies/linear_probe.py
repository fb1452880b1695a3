"""``strategy=linear_probe``: the linear evaluation protocol of MoCo (He et al., arXiv 1911.05722, section 4.1)."""

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
    """The linear evaluation protocol of MoCo (He et al., arXiv 1911.05722, section 4.1).

    The head is initialised anew, as in the paper's code: kernel ``N(0, std**2)``, bias zero. The rest of the protocol,
    for ImageNet: ``optimizer=momentum`` (0.9) without weight decay, 256 rows an update, 100 epochs at a rate of 30,
    divided by 10 after the 60th and the 80th. Good rates of a probe can be far above those of ``full``.
    """

    std: float = hparam(0.01, NON_NEGATIVE, traced=True)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return rules that train the head only."""
        return ((groups[-1][0], 1.0), (".*", FROZEN))

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return the new head: normal kernels and zero biases. Other parameters of the head (a scale) are kept."""
        fresh: Params = {}
        for number, path in enumerate(sorted(head_paths(model, params))):
            leaf, name = params[path], path.rsplit("/", 1)[-1]
            if name == "kernel":
                draws = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
                fresh[path] = jnp.asarray(self.std, leaf.dtype) * draws
            elif name == "bias":
                fresh[path] = jnp.zeros_like(leaf)
        return fresh
