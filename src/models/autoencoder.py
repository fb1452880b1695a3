"""A vision transformer that says what hidden patches are: an encoder of those it sees, and a decoder for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..config.hparams import hparam
from ..types import Params
from .base import PLAIN, ApplyOptions
from .layers import take_rows
from .transformer import dense, initial_kernel
from .vit import Vit, ViTConfig, through_blocks
from .wrapped import Wrapped

HIDDEN = -1.0  # every pixel of a hidden patch: they are from 0 to 1


def in_patches(images: Float[Array, "N H W C"], patch: int) -> Float[Array, "N L P"]:
    """Return images as patches, line by line, each with its pixels line by line and their channels together."""
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(count, -1, patch * patch * channels)


def from_patches(patches: Float[Array, "N L P"], shape: tuple[int, ...], patch: int) -> Float[Array, "N H W C"]:
    """Return the images of a shape whose patches these are."""
    count, height, width, channels = shape
    cut = patches.reshape(count, height // patch, width // patch, patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(shape)


def is_hidden(images: Float[Array, "N H W C"], patch: int) -> Bool[Array, "N L"]:
    """Tell which patches are hidden."""
    return jnp.all(in_patches(images, patch) == HIDDEN, axis=-1)


def wave_positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "L E"]:
    """Return what is added to the patches of a grid so that they know where they are, line by line.

    One half of the numbers says the row ``p``, the other the column: ``sin(p w)`` and then ``cos(p w)`` at frequencies
    ``w = 10000**(-i / (E / 4))`` (Vaswani et al., arXiv 1706.03762, section 3.5; in two dimensions as He et al.).

    Args:
        rows: of patches.
        columns: of patches.
        width: E, a multiple of 4.
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))

    def waves(count: int) -> Float[np.ndarray, "count half"]:
        angles = np.arange(count)[:, None] * frequencies[None, :]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    down, across = np.repeat(waves(rows), columns, axis=0), np.tile(waves(columns), (rows, 1))
    return np.concatenate([down, across], axis=1).astype(np.float32)


class Decoder(nn.Module):
    """Blocks over all patches of an image, those that were hidden as one learned token, and a dense layer to pixels."""

    sizes: ViTConfig
    grid: tuple[int, int]  # patches down and across
    outputs: int

    @nn.compact
    def __call__(self, h: Float[Array, "N 1+V E"], order: Int[Array, "N L"]) -> Float[Array, "N L-V P"]:
        """Return the pixels of the hidden patches.

        Args:
            h: the encoder's hidden states: of the class token, then of the patches that it saw.
            order: places of the patches, the V seen ones first; the hidden ones are answered in this order.
        """
        seen, width = h.shape[1] - 1, self.sizes.width
        h = dense(width, "embed")(h)
        token = self.param("mask_token", initial_kernel(), (1, 1, width))
        tokens = jnp.broadcast_to(token, (len(h), order.shape[1] - seen, width)).astype(h.dtype)
        patches = take_rows(jnp.concatenate([h[:, 1:], tokens], axis=1), jnp.argsort(order))
        patches += wave_positions(*self.grid, width)[None].astype(h.dtype)
        h = jnp.concatenate([h[:, :1], patches], axis=1)
        h = through_blocks(h, self.sizes, None, range(self.sizes.layers))
        h = nn.LayerNorm(self.sizes.epsilon, name="norm")(take_rows(h[:, 1:], order[:, seen:]))
        return dense(self.outputs, "pixels")(h)


@dataclass(frozen=True)
class Autoencoder(Wrapped):
    """A masked autoencoder (He et al., arXiv 2111.06377): images with hidden patches in, those patches' pixels out.

    The encoder is the network below its head and computes only on the patches that are not hidden; what is transferred
    is the encoder. Pixels of hidden patches are all :data:`HIDDEN`; as many are hidden in every image.
    """

    model: Vit = hparam()
    decoder: ViTConfig = hparam()  # its width, layers, heads and the units between two layers
    grid: tuple[int, int] = hparam()  # patches down and across
    seen: int = hparam()  # patches of an image that are not hidden

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the network's groups, the decoder in the place of the head."""
        *below, (name, _) = self.model.groups()
        return (*below, (name, "decoder/.*"))

    def decoding(self, outputs: int) -> Decoder:
        """Return the decoder with ``outputs`` pixels (times channels) a patch."""
        return Decoder(self.decoder, self.grid, outputs)

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters: the network's without its head, and the decoder's."""
        below, above = jax.random.split(key)
        whole = self.model.init(below, features, 1)
        h = jnp.zeros((1, 1 + self.seen, self.model.sizes.width))
        order = jnp.arange(self.grid[0] * self.grid[1])[None]
        decoder: dict[str, Any] = flatten_dict(self.decoding(outputs).init(above, h, order)["params"], sep="/")
        own = {path: leaf for path, leaf in whole.items() if not path.startswith("head/")}
        return own | {f"decoder/{path}": leaf for path, leaf in decoder.items()}

    def forward(self, params: Params, x: Array, outputs: int, how: ApplyOptions = PLAIN) -> tuple[Array, Params]:
        """Return the pixels of the hidden patches of each image, ``(N, L - V, P)``, in the patches' order.

        Of the groups below the head: what they return for whole images, as the network does.
        """
        own = {path: leaf for path, leaf in params.items() if not path.startswith("decoder/")}
        top = len(self.groups()) - 1
        if how.stop is not None and how.stop <= top:
            return self.model.forward(own, x, outputs, how)
        decoder = {path.removeprefix("decoder/"): leaf for path, leaf in params.items() if path not in own}
        order = jnp.argsort(is_hidden(x, self.model.sizes.patch), stable=True)
        h, seen = self.model.forward(own, x, outputs, how._replace(places=order[:, : self.seen], stop=top))
        variables = {"params": unflatten_dict(decoder, sep="/")}
        return self.decoding(outputs).apply(variables, h, order), seen  # type: ignore[return-value]
