"""Random views of images, computed inside the compiled program: crops, flips, colours and blur.

A view of SimCLR (Chen et al. 2020, arXiv 2002.05709, appendix A) is a random crop, resized to the image's size, flipped
or not, with random colours, sometimes grey, sometimes blurred. Each image has its own key, derived from its row's
number. Inside, images are ``(H, C, W)``, which takes half as long on a CPU as with the channels last.
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

TRIES = 10  # boxes that are drawn until one fits into the image, as in torchvision's RandomResizedCrop
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R BT.601
HALF_TURN = Check("a number from 0 to 0.5", lambda v: 0 <= v <= 0.5)
ODD = Check("an odd whole number >= 3", lambda v: v >= 3 and v % 2 == 1)


@dataclass(frozen=True)
class Augmentation:
    """The distribution of random views; the defaults are SimCLR's for CIFAR-10 (arXiv 2002.05709, appendix B.9).

    ``crop`` and ``ratio``: least and largest share of the area of a crop, and its width over height; both ``[1, 1]``
    leave images whole. ``flip``: probability of a mirror image. ``jitter``: probability of other colours, changed by at
    most ``brightness``, ``contrast``, ``saturation`` (factors from ``1 - b`` to ``1 + b``) and ``hue`` (of a whole
    turn); SimCLR's strength ``s`` stands for ``0.8 s``, ``0.8 s``, ``0.8 s`` and ``0.2 s``, with ``s = 0.5``. ``grey``:
    probability of no colours. ``blur``: probability of a Gaussian blur of ``blur_size`` pixels (``None``: a tenth of
    the height, at least 3) with a deviation in ``sigma``, in pixels.

    The colours change in a fixed order (brightness, contrast, saturation, hue); torchvision draws the order. As in
    torchvision, images of one channel have brightness and contrast changed only.
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
        """Return two independent views of each image: :meth:`augment` with each half of the key."""
        views = jax.vmap(self.augment, in_axes=(0, None))(jax.random.split(key), images)
        return views[0], views[1]

    @functools.partial(jax.jit, static_argnums=0)
    def augment(self, key: Array, images: Shaped[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Return a view of each image, float32 from 0 to 1; a row's view depends on the key and the row's number only.

        Raises:
            UserError: another number of channels than 1 or 3, or images smaller than the blur.
        """
        if images.shape[-1] not in (1, 3):
            raise UserError(f"images to augment have {images.shape[-1]} channels; allowed: 1 or 3")
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(images)))
        return jax.vmap(self._view)(jax.vmap(sample_params)(keys), images)

    def _view(self, params: AugmentParams, image: Shaped[Array, "H W C"]) -> Float[Array, "H W C"]:
        """Return a view of one image."""
        height, width, channels = image.shape
        planes = to_float(image).transpose(0, 2, 1)
        box = crop_box(params, height, width, self.crop, self.ratio)
        planes = resized_crop(planes, box, params.flip < self.flip)
        if self.jitter > 0:
            planes = self._jittered(params, planes)
        if self.grey > 0 and channels == 3:
            planes = jnp.where(params.grey < self.grey, to_grayscale(planes), planes)
        if self.blur > 0:
            sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * params.sigma
            blurred = gaussian_blur(planes, sigma, self.blur_size or max(3, height // 10 // 2 * 2 + 1))
            planes = jnp.where(params.blur < self.blur, blurred, planes)
        return jnp.clip(planes, 0.0, 1.0).transpose(0, 2, 1)  # the weights add up to 1 except for rounding

    def _jittered(self, params: AugmentParams, planes: Float[Array, "H C W"]) -> Float[Array, "H C W"]:
        """Return the image with other colours, or with the same bits if no jitter was drawn."""

        def amount(drawn: Array, most: float) -> Float[Array, ""]:
            return jnp.where(params.jitter < self.jitter, most * (2.0 * drawn - 1.0), 0.0)

        coloured = planes.shape[1] == 3
        if self.brightness > 0:
            planes = adjust_brightness(planes, 1.0 + amount(params.brightness, self.brightness))
        if self.contrast > 0:
            planes = adjust_contrast(planes, 1.0 + amount(params.contrast, self.contrast))
        if self.saturation > 0 and coloured:
            planes = adjust_saturation(planes, 1.0 + amount(params.saturation, self.saturation))
        if self.hue > 0 and coloured:
            planes = adjust_hue(planes, amount(params.hue, self.hue))
        return planes


class AugmentParams(NamedTuple):
    """Random numbers of an image, uniform in [0, 1); drawn in one call, as each call of a generator is compiled."""

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


def sample_params(key: Array) -> AugmentParams:
    """Return the random numbers of an image's key."""
    values = jax.random.uniform(key, (2 * TRIES + len(AugmentParams._fields) - 2,))
    return AugmentParams(values[:TRIES], values[TRIES : 2 * TRIES], *values[2 * TRIES :])


def to_float(images: Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    """Return bytes as float32 from 0 to 1, and floats as float32."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32) / 255.0
    return images.astype(jnp.float32)


class CropBox(NamedTuple):
    """A part of an image, in whole pixels (as float32)."""

    top: Array
    left: Array
    height: Array
    width: Array


def crop_box(
    params: AugmentParams, height: int, width: int, crop: tuple[float, float], ratio: tuple[float, float]
) -> CropBox:
    """Return a random crop as torchvision's ``RandomResizedCrop`` draws it (arXiv 1409.4842, section 6).

    The first of ten tries that fits is taken; if none does, the largest central part of an allowed ratio.
    """
    area = height * width * (crop[0] + (crop[1] - crop[0]) * params.areas)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = jnp.exp(low + (high - low) * params.ratios)
    widths, heights = jnp.round(jnp.sqrt(area * shape)), jnp.round(jnp.sqrt(area / shape))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    found, first = jnp.any(fits), jnp.argmax(fits)
    fallback = largest_crop(height, width, ratio)
    wide, tall = (jnp.where(found, m[first], o) for m, o in zip((widths, heights), fallback, strict=True))

    def start(drawn: Array, spare: Array) -> Array:
        return jnp.where(found, jnp.minimum(jnp.floor(drawn * (spare + 1.0)), spare), spare // 2)

    return CropBox(start(params.top, height - tall), start(params.left, width - wide), tall, wide)


def largest_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """Return width and height of the largest part of an image whose width over height is allowed."""
    if width / height < ratio[0]:
        return width, max(1, min(height, round(width / ratio[0])))
    if width / height > ratio[1]:
        return max(1, min(width, round(height * ratio[1]))), height
    return width, height


def resized_crop(planes: Float[Array, "H C W"], box: CropBox, flip: Bool[Array, ""]) -> Float[Array, "H C W"]:
    """Return a crop at the size of the image, by bilinear interpolation, mirrored or not.

    The interpolation is separable, ``R @ image @ C.T``. A crop is never larger than the image: no antialiasing.
    """
    height, channels, width = planes.shape
    rows = bilinear_weights(box.top, box.height, height)
    columns = bilinear_weights(box.left, box.width, width)
    columns = jnp.where(flip, columns[::-1], columns)
    exact = jax.lax.Precision.HIGHEST
    planes = jnp.matmul(rows, planes.reshape(height, channels * width), precision=exact)
    planes = jnp.matmul(planes.reshape(height * channels, width), columns.T, precision=exact)
    return planes.reshape(height, channels, width)


def bilinear_weights(start: Array, length: Array, side: int) -> Float[Array, "side side"]:
    """Return the weights of the pixels (axis 1) in ``side`` new ones (axis 0) at the centres of a stretched part."""
    place = start + jnp.clip((jnp.arange(side) + 0.5) * length / side - 0.5, 0.0, length - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None] - jnp.arange(side)[None, :]))


def gaussian_blur(planes: Float[Array, "H C W"], sigma: Any, size: int) -> Float[Array, "H C W"]:
    """Return an image blurred by a Gaussian of deviation ``sigma`` pixels with a kernel of ``size`` pixels.

    A sum of shifted images, as the kernel is small. The barrier makes XLA compute the padded image only once.
    """
    reach = size // 2
    if reach >= min(planes.shape[0], planes.shape[2]):
        raise UserError(f"blur_size of an augmentation is {size}; allowed: less than twice the side of its images")
    kernel = jnp.exp(-0.5 * jnp.square(np.arange(-reach, reach + 1) / sigma))
    kernel = kernel / kernel.sum()
    for axis in (0, 2):
        side = planes.shape[axis]
        padded = jnp.pad(planes, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        padded, kernel = jax.lax.optimization_barrier((padded, kernel))
        shifted = (jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(size))
        planes = sum((weight * part for weight, part in zip(kernel, shifted, strict=True)), jnp.zeros_like(planes))
    return planes


def to_grayscale(planes: Float[Array, "H C W"]) -> Float[Array, "H 1 W"]:
    """Return the luma by ITU-R BT.601 as an image of one channel."""
    if planes.shape[1] == 1:
        return planes
    red, green, blue = LUMA
    return red * planes[:, :1] + green * planes[:, 1:2] + blue * planes[:, 2:]


def adjust_brightness(planes: Float[Array, "H C W"], factor: Any) -> Float[Array, "H C W"]:
    """Return ``factor * image``, clipped to 0 to 1."""
    return jnp.clip(factor * planes, 0.0, 1.0)


def adjust_contrast(planes: Float[Array, "H C W"], factor: Any) -> Float[Array, "H C W"]:
    """Return the image with each value's distance from the mean grey scaled by ``factor``, clipped to 0 to 1."""
    mean = jnp.mean(to_grayscale(planes))
    return jnp.clip(factor * planes + (1.0 - factor) * mean, 0.0, 1.0)


def adjust_saturation(planes: Float[Array, "H 3 W"], factor: Any) -> Float[Array, "H 3 W"]:
    """Return the image with each value's distance from its pixel's grey scaled by ``factor``, clipped to 0 to 1."""
    return jnp.clip(factor * planes + (1.0 - factor) * to_grayscale(planes), 0.0, 1.0)


# Red, green and blue to luma and two axes of chroma (NTSC's YIQ); grey has no chroma.
YIQ = np.array([LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
CHROMA = np.linalg.inv(YIQ)[:, 1:] @ YIQ[1:]  # projects a colour to its chroma
QUARTER = np.linalg.inv(YIQ)[:, 1:] @ np.array([[0.0, 1.0], [-1.0, 0.0]]) @ YIQ[1:]  # and turns it from red to green


def adjust_hue(planes: Float[Array, "H 3 W"], turn: Any) -> Float[Array, "H 3 W"]:
    """Return colours with their hue turned by a share of a whole turn, clipped to 0 to 1.

    The chroma of YIQ is rotated, which is one matrix product. It replaces torchvision's shift of the hue of HSV, whose
    conversions need comparisons. The angle is about the same on average over colours (for a single one, up to half more
    or less), and luma and chroma are preserved instead of HSV's value and saturation.
    """
    angle = 2 * math.pi * turn
    matrix = np.eye(3) + (jnp.cos(angle) - 1.0) * CHROMA + jnp.sin(angle) * QUARTER  # for turn 0 exactly the identity
    turned = sum(matrix[None, :, i, None] * planes[:, i : i + 1] for i in range(3))
    return jnp.clip(turned, 0.0, 1.0)
