"""``model=cnn``: a small convolutional network with batch normalisation, for square images given as rows of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import COUNT, UNIT, hparam
from ..errors import UserError
from .base import Model, block_groups
from .cpu_kernels import BatchNorm, convolve
from .layers import Dropout

SUBLAYERS = 2  # convolutions a block


class ConvNorm(nn.Module):
    """A 3 x 3 convolution without bias, and batch normalisation (Ioffe and Szegedy 2015)."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W width"]:
        """Return normalised feature maps of the same height and width."""
        x = nn.Conv(self.width, (3, 3), use_bias=False, conv_general_dilated=convolve)(x)
        return BatchNorm()(x)


class ConvBlock(nn.Module):
    """``ConvNorm -> relu`` twice, then 2 x 2 max pooling while the image is larger than one pixel."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w width"]:
        """Return feature maps of half the height and width, rounded down but at least 1."""
        for i in range(SUBLAYERS):
            x = nn.relu(ConvNorm(self.width, name=f"ConvNorm_{i}")(x))
        return nn.max_pool(x, (2, 2), (2, 2)) if min(x.shape[1:3]) > 1 else x


class CnnModule(nn.Module):
    """A block for each width, global average pooling, dropout, and ``Dense(outputs)``."""

    widths: tuple[int, ...]
    channels: int
    dropout: Any
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N ..."], start: int = 0, stop: int | None = None) -> Float[Array, "N ..."]:
        """Return the outputs of a batch of rows, or the outputs of group ``stop - 1``."""
        depth = len(self.widths)
        if start == 0 and stop != 0:
            x = images(x, self.channels)
        for i in range(start, depth if stop is None else min(stop, depth)):
            x = ConvBlock(self.widths[i], name=f"block_{i}")(x)
        if stop is not None and stop <= depth:
            return x
        x = Dropout(self.dropout, name="dropout")(x.mean(axis=(1, 2)))
        return nn.Dense(self.outputs, name="head")(x)


def images(rows: Float[Array, "N D"], channels: int) -> Float[Array, "N side side channels"]:
    """Return rows as square images; a row holds the pixels line by line, with the channels of a pixel together."""
    length = rows.shape[-1]
    side = math.isqrt(length // channels)
    if side * side * channels != length:
        raise UserError(
            f"model=cnn with model.channels={channels} is given rows of {length} values; "
            "allowed: side * side * channels, a square image a row"
        )
    return rows.reshape(-1, side, side, channels)


@dataclass(frozen=True)
class Cnn(Model):
    """``model=cnn``. ``widths``: feature maps of each block; ``channels``: values a pixel; ``dropout``: of the head."""

    widths: tuple[int, ...] = hparam((16, 32), COUNT)
    channels: int = hparam(1, COUNT)
    dropout: float | None = hparam(None, UNIT, traced=True)

    def module(self, outputs: int) -> CnnModule:
        """Return the network with ``outputs`` output units."""
        return CnnModule(self.widths, self.channels, self.dropout, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the blocks (``block_0`` at the bottom) with their batch statistics, then the head."""
        return (*block_groups(len(self.widths)), ("head", "head/.*"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return each block's two normalised convolutions: an adapter follows each, before the activation."""
        return tuple(tuple(f"block_{i}/ConvNorm_{j}" for j in range(SUBLAYERS)) for i in range(len(self.widths)))
