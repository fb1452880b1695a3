"""``pretrain=mae``: predict the masked patches of an image (masked autoencoders)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ..config.hparams import COUNT, FRACTION, hparam
from ..config.schema import option_name
from ..data.base import Transfer
from ..errors import UserError
from ..models.autoencoder import MASKED_PIXEL, Autoencoder, patchify, unpatchify
from ..models.base import Model
from ..models.layers import take_rows
from ..models.vit import Vit, ViTConfig
from ..objectives.base import NetworkFns, Objective, StepAux, StepContext
from .augmentation import Augmentation, to_float
from .base import PretrainTask
from .feature_eval import ImagePretraining

EPSILON = 1e-6  # added to the variance of a patch's pixels, which is 0 for a uniform patch


@dataclass(frozen=True)
class MaeObjective(Objective):
    """The mean squared error of masked patches; targets and outputs are ``(N, masked, P)``, in the patches' order.

    ``norm_pix_loss``: whether targets are a patch's standardised pixels (He et al., section 4.1).
    """

    augmentation: Augmentation = hparam()
    patch: int = 4
    visible: int = 1
    norm_pix_loss: bool = True

    corrupts = True
    raw_inputs = False

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss on random views; evaluations use the images themselves."""
        view_key, mask_key = jax.random.split(context.key)
        view = self.augmentation.augment(view_key, batch[0])
        return super().loss_and_aux(network, (view, batch[1]), context._replace(key=mask_key), memory, smoothing)

    def corrupt(self, key: Array, x: Shaped[Array, "N H W C"], targets: Array) -> tuple[Array, Array]:
        """Return images with masked patches, and the masked patches as targets."""
        patches = patchify(to_float(x), self.patch)
        images, count, _ = patches.shape
        masked = random_mask(key, images, count, self.visible)
        what = take_rows(patches, jnp.argsort(~masked, stable=True)[:, : count - self.visible])
        left = jnp.where(masked[..., None], MASKED_PIXEL, patches)
        return unpatchify(left, x.shape, self.patch), normalized(what) if self.norm_pix_loss else what

    def loss(self, outputs: Float[Array, "N M P"], targets: Float[Array, "N M P"], smoothing: Any = None) -> Array:
        """Return the mean over pixels and masked patches."""
        return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets))

    def metrics(self, outputs: Float[Array, "N M P"], targets: Float[Array, "N M P"]) -> dict[str, Float[Array, ""]]:
        """Return the loss."""
        return {"loss": self.loss(outputs, targets)}


def random_mask(key: Array, images: int, patches: int, visible: int) -> Bool[Array, "N L"]:
    """Return which patches are masked, all but ``visible`` random ones; by the key and the image's number only."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(images))
    return jax.vmap(lambda own: jax.random.permutation(own, patches))(keys) >= visible


def normalized(patches: Float[Array, "N M P"]) -> Float[Array, "N M P"]:
    """Return each patch minus its mean, over its standard deviation."""
    centred = patches - jnp.mean(patches, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPSILON)


@dataclass(frozen=True)
class Mae(ImagePretraining):
    """Masked autoencoders (He et al., arXiv 2111.06377), for ``model=vit``.

    ``mask_ratio``: share of the patches that are masked. ``norm_pix_loss``: see :class:`MaeObjective`.
    ``decoder_width``, ``decoder_layers``, ``decoder_heads``: of the decoder, which transfer drops.
    """

    mask_ratio: float = hparam(0.75, FRACTION)
    norm_pix_loss: bool = hparam(True)
    decoder_width: int = hparam(128, COUNT)
    decoder_layers: int = hparam(4, COUNT)
    decoder_heads: int = hparam(4, COUNT)
    augmentation: Augmentation = hparam(Augmentation(crop=(0.2, 1.0), jitter=0.0, grey=0.0))

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the autoencoder and its loss."""
        if not isinstance(model, Vit):
            raise UserError(
                f"pretrain={option_name(self)} masks patches, and model={option_name(model)} has none; "
                "allowed: model=vit"
            )
        height, width, channels = data.features
        grid, patch = model.sizes.grid(height, width), model.sizes.patch
        visible = self.num_visible(grid[0] * grid[1])
        decoder = ViTConfig(self.decoder_width, self.decoder_layers, self.decoder_heads, 4 * self.decoder_width)
        if decoder.width % 4 or decoder.width % decoder.heads:
            raise UserError(
                f"pretrain.decoder_width is {decoder.width}; allowed: a multiple of 4 and of pretrain.decoder_heads "
                f"({decoder.heads})"
            )
        objective = MaeObjective(self.augmentation, patch, visible, self.norm_pix_loss)
        autoencoder = Autoencoder(model, decoder, grid, visible)
        return PretrainTask(autoencoder, patch * patch * channels, objective, new_head=True)

    def num_visible(self, patches: int) -> int:
        """Return the number of patches of an image that are not masked; refuse none and all."""
        visible = round((1 - self.mask_ratio) * patches)
        if not 0 < visible < patches:
            raise UserError(
                f"pretrain.mask_ratio is {self.mask_ratio:g}, which masks {patches - visible} of an image's {patches} "
                "patches; allowed: a ratio that masks at least one and leaves at least one"
            )
        return visible
