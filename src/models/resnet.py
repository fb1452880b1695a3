"""``model=resnet``: residual networks (He et al. 2015, arXiv 1512.03385) for images."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import COUNT, Check, hparam
from ..errors import UserError
from .base import block_groups
from .cpu_kernels import BatchNorm, convolve
from .layers import Dropout
from .vision import Scaling, Vision, check_images, standardize

Stem = Enum("Stem", ["cifar", "imagenet"])

BOTTLENECK = 4  # a bottleneck's outputs for each feature inside
DEPTHS = {18: ("basic", (2, 2, 2, 2)), 34: ("basic", (3, 4, 6, 3)), 50: ("bottleneck", (3, 4, 6, 3))}  # table 1
DEPTH = Check("18, 34 or 50", lambda v: v in DEPTHS)
MOST_BLOCKS = 1000
VALUES_AT_ONCE = 2**24  # of the largest feature maps of a batch in evaluation


class ResNetConfig(NamedTuple):
    """The sizes of a network. ``kind``: of its blocks, ``basic`` or ``bottleneck``."""

    stem_width: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)  # what each stage's blocks return
    depths: tuple[int, ...] = (2, 2, 2, 2)  # blocks a stage
    kind: str = "basic"
    channels: int | None = None  # of the images; None: as they come
    stem: str = "imagenet"

    @classmethod
    def named(cls, depth: int, width: int, stem: str) -> ResNetConfig:
        """Return the sizes of a published depth, with so many features in the first stage (64 there)."""
        kind, depths = DEPTHS[depth]
        most = width * (BOTTLENECK if kind == "bottleneck" else 1)
        return cls(width, tuple(most * 2**stage for stage in range(len(depths))), depths, kind, stem=stem)

    @property
    def depth(self) -> int | None:
        """The published depth that this is, if it is one."""
        return next((depth for depth, own in DEPTHS.items() if own == (self.kind, self.depths)), None)

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Each block's features inside, those that it returns, and its stride."""
        part = BOTTLENECK if self.kind == "bottleneck" else 1
        return [
            (width // part, width, 2 if stage > 0 and number == 0 else 1)
            for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
            for number in range(depth)
        ]


def conv(width: int, size: int, stride: int, name: str) -> nn.Conv:
    """Return a convolution without bias, padded as in PyTorch, with He et al.'s initializer (arXiv 1502.01852)."""
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=convolve,
        name=name,
    )


def norm(name: str, start: float = 1.0) -> BatchNorm:
    """Return batch normalisation; ``src/models/base.py`` selects batch or running statistics."""
    return BatchNorm(scale_init=nn.initializers.constant(start), name=name)


class ResNetStem(nn.Module):
    """The stem: a 3 x 3 convolution for small images, else a 7 x 7 convolution and 3 x 3 max pooling of stride 2."""

    width: int
    small: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w width"]:
        """Return feature maps of the same height and width, or of a quarter."""
        size, stride = (3, 1) if self.small else (7, 2)
        x = nn.relu(norm("norm")(conv(self.width, size, stride, "conv")(x)))
        if self.small:
            return x
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or three (1 x 1, 3 x 3, 1 x 1), and a shortcut.

    The first 3 x 3 convolution has the stride, in a bottleneck too: "v1.5", as in torchvision and Hugging Face.
    """

    inner: int
    outer: int
    stride: int
    bottleneck: bool
    last_scale: float  # initial scale of the last normalisation

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w outer"]:
        """Return feature maps of the height and width divided by the stride."""
        y, kernels = x, (1, 3, 1) if self.bottleneck else (3, 3)
        for i, size in enumerate(kernels[:-1]):
            stride = self.stride if i == kernels.index(3) else 1
            y = nn.relu(norm(f"norm_{i}")(conv(self.inner, size, stride, f"conv_{i}")(y)))
        top = len(kernels) - 1
        y = norm(f"norm_{top}", self.last_scale)(conv(self.outer, kernels[top], 1, f"conv_{top}")(y))
        if self.stride != 1 or x.shape[-1] != self.outer:
            x = norm("shortcut_norm")(conv(self.outer, 1, self.stride, "shortcut")(x))
        return nn.relu(x + y)


class ResNetModule(nn.Module):
    """The stem, the blocks (the last with global average pooling), and ``Dense(outputs)``."""

    sizes: ResNetConfig
    scaling: Scaling
    last_scale: float
    dropout: Any
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "N ..."], start: int = 0, stop: int | None = None) -> Float[Array, "N ..."]:
        """Return the outputs of a batch of images, or the outputs of group ``stop - 1``."""
        sizes, blocks = self.sizes, self.sizes.blocks
        end = len(blocks) + 1
        stop = end + 1 if stop is None else stop
        if start == 0 < stop:
            check_images("resnet", x, sizes.channels)
            x = ResNetStem(sizes.stem_width, sizes.stem == "cifar", name="stem")(standardize(self, x, self.scaling))
        for i in range(max(start - 1, 0), min(stop - 1, len(blocks))):
            x = ResidualBlock(*blocks[i], sizes.kind == "bottleneck", self.last_scale, name=f"block_{i}")(x)
        if start < end <= stop:
            x = x.mean(axis=(1, 2))
        if stop <= end:
            return x
        return nn.Dense(self.outputs, name="head")(Dropout(self.dropout, name="dropout")(x))


@dataclass(frozen=True)
class Resnet(Vision):
    """``model=resnet``: see :class:`~src.models.vision.Vision` for what it shares with ViT.

    ``depth``: 18 and 34 have basic blocks, 50 has bottlenecks. ``width``: features of the first stage, 64 in the paper.
    ``stem``: ``cifar`` keeps the size of small images (SimCLR, arXiv 2002.05709, appendix B.9), ``imagenet`` takes a
    quarter of it. ``zero_init_residual``: whether blocks begin as their shortcuts (Goyal et al., arXiv 1706.02677,
    section 5.1). ``head_dropout``: of the head's inputs.
    """

    architecture: ClassVar[str] = "resnet"

    depth: int | None = hparam(None, DEPTH)
    width: int | None = hparam(None, COUNT)
    stem: Stem | None = hparam(None)
    zero_init_residual: bool = hparam(False)

    @property
    def sizes(self) -> ResNetConfig:
        """The network's sizes: the checkpoint's, else as set; the default is ResNet-18 with the small stem."""
        loaded = self.loaded_config()
        if loaded is None:
            return ResNetConfig.named(self.depth or 18, self.width or 64, (self.stem or Stem.cifar).name)
        known: ResNetConfig = loaded.network
        depth = known.depth or f"{known.kind} stages of {known.depths}"
        self.check_matches({"depth": depth, "width": known.stem_width, "stem": known.stem})
        least = BOTTLENECK if known.kind == "bottleneck" else 1
        if len(known.widths) != len(known.depths) or sum(known.depths) > MOST_BLOCKS or min(known.widths) < least:
            raise UserError(
                f"the checkpoint '{self.checkpoint}' has {known.kind} stages of widths {known.widths} and depths "
                f"{known.depths}; allowed: as many widths as depths, at most {MOST_BLOCKS} blocks, "
                f"and widths of bottlenecks at least {BOTTLENECK}"
            )
        return known

    def module(self, outputs: int) -> ResNetModule:
        """Return the network with ``outputs`` output units."""
        last_scale = 0.0 if self.zero_init_residual else 1.0
        return ResNetModule(self.sizes, self.scaling, last_scale, self.head_dropout, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``stem``, ``block_0`` ..., ``head``; batch statistics belong to their block."""
        return (("stem", "stem/.*"), *block_groups(len(self.sizes.blocks)), ("head", "head/.*"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return each block's normalised convolutions: an adapter follows each, before the activation or the sum."""
        count = 3 if self.sizes.kind == "bottleneck" else 2
        return tuple(tuple(f"block_{i}/norm_{j}" for j in range(count)) for i in range(len(self.sizes.blocks)))

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """Return the number of images whose largest feature maps take 64 MB; ``None`` for vectors."""
        if len(features) != 3:
            return None
        height, width, depth = features
        lowest = self.sizes.stem_width // 4 if self.sizes.stem == "imagenet" else self.sizes.widths[0]
        return max(1, VALUES_AT_ONCE // (height * width * max(depth, lowest)))
