"""``pretrain=simclr``: two random views of an image are to be more alike than those of two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from src.config import COUNT, knob
from src.errors import UserError
from src.models.base import Model
from src.models.projected import Projected
from src.objectives.augmentation import Augmentation
from src.objectives.base import Draw, Learned, Lesson, Network, Objective
from src.objectives.contrastive import Shape, Temperature, nt_xent, similarities
from src.objectives.images import FromImages, no_labels
from src.results.representations import alignment, rankme, spread, uniformity
from src.results.stability import stability_warnings

if TYPE_CHECKING:
    from src.data.base import Transfer

SIGNALS = ("temperature", "pos_similarity", "neg_similarity", "spread")


@dataclass(frozen=True)
class Views(Objective):
    """Base of what compares views of images: rows are drawn as pairs of views, ``(N, 2, H, W, C)``."""

    temperature: Temperature = knob()
    augmentation: Augmentation = knob()
    chunk: int | None = None

    corrupts = True
    signals = SIGNALS

    def corrupt(self, key: Array, x: UInt8[Array, "N H W C"], targets: Array) -> tuple[Array, Array]:
        """Return two views of each image; labels are not looked at."""
        return jnp.stack(self.augmentation.two_views(key, x), axis=1), targets

    def through(self, run: Callable[[Array], Array], x: Float[Array, "N 2 H W C"]) -> Float[Array, "N 2 D"]:
        """Return the embeddings of both views of each row."""
        return run(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1)

    def loss(self, outputs: Float[Array, "N D"], targets: Array, smoothing: Any = None) -> Float[Array, ""]:
        """Refuse: a loss of views is :meth:`learn`'s."""
        raise no_labels()

    def metrics(self, outputs: Float[Array, "N 2 D"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return NT-Xent over all rows at the last temperature, and how embeddings fill their space."""
        a, b = outputs[:, 0], outputs[:, 1]
        loss = nt_xent(a, b, self.temperature.at(1.0, 1.0), chunk=self.chunk or 256)
        both = jnp.concatenate([a, b])
        found = {"loss": loss, **similarities(a, b), "spread": spread(both), "rankme": rankme(both)}
        return found | {"alignment": alignment(a, b), "uniformity": uniformity(both)}


@dataclass(frozen=True)
class Pairs(Views):
    """SimCLR's loss of a batch: every other image of it is a negative."""

    def learn(
        self, network: Network, batch: tuple[Array, Array], draw: Draw, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], Learned]:
        """Return NT-Xent of both views, which pass the network as one batch of 2N."""
        views = jnp.concatenate(self.augmentation.two_views(draw.key, batch[0]))
        z, seen = network.run(views)
        a, b = jnp.split(z, 2)
        temperature = self.temperature.at(draw.step, draw.steps)
        return nt_xent(a, b, temperature, chunk=self.chunk), Learned(seen, memory, signals_of(a, b, temperature))


def signals_of(a: Float[Array, "N D"], b: Float[Array, "N D"], temperature: Any) -> dict[str, Float[Array, ""]]:
    """Return what is logged of an update (docs/self_supervision.md says what it means)."""
    a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
    both = {**similarities(a, b), "spread": spread(jnp.concatenate([a, b]))}
    return {"temperature": jnp.asarray(temperature, jnp.float32), **both}


@dataclass(frozen=True)
class Contrastive(FromImages):
    """Base of the options that compare views.

    ``hidden``, ``outputs``: units of the projection head, which is dropped for transfer; ``hidden=None`` leaves it one
    layer. ``temperature`` and ``augmentation``: see their classes.
    """

    temperature: Temperature = knob(Temperature(Shape.constant, cold=0.5))
    augmentation: Augmentation = knob(Augmentation())
    hidden: int | None = knob(128, COUNT)
    outputs: int = knob(64, COUNT)

    def negatives(self, batch: int) -> int:
        """Return how many embeddings each is told from."""
        raise TypeError(f"{type(self).__name__} does not say how many negatives it has")

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return what the rows warn of: blown-up gradients, embeddings that collapse."""
        return stability_warnings(rows, epoch, self.negatives(batch), self.outputs)


@dataclass(frozen=True)
class Simclr(Contrastive):
    """SimCLR (Chen et al., arXiv 2002.05709). ``chunk``: rows of similarities computed at once, ``None`` for all."""

    chunk: int | None = knob(None, COUNT)

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the projected network and NT-Xent."""
        objective = Pairs(self.temperature, self.augmentation, self.chunk)
        return Lesson(Projected(model, self.hidden), self.outputs, objective, new_head=True)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what are no images, and batches without negatives."""
        super().check(model, data, batch)
        if batch < 2:
            raise UserError(
                "pre-training's batch_size is 1, which leaves an image nothing to be told from; allowed: at least 2"
            )

    def negatives(self, batch: int) -> int:
        """Return both views of all other images."""
        return 2 * batch - 2
