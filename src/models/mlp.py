"""``model=mlp``: a multi-layer perceptron with layers ``Dense_0``, ``Dense_1`` ..., of which the last is the head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import COUNT, UNIT, hparam
from .base import Model, block_groups
from .layers import Dropout

Activation = Enum("Activation", ["relu", "gelu", "tanh", "silu"])


class MlpModule(nn.Module):
    """``Dense -> activation -> dropout`` for each width, then ``Dense(outputs)``."""

    widths: tuple[int, ...]
    activation: str
    dropout: Any
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], start: int = 0, stop: int | None = None) -> Float[Array, "N outputs"]:
        """Return the outputs of a batch of feature vectors, or the outputs of group ``stop - 1``."""
        depth = len(self.widths)
        for i in range(start, depth if stop is None else min(stop, depth)):
            x = nn.Dense(self.widths[i], name=f"Dense_{i}")(x)
            x = getattr(jax.nn, self.activation)(x)
            x = Dropout(self.dropout, name=f"Dropout_{i}")(x)
        return nn.Dense(self.outputs, name=f"Dense_{depth}")(x) if stop is None or stop > depth else x


@dataclass(frozen=True)
class Mlp(Model):
    """``model=mlp``. ``widths``: units of each hidden layer; ``activation`` and ``dropout``: after each of them."""

    widths: tuple[int, ...] = hparam((8,), COUNT)
    activation: Activation = hparam(Activation.relu)
    dropout: float | None = hparam(None, UNIT, traced=True)

    def module(self, outputs: int) -> MlpModule:
        """Return the perceptron with ``outputs`` output units."""
        return MlpModule(self.widths, self.activation.name, self.dropout, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return one group a hidden layer (``block_0`` at the bottom), then the head."""
        return (*block_groups(len(self.widths), "Dense"), ("head", f"Dense_{len(self.widths)}/.*"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return each block's dense layer: an adapter follows it, before the activation."""
        return tuple((f"Dense_{i}",) for i in range(len(self.widths)))
