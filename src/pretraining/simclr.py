"""``pretrain=simclr``: two random views of an image are to be more alike than those of two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ..config.hparams import COUNT, POSITIVE, hparam
from ..errors import UserError
from ..metrics.embeddings import alignment, lidar, rankme, spread, uniformity
from ..metrics.stability import stability_facts, stability_warnings
from ..models.base import Model
from ..models.projected import Projected
from ..objectives.base import Network, Objective, StepAux, StepContext
from ..types import Params
from .augmentation import Augmentation
from .base import Features, PretrainTask
from .contrastive import Shape, Temperature, nt_xent, similarities
from .feature_eval import on_the_way
from .from_images import FromImages
from .online_probe import SIGNALS as ONLINE_SIGNALS
from .online_probe import Online, feature_count

if TYPE_CHECKING:
    from ..data.base import Transfer

SAMPLES, VIEWS = 1000, 10  # images and views of each that LiDAR is measured with (the paper takes some 50 views)
VIEWS_KEY = 0x71E35  # of these views: the same in every run, so that numbers can be compared
SIGNALS = ("temperature", "pos_similarity", "neg_similarity", "spread")


@dataclass(frozen=True)
class Views(Objective):
    """Base of what compares views of images: rows are drawn as pairs of views, ``(N, 2, H, W, C)``."""

    temperature: Temperature = hparam()
    augmentation: Augmentation = hparam()
    chunk: int | None = None
    online: Online | None = None  # a classifier beside it

    corrupts = True
    signals = SIGNALS

    def metric_names(self) -> tuple[str, ...]:
        """Return the signals, those of the classifier where there is one."""
        return self.signals + (() if self.online is None else ONLINE_SIGNALS)

    def init_memory(self, key: Array, params: Params, outputs: int) -> dict[str, Any]:
        """Return the classifier, where there is one."""
        return {} if self.online is None else {"online": self.online.init_memory()}

    def embed(self, network: Network, x: Array, parts: int = 1) -> tuple[Array, Array | None, Params]:
        """Return a batch's embeddings, the features of the same pass where a classifier needs them, and statistics."""
        if self.online is None:
            z, seen = in_parts(network.run, x, parts)
            return z, None, seen
        (h, z), seen = in_parts(network.features_and_logits, x, parts)
        return z, h, seen

    def beside(self, memory: Any, features: Array | None, labels: Array) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what the classifier leaves in the memory, and its signals."""
        if self.online is None or features is None:
            return {}, {}
        own, signals = self.online.loss_and_aux(memory["online"], features, labels)
        return {"online": own}, signals

    def corrupt(self, key: Array, x: UInt8[Array, "N H W C"], targets: Array) -> tuple[Array, Array]:
        """Return two views of each image; labels are not looked at."""
        return jnp.stack(self.augmentation.two_views(key, x), axis=1), targets

    def apply_eval(self, run: Callable[[Array], Array], x: Float[Array, "N 2 H W C"]) -> Float[Array, "N 2 D"]:
        """Return the embeddings of both views of each row."""
        return run(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1)

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

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return NT-Xent of both views, which pass the network as one batch of 2N."""
        views = jnp.concatenate(self.augmentation.two_views(draw.key, batch[0]))
        z, h, seen = self.embed(network, views)
        a, b = jnp.split(z, 2)
        temperature = self.temperature.at(draw.step, draw.steps)
        kept, signals = self.beside(memory, h, jnp.concatenate([batch[1], batch[1]]))
        signals |= signals_of(a, b, temperature)
        return nt_xent(a, b, temperature, chunk=self.chunk), StepAux(seen, kept, signals)


def in_parts(run: Any, x: Float[Array, "N ..."], parts: int) -> tuple[Any, Params]:
    """Return the outputs of a batch whose parts are normalised each by itself, and the mean of their statistics."""
    if parts == 1:
        return run(x)
    outputs, seen = jax.vmap(run)(x.reshape(parts, -1, *x.shape[1:]))
    whole = jax.tree.map(lambda leaf: leaf.reshape(len(x), -1), outputs)
    return whole, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), seen)


def signals_of(a: Float[Array, "N D"], b: Float[Array, "N D"], temperature: Any) -> dict[str, Float[Array, ""]]:
    """Return what is logged of an update (docs/self_supervision.md says what it means)."""
    a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
    both = {**similarities(a, b), "spread": spread(jnp.concatenate([a, b]))}
    return {"temperature": jnp.asarray(temperature, jnp.float32), **both}


@dataclass(frozen=True)
class Contrastive(FromImages):
    """Base of the options that compare views.

    ``hidden``, ``outputs``: units of the projection head, which is dropped for transfer; ``hidden=None`` leaves it one
    layer. ``online_probe``: learning rate of a linear classifier on the features, trained beside; ``None``: none.
    ``temperature`` and ``augmentation``: see their classes.
    """

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.5))
    augmentation: Augmentation = hparam(Augmentation())
    hidden: int | None = hparam(128, COUNT)
    outputs: int = hparam(64, COUNT)
    online_probe: float | None = hparam(None, POSITIVE, traced=True)

    def online(self, model: Model, data: Transfer) -> Online | None:
        """Return the classifier that is trained beside, where one is asked for."""
        if self.online_probe is None:
            return None
        return Online(self.online_probe, feature_count(model, data.features), data.source_outputs)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what are no images, and a classifier where the source task has no classes."""
        super().check(model, data, batch)
        if self.online_probe is not None and data.source_kind != "classification":
            raise UserError(
                f"pretrain.online_probe is {self.online_probe}, and the data's source task is {data.source_kind}; "
                "allowed: null, or data whose source task is a classification"
            )

    def negatives(self, batch: int) -> int:
        """Return how many embeddings each is told from."""
        raise TypeError(f"{type(self).__name__} does not say how many negatives it has")

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return what the rows warn of: blown-up gradients, embeddings that collapse."""
        return stability_warnings(rows, epoch, self.negatives(batch), self.outputs)

    def stability(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> dict[str, float]:
        """Return the largest gradient of the first epoch, whether embeddings collapsed, and what is compared with."""
        return stability_facts(rows, epoch, self.negatives(batch), self.outputs)

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return what the features are worth, and LiDAR of the test part's embeddings."""
        found = self.cloud(features, data.source["test"].x)
        return {**super().evaluate_features(features, data), "source_test_lidar": found["lidar"]}

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return what the features are worth by now, and how the embeddings fill their space."""
        return {
            **super().evaluate_features_during(features, data, step),
            **self.cloud(features, on_the_way(data).rows.x),
        }

    def cloud(self, features: Features, x: Any) -> dict[str, float]:
        """Return how the embeddings of some images' views, the same whenever they are asked for, fill their space."""
        x = x[:SAMPLES]
        keys = jax.random.split(jax.random.PRNGKey(VIEWS_KEY), VIEWS)
        views = [features.embedded(np.asarray(self.augmentation.augment(key, x))) for key in keys]
        return {name: float(value) for name, value in shape_of(np.stack(views, axis=1)).items()}


@jax.jit
def shape_of(z: Float[Array, "N Q D"]) -> dict[str, Float[Array, ""]]:
    """Return LiDAR of all views of some images, and of the first two what :meth:`Views.metrics` has."""
    a, b = z[:, 0], z[:, 1]
    both = jnp.concatenate([a, b])
    found = {"rankme": rankme(both), "lidar": lidar(z), "alignment": alignment(a, b)}
    return found | {"uniformity": uniformity(both)}


@dataclass(frozen=True)
class Simclr(Contrastive):
    """SimCLR (Chen et al., arXiv 2002.05709). ``chunk``: rows of similarities computed at once, ``None`` for all."""

    chunk: int | None = hparam(None, COUNT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the projected network and NT-Xent."""
        objective = Pairs(self.temperature, self.augmentation, self.chunk, self.online(model, data))
        return PretrainTask(Projected(model, self.hidden), self.outputs, objective, new_head=True)

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
