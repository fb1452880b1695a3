"""``pretrain=mae``: say what the hidden patches of an image are (masked autoencoders)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ..config.hparams import COUNT, FRACTION, hparam
from ..config.schema import option_name
from ..errors import UserError
from ..models.autoencoder import MASKED_PIXEL, Autoencoder, patchify, unpatchify
from ..models.base import Model
from ..models.layers import take_rows
from ..models.vit import Sizes, Vit
from ..objectives.base import Network, Objective, StepAux, StepContext
from .augmentation import Augmentation, to_float
from .base import PretrainTask
from .from_images import FromImages

if TYPE_CHECKING:
    from ..data.base import Transfer

FLAT = 1e-6  # added to the variance of a patch's pixels, from 0 to 1, as those of a flat one have none


@dataclass(frozen=True)
class Patches(Objective):
    """The mean squared error of hidden patches; targets and outputs are ``(N, hidden, P)``, as the patches lie.

    ``seen``: patches of an image that are not hidden. ``normalize``: whether what is to be said of a patch is its
    pixels less their mean over their standard deviation (of all P numbers; He et al., section 4.1).
    """

    augmentation: Augmentation = hparam()
    patch: int = 4
    seen: int = 1
    normalize: bool = True

    corrupts = True
    raw_inputs = False

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss on random views; an evaluation takes images as they are."""
        viewing, hiding = jax.random.split(draw.key)
        view = self.augmentation.augment(viewing, batch[0])
        return super().loss_and_aux(network, (view, batch[1]), draw._replace(key=hiding), memory, smoothing)

    def corrupt(self, key: Array, x: Shaped[Array, "N H W C"], targets: Array) -> tuple[Array, Array]:
        """Return images with hidden patches, and what these are; labels are not looked at."""
        patches = patchify(to_float(x), self.patch)
        images, count, _ = patches.shape
        hidden = hide(key, images, count, self.seen)
        what = take_rows(patches, jnp.argsort(~hidden, stable=True)[:, : count - self.seen])
        left = jnp.where(hidden[..., None], MASKED_PIXEL, patches)
        return unpatchify(left, x.shape, self.patch), normalized(what) if self.normalize else what

    def loss(self, outputs: Float[Array, "N M P"], targets: Float[Array, "N M P"], smoothing: Any = None) -> Array:
        """Return the mean over pixels and hidden patches."""
        return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets))

    def metrics(self, outputs: Float[Array, "N M P"], targets: Float[Array, "N M P"]) -> dict[str, Float[Array, ""]]:
        """Return the loss."""
        return {"loss": self.loss(outputs, targets)}


def hide(key: Array, images: int, patches: int, seen: int) -> Bool[Array, "N L"]:
    """Return which patches of each image are hidden: all but ``seen`` random ones.

    An image's depend on the key, on its number and on nothing else of the batch.
    """
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(images))
    return jax.vmap(lambda own: jax.random.permutation(own, patches))(keys) >= seen


def normalized(patches: Float[Array, "N M P"]) -> Float[Array, "N M P"]:
    """Return each patch less its mean, over its standard deviation."""
    away = patches - jnp.mean(patches, axis=-1, keepdims=True)
    return away / jnp.sqrt(jnp.mean(jnp.square(away), axis=-1, keepdims=True) + FLAT)


@dataclass(frozen=True)
class Mae(FromImages):
    """Masked autoencoders (He et al., arXiv 2111.06377), for ``model=vit``.

    ``rate``: share of the patches that are hidden. ``normalize``: see :class:`Patches`. ``decoder_width``,
    ``decoder_layers``, ``decoder_heads``: of the decoder, which is dropped for transfer.
    """

    rate: float = hparam(0.75, FRACTION)
    normalize: bool = hparam(True)
    decoder_width: int = hparam(128, COUNT)
    decoder_layers: int = hparam(4, COUNT)
    decoder_heads: int = hparam(4, COUNT)
    augmentation: Augmentation = hparam(Augmentation(crop=(0.2, 1.0), jitter=0.0, grey=0.0))

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the autoencoder and its loss.

        Raises:
            UserError: a model without patches, a rate that hides none or all, or a decoder that does not add up.
        """
        if not isinstance(model, Vit):
            raise UserError(
                f"pretrain={option_name(self)} hides patches, and model={option_name(model)} has none; "
                "allowed: model=vit"
            )
        height, width, channels = data.features
        grid, patch = model.sizes.grid(height, width), model.sizes.patch
        seen = self.seen(grid[0] * grid[1])
        decoder = Sizes(self.decoder_width, self.decoder_layers, self.decoder_heads, 4 * self.decoder_width)
        if decoder.width % 4 or decoder.width % decoder.heads:
            raise UserError(
                f"pretrain.decoder_width is {decoder.width}; allowed: a multiple of 4 and of pretrain.decoder_heads "
                f"({decoder.heads})"
            )
        objective = Patches(self.augmentation, patch, seen, self.normalize)
        return PretrainTask(Autoencoder(model, decoder, grid, seen), patch * patch * channels, objective, new_head=True)

    def seen(self, patches: int) -> int:
        """Return how many patches of an image are not hidden.

        Raises:
            UserError: none, or all.
        """
        seen = round((1 - self.rate) * patches)
        if not 0 < seen < patches:
            raise UserError(
                f"pretrain.rate is {self.rate:g}, which hides {patches - seen} of an image's {patches} patches; "
                "allowed: a rate that hides at least one and leaves at least one"
            )
        return seen
