"""A masked autoencoder: a vision transformer that encodes visible patches, and a decoder that predicts masked ones."""

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
from .projected import Wrapped
from .transformer import dense, truncated_normal_init
from .vit import Vit, ViTConfig, through_blocks

MASKED_PIXEL = -1.0  # the value of every pixel of a masked patch; pixels are from 0 to 1


def patchify(images: Float[Array, "N H W C"], patch: int) -> Float[Array, "N L P"]:
    """Return the patches of images, line by line; so are the pixels of a patch, with their channels together."""
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(count, -1, patch * patch * channels)


def unpatchify(patches: Float[Array, "N L P"], shape: tuple[int, ...], patch: int) -> Float[Array, "N H W C"]:
    """Return the images of these patches; ``shape`` is the images'."""
    count, height, width, channels = shape
    cut = patches.reshape(count, height // patch, width // patch, patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(shape)


def masked_patches(images: Float[Array, "N H W C"], patch: int) -> Bool[Array, "N L"]:
    """Return which patches are masked."""
    return jnp.all(patchify(images, patch) == MASKED_PIXEL, axis=-1)


def sincos_positions(rows: int, columns: int, width: int) -> Float[np.ndarray, "L E"]:
    """Return fixed position embeddings for the patches of a grid, line by line.

    One half of the numbers encodes the row ``p``, the other the column: ``sin(p w)``, then ``cos(p w)``, at frequencies
    ``w = 10000**(-i / (width / 4))`` (Vaswani et al., arXiv 1706.03762, section 3.5; in two dimensions as He et al.).
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))

    def waves(count: int) -> Float[np.ndarray, "count half"]:
        angles = np.arange(count)[:, None] * frequencies[None, :]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    down, across = np.repeat(waves(rows), columns, axis=0), np.tile(waves(columns), (rows, 1))
    return np.concatenate([down, across], axis=1).astype(np.float32)


class MaeDecoder(nn.Module):
    """Blocks over all patches of an image, with a learned token for each masked one, and a dense layer to pixels."""

    sizes: ViTConfig
    grid: tuple[int, int]  # patches down and across
    outputs: int

    @nn.compact
    def __call__(self, h: Float[Array, "N 1+V E"], order: Int[Array, "N L"]) -> Float[Array, "N L-V P"]:
        """Return the pixels of the masked patches, in their order; ``h`` begins with the class token.

        ``order``: numbers of the patches, the V visible ones first.
        """
        seen, width = h.shape[1] - 1, self.sizes.width
        h = dense(width, "embed")(h)
        token = self.param("mask_token", truncated_normal_init(), (1, 1, width))
        tokens = jnp.broadcast_to(token, (len(h), order.shape[1] - seen, width)).astype(h.dtype)
        patches = take_rows(jnp.concatenate([h[:, 1:], tokens], axis=1), jnp.argsort(order))
        patches += sincos_positions(*self.grid, width)[None].astype(h.dtype)
        h = jnp.concatenate([h[:, :1], patches], axis=1)
        h = through_blocks(h, self.sizes, None, range(self.sizes.layers))
        h = nn.LayerNorm(self.sizes.epsilon, name="norm")(take_rows(h[:, 1:], order[:, seen:]))
        return dense(self.outputs, "pixels")(h)


@dataclass(frozen=True)
class Autoencoder(Wrapped):
    """A masked autoencoder (He et al., arXiv 2111.06377), from images with masked patches to these patches' pixels.

    The encoder, the model below its head, takes the visible patches only. Every image has the same number of them.
    """

    model: Vit = hparam()
    decoder: ViTConfig = hparam()  # its width, layers, heads and the units between two layers
    grid: tuple[int, int] = hparam()  # patches down and across
    seen: int = hparam()  # visible patches of an image

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return the model's groups, with the decoder as the head."""
        *below, (name, _) = self.model.groups()
        return (*below, (name, "decoder/.*"))

    def decoder_module(self, outputs: int) -> MaeDecoder:
        """Return the decoder with ``outputs`` pixels (times channels) a patch."""
        return MaeDecoder(self.decoder, self.grid, outputs)

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters of the model without its head, and of the decoder."""
        below, above = jax.random.split(key)
        whole = self.model.init(below, features, 1)
        h = jnp.zeros((1, 1 + self.seen, self.model.sizes.width))
        order = jnp.arange(self.grid[0] * self.grid[1])[None]
        decoder: dict[str, Any] = flatten_dict(self.decoder_module(outputs).init(above, h, order)["params"], sep="/")
        own = {path: leaf for path, leaf in whole.items() if not path.startswith("head/")}
        return own | {f"decoder/{path}": leaf for path, leaf in decoder.items()}

    def forward(self, params: Params, x: Array, outputs: int, options: ApplyOptions = PLAIN) -> tuple[Array, Params]:
        """Return the pixels of each image's masked patches, ``(N, L - V, P)``; below the head, the model's outputs."""
        own = {path: leaf for path, leaf in params.items() if not path.startswith("decoder/")}
        top = len(self.groups()) - 1
        if options.stop is not None and options.stop <= top:
            return self.model.forward(own, x, outputs, options)
        decoder = {path.removeprefix("decoder/"): leaf for path, leaf in params.items() if path not in own}
        order = jnp.argsort(masked_patches(x, self.model.sizes.patch), stable=True)
        h, seen = self.model.forward(own, x, outputs, options._replace(positions=order[:, : self.seen], stop=top))
        variables = {"params": unflatten_dict(decoder, sep="/")}
        return self.decoder_module(outputs).apply(variables, h, order), seen  # type: ignore[return-value]
