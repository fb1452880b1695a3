"""A multi-layer perceptron, named as the reference recipe names it: ``Dense_0`` ... then the head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import COUNT, UNIT, hparam
from .base import Model
from .layers import Dropout

Activation = Enum("Activation", ["relu", "gelu", "tanh", "silu"])


class Perceptron(nn.Module):
    """``Dense -> activation -> dropout`` for each width, then ``Dense(outputs)``.

    One layer a line: in ``nn.Dense(1)(nn.relu(nn.Dense(8)(x)))`` the outer constructor runs first, so the head would be
    called ``Dense_0`` and every initial value would change. The names are spelled out because a pass need not begin at
    the bottom.
    """

    widths: tuple[int, ...]
    activation: str
    dropout: Any
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], start: int = 0, stop: int | None = None) -> Float[Array, "N outputs"]:
        """Return the outputs of a batch of feature vectors; of part of the groups, what the last of them returns."""
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

    def module(self, outputs: int) -> Perceptron:
        """Return the perceptron with ``outputs`` output units."""
        return Perceptron(self.widths, self.activation.name, self.dropout, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return one group a hidden layer (``block_0`` at the bottom), then the head."""
        blocks = tuple((f"block_{i}", f"Dense_{i}/.*") for i in range(len(self.widths)))
        return (*blocks, ("head", f"Dense_{len(self.widths)}/.*"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return each block's one dense layer: the adapter stands before the activation."""
        return tuple((f"Dense_{i}",) for i in range(len(self.widths)))
