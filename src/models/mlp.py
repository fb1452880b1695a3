"""A multi-layer perceptron, named as the reference recipe names it: ``Dense_0`` ... then the head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from src.config import COUNT, knob
from src.models.base import Model

Activation = Enum("Activation", ["relu", "gelu", "tanh", "silu"])


class Perceptron(nn.Module):
    """``Dense -> activation`` for each width, then ``Dense(outputs)``.

    One layer a line: in ``nn.Dense(1)(nn.relu(nn.Dense(8)(x)))`` the outer constructor runs first, so the head would be
    called ``Dense_0`` and every initial value would change.
    """

    widths: tuple[int, ...]
    activation: str
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N outputs"]:
        """Return the outputs of a batch of feature vectors."""
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = getattr(jax.nn, self.activation)(x)
        return nn.Dense(self.outputs)(x)


@dataclass(frozen=True)
class Mlp(Model):
    """``model=mlp``. ``widths``: units of each hidden layer; ``activation``: between them."""

    widths: tuple[int, ...] = knob((8,), COUNT)
    activation: Activation = knob(Activation.relu)

    def module(self, outputs: int) -> Perceptron:
        """Return the perceptron with ``outputs`` output units."""
        return Perceptron(self.widths, self.activation.name, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return one group a hidden layer (``block_0`` at the bottom), then the head."""
        blocks = tuple((f"block_{i}", f"Dense_{i}/.*") for i in range(len(self.widths)))
        return (*blocks, ("head", f"Dense_{len(self.widths)}/.*"))
