"""``strategy=adapter``: bottleneck adapters after the model's blocks are trained instead of the blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..config.hparams import COUNT, hparam
from ..errors import UserError
from ..models.base import Model, ModuleCall
from ..models.mlp import Activation
from ..optim.partition import Rule
from ..types import Params
from .injection import Injection, along_last, leaf_key

AdapterKind = Enum("AdapterKind", ["pfeiffer", "houlsby"])

# Standard deviation of the initial down-projection, a truncated normal (Houlsby et al., section 3.6; their code: 1e-3).
DOWN_STD = 1e-2


@dataclass(frozen=True)
class Adapter(Injection):
    """Bottleneck adapters: ``a(h) = h + W_up f(W_down h + b_down) + b_up``.

    ``kind``: an adapter after every adapter point of a block (``houlsby``, arXiv 1902.00751), or after the last one
    only (``pfeiffer``, arXiv 2005.00052, as in AdapterHub). ``size``: units in the bottleneck. ``activation``: ``f``.
    ``train_norm``: whether scales and biases of normalisation layers (modules with ``norm`` in their name) are trained
    too, as in Houlsby et al.

    The up-projection and its bias start at zero, so that fine-tuning starts from the bits of the pre-trained model; in
    both papers they start at small random values.
    """

    adapter_params: ClassVar[tuple[str, ...]] = ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias")
    kind: AdapterKind = hparam(AdapterKind.pfeiffer)
    size: int = hparam(64, COUNT)
    activation: Activation = hparam(Activation.relu)
    train_norm: bool = hparam(False)

    def lines(self) -> tuple[Rule, ...]:
        """Return the rules of the adapters, and of the normalisation layers with ``train_norm``."""
        norms = ((r"(.*/)?[^/]*[Nn]orm[^/]*/(scale|bias)", 1.0),) if self.train_norm else ()
        return (*super().lines(), *norms)

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return the adapters of the chosen points: ``(width, size)``, ``(size,)``, ``(size, width)``, ``(width,)``."""
        blocks = model.adapter_points()
        points = [point for block in blocks for point in (block if self.kind is AdapterKind.houlsby else block[-1:])]
        added: Params = {}
        for point in points:
            width, dtype = _output(point, params)
            normal = jax.random.truncated_normal(leaf_key(key, point), -2.0, 2.0, (width, self.size), dtype)
            added[f"{point}/adapter_down"] = DOWN_STD * normal
            added[f"{point}/adapter_down_bias"] = jnp.zeros(self.size, dtype)
            added[f"{point}/adapter_up"] = jnp.zeros((self.size, width), dtype)
            added[f"{point}/adapter_up_bias"] = jnp.zeros(width, dtype)
        return added

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return ``a(module(x))``, on the last axis."""
        h = ctx.call(ctx.x)
        down, bias_down, up, bias_up = (ctx.params[name] for name in self.adapter_params)
        if h.shape[-1] != down.shape[0]:
            raise UserError(
                f"strategy=adapter: {'/'.join(ctx.module.path)} returns {h.shape[-1]} values, but its last kernel has "
                f"{down.shape[0]}; name a dense, convolution or normalisation layer in the model's adapter_points"
            )
        inner = h @ down.astype(h.dtype)
        inner = getattr(jax.nn, self.activation.name)(inner + along_last(bias_down, inner))
        return h + (inner @ up.astype(h.dtype) + along_last(bias_up, h))


def _output(point: str, params: Params) -> tuple[int, jnp.dtype]:
    """Return the width and dtype of a module's output, read off its own kernel or scale.

    For a module of submodules, the last kernel's (Flax numbers submodules in the order of their creation).
    """
    below = [path for path in params if path.startswith(f"{point}/")]
    own = [path for path in below if "/" not in path.removeprefix(f"{point}/")]
    kernels = [path for path in below if path.endswith("/kernel")]
    for candidates in ([path for path in own if path.endswith("/kernel")], own, sorted(kernels, key=_naturally)):
        if candidates:
            leaf = params[candidates[-1]]
            return leaf.shape[-1], leaf.dtype
    raise UserError(f"strategy=adapter: the model names {point} in adapter_points, which has no parameters")


def _naturally(path: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``Conv_10`` after ``Conv_9``."""
    return [(int(digits or 0), word) for word, digits in re.findall(r"([^\d]+)(\d*)", path)]
