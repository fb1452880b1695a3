"""``model=vit``: the vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ..config.hparams import COUNT, UNIT, hparam
from ..errors import UserError
from .base import block_groups
from .cpu_kernels import convolve, gelu
from .layers import Dropout, take_rows
from .transformer import PreNormBlock, block_outputs, check_heads, dense, truncated_normal_init
from .vision import Scaling, Vision, check_images, standardize

Size = Enum("Size", ["tiny", "small", "base"])
VitPooling = Enum("VitPooling", ["first", "mean"])

WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width and heads (arXiv 2012.12877, table 1)
TOKENS_AT_ONCE = 8192  # of a batch in evaluation


class ViTConfig(NamedTuple):
    """The sizes of a network, and the epsilon of its layer normalisations."""

    width: int = 192
    layers: int = 12
    heads: int = 3
    intermediate: int = 768
    patch: int = 4
    image: int | None = None  # side in pixels; None: as the images come, which need not be square then
    channels: int | None = None  # of the images; None: as they come
    epsilon: float = 1e-12

    @classmethod
    def named(cls, size: str) -> ViTConfig:
        """Return the sizes that go by a name."""
        width, heads = WIDTHS[size]
        return cls(width, heads=heads, intermediate=4 * width)

    @property
    def size(self) -> str | None:
        """The name of these sizes, if they have one; patches do not matter."""
        own = (self.width, self.layers, self.heads, self.intermediate)
        return next((name for name in WIDTHS if ViTConfig.named(name)[:4] == own), None)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of patches of an image, down and across."""
        side, patch = self.image, self.patch
        if side is not None and (height, width) != (side, side):
            raise UserError(f"images are {height} x {width} pixels, and model.image is {side}; allowed: that size")
        if height % patch or width % patch:
            raise UserError(
                f"model.patch is {patch}, and images are {height} x {width} pixels; allowed: a divisor of both"
            )
        return height // patch, width // patch


class PatchEmbeddings(nn.Module):
    """A dense layer on each patch, a class token before them, and position embeddings."""

    width: int
    patch: int
    dropout: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N L E"]:
        """Return the hidden states under the first block: the class token's, then those of the patches."""
        side, init = (self.patch, self.patch), truncated_normal_init()
        patch = nn.Conv(self.width, side, side, "VALID", kernel_init=init, conv_general_dilated=convolve, name="patch")
        h = patch(x).reshape(len(x), -1, self.width)
        token = self.param("class_token", init, (1, 1, self.width))
        h = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), h], axis=1)
        positions = self.param("positions", init, (1, *h.shape[1:]))
        return Dropout(self.dropout, name="dropout")(h + positions)


def through_blocks(h: Float[Array, "N L E"], sizes: ViTConfig, dropout: Any, numbers: range) -> Float[Array, "N L E"]:
    """Apply some blocks, as submodules of the calling module; every token attends to every other."""
    shape, bias = h.shape, jnp.zeros((1, 1, 1, h.shape[1]))
    # All tokens as one matrix, which makes the gradients of kernels plain products.
    h = h.reshape(-1, h.shape[-1])
    for i in numbers:
        h = PreNormBlock(sizes, dropout, gelu, name=f"block_{i}")(h, bias)
    return h.reshape(shape)


class VitModule(nn.Module):
    """Embeddings, blocks, a last normalisation with pooling (in the last block's group), and ``Dense(outputs)``."""

    sizes: ViTConfig
    scaling: Scaling
    pooling: str
    dropout: Any
    head_dropout: Any
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N ..."],
        start: int = 0,
        stop: int | None = None,
        positions: Int[Array, "N V"] | None = None,
    ) -> Float[Array, "N ..."]:
        """Return the outputs of a batch of images, or the outputs of group ``stop - 1``.

        With ``positions``, the blocks take the class token and these patches (line by line) only, and there is no
        pooling.
        """
        sizes = self.sizes
        end = sizes.layers + 1
        stop = end + 1 if stop is None else stop
        if start == 0 < stop:
            check_images("vit", x, sizes.channels)
            sizes.grid(*x.shape[1:3])
            embeddings = PatchEmbeddings(sizes.width, sizes.patch, self.dropout, name="embeddings")
            x = embeddings(standardize(self, x, self.scaling))
            if positions is not None:
                x = jnp.concatenate([x[:, :1], take_rows(x[:, 1:], positions)], axis=1)
        if start < end and stop > 1:
            x = through_blocks(x, sizes, self.dropout, range(max(start - 1, 0), min(stop - 1, sizes.layers)))
        if start < end <= stop:
            x = nn.LayerNorm(sizes.epsilon, name="final_norm")(x)
            if positions is None:
                x = x[:, 0] if self.pooling == "first" else x.mean(axis=1)
        if stop <= end:
            return x
        return dense(self.outputs, "head")(Dropout(self.head_dropout, name="head_dropout")(x))


@dataclass(frozen=True)
class Vit(Vision):
    """``model=vit``: see :class:`~src.models.vision.Vision` for what it shares with ResNet.

    ``size``: a name for ``width``, ``heads``, ``intermediate`` (units between the two layers of a block) and ``layers``
    (12), which may be set one by one as well. ``patch`` and ``image``: sides in pixels. ``pooling``: what stands for an
    image, the class token (``first``) or the ``mean`` of all tokens. ``dropout``: of the trunk (embeddings, attention
    probabilities, both outputs of a block); ``head_dropout``: of the head's inputs.
    """

    architecture: ClassVar[str] = "vit"

    size: Size | None = hparam(None)
    width: int | None = hparam(None, COUNT)
    layers: int | None = hparam(None, COUNT)
    heads: int | None = hparam(None, COUNT)
    intermediate: int | None = hparam(None, COUNT)
    patch: int | None = hparam(None, COUNT)
    image: int | None = hparam(None, COUNT)
    pooling: VitPooling = hparam(VitPooling.first)
    dropout: float | None = hparam(None, UNIT, traced=True)

    @property
    def sizes(self) -> ViTConfig:
        """The network's sizes: the checkpoint's, else as set."""
        names = ("width", "layers", "heads", "intermediate", "patch", "image")
        if loaded := self.loaded_config():
            sizes: ViTConfig = loaded.network
            known = {name: getattr(sizes, name) for name in names}
            self.check_matches({"size": sizes.size or "sizes of its own", **known})
        else:
            given = {name: value for name in names if (value := getattr(self, name)) is not None}
            if self.width is not None:
                given.setdefault("intermediate", 4 * self.width)
            sizes = ViTConfig.named((self.size or Size.tiny).name)._replace(**given)
        return check_heads(sizes)

    def module(self, outputs: int) -> VitModule:
        """Return the network with ``outputs`` output units."""
        return VitModule(self.sizes, self.scaling, self.pooling.name, self.dropout, self.head_dropout, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``embeddings``, ``block_0`` ..., ``head``; the last normalisation belongs to the last block."""
        *blocks, (top, expression) = block_groups(self.sizes.layers)
        return (("embeddings", "embeddings/.*"), *blocks, (top, f"{expression}|final_norm/.*"), ("head", "head/.*"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return the output layers of each block's attention and feed-forward network, before dropout and residual."""
        return block_outputs(self.sizes.layers)

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """Return the rows of 8,192 tokens; ``None`` for vectors."""
        if len(features) == 1:
            return None
        patch = self.sizes.patch
        tokens = features[0] if len(features) == 2 else (features[0] // patch) * (features[1] // patch) + 1
        return max(1, TOKENS_AT_ONCE // tokens)
