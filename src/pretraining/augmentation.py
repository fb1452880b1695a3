"""Random views of images, computed where the network is: crops, flips, colours and blur as products of matrices.

A view of SimCLR (Chen et al. 2020, arXiv 2002.05709, appendix A) is a random part of the image at the size of the
whole, flipped or not, in other colours, sometimes grey, sometimes blurred. Here each image has a key of its own, made
of its row's number, so that what happens to it does not depend on how many rows are beside it.

Inside, an image is rows of planes, ``(H, C, W)``: both products of a crop then run along contiguous memory, and colours
are planes as wide as the image. On a CPU that takes half as long as the channels last.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ..config.hparams import POSITIVE, RATIO, UNIT, Check, hparam
from ..errors import UserError

TRIES = 10  # boxes that are drawn until one fits into the image, as torchvision's RandomResizedCrop does
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey, ITU-R BT.601
HALF_TURN = Check("a number from 0 to 0.5", lambda v: 0 <= v <= 0.5)
ODD = Check("an odd whole number >= 3", lambda v: v >= 3 and v % 2 == 1)


@dataclass(frozen=True)
class Augmentation:
    """What a random view is; the defaults are SimCLR's for CIFAR-10 (arXiv 2002.05709, appendix B.9).

    ``crop`` and ``ratio``: the least and the largest share of the area that a crop has, and width over height; both
    ``[1, 1]`` leave images whole. ``flip``: the probability of a mirror image. ``jitter``: of other colours, by at most
    ``brightness``, ``contrast``, ``saturation`` (factors from ``1 - b`` to ``1 + b``) and ``hue`` (of a whole turn); of
    SimCLR's strength ``s`` they are ``0.8 s``, ``0.8 s``, ``0.8 s`` and ``0.2 s``, with ``s = 0.5``. ``grey``: of no
    colours. ``blur``: of a Gaussian blur, its deviation between the two of ``sigma``, in pixels, of ``blur_size``
    pixels (``None``: a tenth of the height, at least 3).

    Jitter is applied in one order (brightness, contrast, saturation, hue), where torchvision draws the order too. What
    has no colours keeps the jitter's brightness and contrast and the rest is left out, as torchvision does.
    """

    crop: tuple[float, float] = hparam((0.08, 1.0), RATIO)
    ratio: tuple[float, float] = hparam((3 / 4, 4 / 3), POSITIVE)
    flip: float = hparam(0.5, UNIT)
    jitter: float = hparam(0.8, UNIT)
    brightness: float = hparam(0.4, UNIT)
    contrast: float = hparam(0.4, UNIT)
    saturation: float = hparam(0.4, UNIT)
    hue: float = hparam(0.1, HALF_TURN)
    grey: float = hparam(0.2, UNIT)
    blur: float = hparam(0.0, UNIT)
    sigma: tuple[float, float] = hparam((0.1, 2.0), POSITIVE)
    blur_size: int | None = hparam(None, ODD)

    def __post_init__(self) -> None:
        for name in ("crop", "ratio", "sigma"):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                raise UserError(f"{name} of an augmentation is {list(pair)}; allowed: the least and the largest value")

    @functools.partial(jax.jit, static_argnums=0)
    def two_views(
        self, key: Array, images: Shaped[Array, "N H W C"]
    ) -> tuple[Float[Array, "N H W C"], Float[Array, "N H W C"]]:
        """Return two views of each image, drawn independently: :meth:`augment` under the two halves of the key."""
        views = jax.vmap(self.augment, in_axes=(0, None))(jax.random.split(key), images)
        return views[0], views[1]

    @functools.partial(jax.jit, static_argnums=0)
    def augment(self, key: Array, images: Shaped[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Return a view of each image, float32 from 0 to 1.

        Args:
            key: of what is drawn; a row's view depends on this, on its number and on nothing else of the batch.
            images: of 1 or 3 channels, uint8, or floats from 0 to 1.

        Raises:
            UserError: another number of channels, or images smaller than the blur.
        """
        if images.shape[-1] not in (1, 3):
            raise UserError(f"images to augment have {images.shape[-1]} channels; allowed: 1 or 3")
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(images)))
        return jax.vmap(self._view)(jax.vmap(draw)(keys), images)

    def _view(self, lot: AugmentParams, image: Shaped[Array, "H W C"]) -> Float[Array, "H W C"]:
        """Return a view of one image."""
        height, width, channels = image.shape
        planes = to_float(image).transpose(0, 2, 1)
        box = box_of(lot, height, width, self.crop, self.ratio)
        planes = resized(planes, box, lot.flip < self.flip)
        if self.jitter > 0:
            planes = self._jittered(lot, planes)
        if self.grey > 0 and channels == 3:
            planes = jnp.where(lot.grey < self.grey, luma(planes), planes)
        if self.blur > 0:
            sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * lot.sigma
            blurred = gaussian_blurred(planes, sigma, self.blur_size or max(3, height // 10 // 2 * 2 + 1))
            planes = jnp.where(lot.blur < self.blur, blurred, planes)
        return jnp.clip(planes, 0.0, 1.0).transpose(0, 2, 1)  # weights add up to 1 but for rounding

    def _jittered(self, lot: AugmentParams, planes: Float[Array, "H C W"]) -> Float[Array, "H C W"]:
        """Return other colours; where there are to be none, by amounts that change no bit."""

        def amount(drawn: Array, most: float) -> Float[Array, ""]:
            return jnp.where(lot.jitter < self.jitter, most * (2.0 * drawn - 1.0), 0.0)

        coloured = planes.shape[1] == 3
        if self.brightness > 0:
            planes = brightened(planes, 1.0 + amount(lot.brightness, self.brightness))
        if self.contrast > 0:
            planes = contrasted(planes, 1.0 + amount(lot.contrast, self.contrast))
        if self.saturation > 0 and coloured:
            planes = saturated(planes, 1.0 + amount(lot.saturation, self.saturation))
        if self.hue > 0 and coloured:
            planes = hue_turned(planes, amount(lot.hue, self.hue))
        return planes


class AugmentParams(NamedTuple):
    """What is drawn for an image, uniform from 0 to below 1: all at once, as each call of a generator is compiled."""

    areas: Array  # (TRIES,)
    ratios: Array  # (TRIES,)
    top: Array
    left: Array
    flip: Array
    jitter: Array
    brightness: Array
    contrast: Array
    saturation: Array
    hue: Array
    grey: Array
    blur: Array
    sigma: Array


def draw(key: Array) -> AugmentParams:
    """Return what an image's key decides."""
    values = jax.random.uniform(key, (2 * TRIES + len(AugmentParams._fields) - 2,))
    return AugmentParams(values[:TRIES], values[TRIES : 2 * TRIES], *values[2 * TRIES :])


def to_float(images: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    """Return bytes as float32 from 0 to 1, and floats as float32."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)


# --- where: crops and flips ------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A part of an image, in whole pixels (as float32)."""

    top: Array
    left: Array
    height: Array
    width: Array


def box_of(lot: AugmentParams, height: int, width: int, crop: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Return the part of an image that was drawn, as by torchvision's ``RandomResizedCrop`` (arXiv 1409.4842, 6).

    Its share of the area is uniform, the logarithm of width over height too, both sides rounded to whole pixels; the
    first of ten tries that fits is taken, and if none does, the largest part in the middle that has an allowed ratio.
    """
    area = height * width * (crop[0] + (crop[1] - crop[0]) * lot.areas)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = jnp.exp(low + (high - low) * lot.ratios)
    widths, heights = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    found, first = jnp.any(fits), jnp.argmax(fits)
    otherwise = largest_part(height, width, ratio)
    wide, tall = (jnp.where(found, m[first], o) for m, o in zip((widths, heights), otherwise, strict=True))

    def start(drawn: Array, spare: Array) -> Array:
        return jnp.where(found, jnp.minimum(jnp.floor(drawn * (spare + 1.0)), spare), spare // 2)

    return Box(start(lot.top, height - tall), start(lot.left, width - wide), tall, wide)


def largest_part(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """Return width and height of the largest part of an image whose width over height is allowed."""
    if width / height < ratio[0]:
        return width, max(1, min(height, round(width / ratio[0])))
    if width / height > ratio[1]:
        return max(1, min(width, round(height * ratio[1]))), height
    return width, height


def resized(planes: Float[Array, "H C W"], box: Box, flip: Bool[Array, ""]) -> Float[Array, "H C W"]:
    """Return a part of an image at the size of the whole, by bilinear interpolation, mirrored or not.

    Interpolation is linear in the pixels and separate in rows and columns: ``R @ image @ C.T`` for each channel. A part
    is never larger than the whole, so there is no antialiasing to do.
    """
    height, _, width = planes.shape
    rows = bilinear_weights(box.top, box.height, height)
    columns = bilinear_weights(box.left, box.width, width)
    columns = jnp.where(flip, columns[::-1], columns)
    return separable(rows, planes, columns)


def bilinear_weights(start: Array, length: Array, side: int) -> Float[Array, "side side"]:
    """Return the share of each old pixel (axis 1) in each new one (axis 0) of ``length`` pixels stretched to ``side``.

    Pixels are squares with their values in the middle; beyond the middles of the outer ones, values go on unchanged.
    """
    place = start + jnp.clip((jnp.arange(side) + 0.5) * length / side - 0.5, 0.0, length - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None] - jnp.arange(side)[None, :]))


def separable(
    rows: Float[Array, "H H"], planes: Float[Array, "H C W"], columns: Float[Array, "W W"]
) -> Float[Array, "H C W"]:
    """Return ``rows @ plane @ columns.T`` of each plane; in float32 also where a device would rather round."""
    exact = jax.lax.Precision.HIGHEST
    height, channels, width = planes.shape
    planes = jnp.matmul(rows, planes.reshape(height, channels * width), precision=exact)
    planes = jnp.matmul(planes.reshape(height * channels, width), columns.T, precision=exact)
    return planes.reshape(height, channels, width)


def gaussian_blurred(planes: Float[Array, "H C W"], sigma: Any, size: int) -> Float[Array, "H C W"]:
    """Return an image blurred by a Gaussian of deviation ``sigma`` pixels, cut off at ``size`` pixels altogether.

    Beyond an edge, pixels are mirrored at the outermost one, which is not repeated. A kernel is a few pixels wide, so a
    sum of shifted images has less to do than a product with a matrix. The barrier has what is shifted computed once and
    not in each term; that halves the time of a whole view.

    Raises:
        UserError: an image without as many pixels to mirror.
    """
    reach = size // 2
    if reach >= min(planes.shape[0], planes.shape[2]):
        raise UserError(f"blur_size of an augmentation is {size}; allowed: less than twice the side of its images")
    kernel = jnp.exp(-0.5 * jnp.square(np.arange(-reach, reach + 1) / sigma))
    kernel = kernel / kernel.sum()
    for axis in (0, 2):
        side = planes.shape[axis]
        wide = jnp.pad(planes, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        wide, kernel = jax.lax.optimization_barrier((wide, kernel))
        shifted = (jax.lax.slice_in_dim(wide, i, i + side, axis=axis) for i in range(size))
        planes = sum((weight * part for weight, part in zip(kernel, shifted, strict=True)), jnp.zeros_like(planes))
    return planes


# --- what: colours ---------------------------------------------------------------------------------------------------


def luma(planes: Float[Array, "H C W"]) -> Float[Array, "H 1 W"]:
    """Return an image's grey values by ITU-R BT.601, as an image of one channel; of one channel itself."""
    if planes.shape[1] == 1:
        return planes
    red, green, blue = LUMA
    return red * planes[:, :1] + green * planes[:, 1:2] + blue * planes[:, 2:]


def brightened(planes: Float[Array, "H C W"], factor: Any) -> Float[Array, "H C W"]:
    """Return ``factor * image``, cut to 0 to 1."""
    return jnp.clip(factor * planes, 0.0, 1.0)


def contrasted(planes: Float[Array, "H C W"], factor: Any) -> Float[Array, "H C W"]:
    """Return each value's distance from the mean grey ``factor`` times as large, cut to 0 to 1."""
    mean = jnp.mean(luma(planes))
    return jnp.clip(factor * planes + (1.0 - factor) * mean, 0.0, 1.0)


def saturated(planes: Float[Array, "H 3 W"], factor: Any) -> Float[Array, "H 3 W"]:
    """Return each value's distance from its pixel's grey ``factor`` times as large, cut to 0 to 1."""
    return jnp.clip(factor * planes + (1.0 - factor) * luma(planes), 0.0, 1.0)


# Red, green and blue to luma and two axes of chroma (NTSC's YIQ); a grey has no chroma.
YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
CHROMA = np.linalg.inv(YIQ)[:, 1:] @ YIQ[1:]  # what of a colour is chroma
QUARTER = np.linalg.inv(YIQ)[:, 1:] @ np.array([[0.0, 1.0], [-1.0, 0.0]]) @ YIQ[1:]  # that, turned from red to green


def hue_turned(planes: Float[Array, "H 3 W"], turn: Any) -> Float[Array, "H 3 W"]:
    """Return colours with their hue turned by a share of a whole turn, cut to 0 to 1.

    The chroma of YIQ is rotated, which is one product of matrices. It stands for a shift of the hue of HSV, as
    torchvision has it, where conversions need comparisons: the angle is about the same on average over colours
    (of a single one, up to half more or less), and the luma and the chroma stay, not HSV's value and saturation.
    """
    angle = 2 * math.pi * turn
    matrix = np.eye(3) + (jnp.cos(angle) - 1.0) * CHROMA + jnp.sin(angle) * QUARTER  # of no turn, exactly 1
    turned = sum(matrix[None, :, i, None] * planes[:, i : i + 1] for i in range(3))
    return jnp.clip(turned, 0.0, 1.0)
