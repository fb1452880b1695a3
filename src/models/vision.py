"""What ResNet and ViT share: images in, how their pixels are standardised, and the settings of a checkpoint.

Inputs are uint8 ``(N, H, W, C)``, or floats of that shape from 0 to 1, as augmentation returns them.
"""

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
from .checkpointed import Checkpointed


def is_number(value: Any) -> bool:
    """Tell whether a value of the configuration is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


CENTRE = Check("a finite number, or a list with one for each channel", is_number)
SPREAD = Check("a finite number > 0, or a list with one for each channel", lambda v: is_number(v) and v > 0)


class Scaling(NamedTuple):
    """What pixels from 0 to 1 are standardised with: one number for all channels, or one for each."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)


def standardised(module: nn.Module, x: Array, scaling: Scaling) -> Float[Array, "N H W C"]:
    """Return ``(x - mean) / std`` in the precision of a network's parameters; bytes are divided by 255 first.

    Args:
        module: the network.
        x: images, as :func:`check_images` lets them pass.
        scaling: what they are standardised with.

    Raises:
        UserError: more numbers than one, and not as many as there are channels.
    """
    pixels = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    for name, values in scaling._asdict().items():
        if len(values) not in (1, x.shape[-1]):
            raise UserError(f"model.{name} has {len(values)} numbers; allowed: one, or {x.shape[-1]}, one a channel")
    mean, std = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in scaling)
    own = jax.tree.leaves(module.variables.get("params", {}))  # none while they are made
    return ((pixels - mean) / std).astype(own[0].dtype if own else jnp.float32)


def check_images(model: str, x: Array, channels: int | None) -> None:
    """Refuse inputs that are no images, or have other channels than a checkpoint (``None``: there is none)."""
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
    """The settings of both. ``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: from the seed.

    ``mean`` and ``std``: what pixels from 0 to 1 are standardised with, one number or one a channel; ``None`` takes
    what the checkpoint's ``preprocessor_config.json`` says, and 0.5 and 0.25 without a checkpoint.
    """

    input_dtype: ClassVar[Any] = jnp.uint8
    architecture: ClassVar[str]  # as `model_type` in config.json has it
    head_name: ClassVar[str] = "classify"

    mean: Any = hparam(None, CENTRE)
    std: Any = hparam(None, SPREAD)
    head_dropout: float | None = hparam(None, UNIT, traced=True)

    @property
    def scaling(self) -> Scaling:
        """What pixels are standardised with.

        Raises:
            UserError: the checkpoint does not say, or scales in another way.
        """
        given = {name: value for name in Scaling._fields if (value := getattr(self, name)) is not None}
        known = Scaling()
        if self.checkpoint is not None and len(given) < len(Scaling._fields):
            from ..checkpoints.huggingface import read_scaling

            known = Scaling(*read_scaling(self.checkpoint))
        return known._replace(**{k: v if isinstance(v, tuple) else (v,) for k, v in given.items()})

    @property
    def sizes(self) -> Any:
        """The network's sizes: the checkpoint's, or as set."""
        raise TypeError(f"{type(self).__name__} has no sizes")
