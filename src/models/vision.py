"""What ResNet and ViT share. Inputs are uint8 ``(N, H, W, C)``, or floats from 0 to 1, as augmentation returns them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import UNIT, Check, hparam
from ..errors import UserError
from .base import Checkpointed


def is_number(value: Any) -> bool:
    """Tell whether a value of the configuration is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


MEAN = Check("a finite number, or a list with one for each channel", is_number)
STD = Check("a finite number > 0, or a list with one for each channel", lambda v: is_number(v) and v > 0)


class Scaling(NamedTuple):
    """The mean and standard deviation of pixels from 0 to 1: one number for all channels, or one for each."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)


def standardize(module: nn.Module, x: Array, scaling: Scaling) -> Float[Array, "N H W C"]:
    """Return ``(x - mean) / std`` in the precision of the module's parameters; uint8 is divided by 255 first."""
    pixels = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    for name, values in scaling._asdict().items():
        if len(values) not in (1, x.shape[-1]):
            raise UserError(f"model.{name} has {len(values)} numbers; allowed: one, or {x.shape[-1]}, one a channel")
    mean, std = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in scaling)
    own = jax.tree.leaves(module.variables.get("params", {}))  # none during init
    return ((pixels - mean) / std).astype(own[0].dtype if own else jnp.float32)


def check_images(model: str, x: Array, channels: int | None) -> None:
    """Refuse inputs that are not images, or whose channels are not the checkpoint's (``None``: no checkpoint)."""
    right = x.dtype == jnp.uint8 or jnp.issubdtype(x.dtype, jnp.floating)
    if x.ndim != 4 or not right:
        raise UserError(
            f"model={model} is given inputs of shape {x.shape[1:]} and type {x.dtype.name}; "
            "allowed: images of shape (height, width, channels), uint8 or floats from 0 to 1"
        )
    if channels not in (None, x.shape[-1]):
        raise UserError(
            f"model={model} is given images of {x.shape[-1]} channels; allowed: {channels}, as the checkpoint has"
        )


@dataclass(frozen=True)
class Vision(Checkpointed):
    """The settings that ResNet and ViT share.

    ``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: random initial parameters. ``mean`` and
    ``std``: of pixels from 0 to 1, one number or one a channel; ``None`` takes the values in the checkpoint's
    ``preprocessor_config.json``, and 0.5 and 0.25 without a checkpoint.
    """

    input_dtype: ClassVar[Any] = jnp.uint8
    head_name: ClassVar[str] = "classify"

    mean: Any = hparam(None, MEAN)
    std: Any = hparam(None, STD)
    head_dropout: float | None = hparam(None, UNIT, traced=True)

    @property
    def scaling(self) -> Scaling:
        """The mean and standard deviation of pixels: as set, else the checkpoint's, else the defaults."""
        given = {name: value for name in Scaling._fields if (value := getattr(self, name)) is not None}
        loaded = self.loaded_config()
        known = loaded.scaling if loaded and loaded.scaling else Scaling()
        return known._replace(**{k: v if isinstance(v, tuple) else (v,) for k, v in given.items()})

    @property
    def sizes(self) -> Any:
        """The network's sizes: the checkpoint's, or as set."""
        raise TypeError(f"{type(self).__name__} has no sizes")
