"""``pretrain=simclr``: embeddings of two views of an image are to be closer than those of different images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ..config.hparams import COUNT, POSITIVE, hparam
from ..data.base import Transfer
from ..errors import UserError
from ..metrics.embeddings import PRECISE, alignment, lidar, rankme, spread, uniformity, unit
from ..metrics.stability import stability_facts, stability_warnings
from ..models.base import ApplyOptions, Model
from ..models.projected import Projected
from ..objectives.base import NetworkFns, Objective, StepAux, StepContext
from ..types import Params
from .augmentation import Augmentation
from .base import Features, PretrainTask
from .contrastive import Shape, Temperature, nt_xent, similarities
from .feature_eval import ImagePretraining, validation_splits

SAMPLES, VIEWS = 1000, 10  # images and views of each for LiDAR (the paper takes some 50 views)
VIEWS_KEY = 0x71E35  # of these views: the same in every run, so that numbers can be compared
SIGNALS = ("temperature", "pos_similarity", "neg_similarity", "spread")
MOMENTUM = 0.9
ONLINE_SIGNALS = ("online_loss", "online_accuracy")  # of the online probe


@dataclass(frozen=True)
class OnlineProbe:
    """Logistic regression by gradient descent with momentum, updated once in each update of the network.

    As in SimCLR's own code, it shows the progress of the pre-training. Features are centred by their batch and
    normalised, so that one learning rate ``lr`` fits any network.
    """

    lr: float = hparam(1.0, POSITIVE, traced=True)
    features: int = 1
    classes: int = 2

    def init_memory(self) -> dict[str, Any]:
        """Return the first classifier and its velocity, all zeros."""
        zeros = {"kernel": jnp.zeros((self.features, self.classes)), "bias": jnp.zeros(self.classes)}
        return {"weights": zeros, "velocity": jax.tree.map(jnp.zeros_like, zeros)}

    def update(
        self, memory: Any, features: Float[Array, "N F"], labels: Int[Array, " N"]
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """Return the updated classifier, and its loss (nats) and accuracy on the batch before the update."""
        x = jax.lax.stop_gradient(features)
        x = unit(x - jnp.mean(x, axis=0, keepdims=True))
        one_hot = jax.nn.one_hot(labels, self.classes)
        weights, velocity = jax.lax.stop_gradient((memory["weights"], memory["velocity"]))
        logits = jnp.matmul(x, weights["kernel"], precision=PRECISE) + weights["bias"][None, :]
        residual = (jax.nn.softmax(logits) - one_hot) / len(x)
        grads = {"kernel": jnp.matmul(x.T, residual, precision=PRECISE), "bias": jnp.sum(residual, axis=0)}
        velocity = jax.tree.map(lambda old, grad: MOMENTUM * old + grad, velocity, grads)
        updated = jax.tree.map(lambda value, speed: value - self.lr * speed, weights, velocity)
        loss = -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), axis=-1))
        hits = jnp.argmax(logits, axis=-1) == labels
        signals = {"online_loss": loss, "online_accuracy": jnp.mean(hits.astype(jnp.float32))}
        return {"weights": updated, "velocity": velocity}, signals


@functools.cache
def feature_count(model: Model, features: tuple[int, ...]) -> int:
    """Return the number of a network's features below its head, for inputs of a shape."""

    def below(key: Array, x: Array) -> Array:
        return model.apply(model.init(key, features, 1), x, 1, ApplyOptions(stop=len(model.groups()) - 1))

    rows = jax.ShapeDtypeStruct((2, *features), model.input_dtype)
    return jax.eval_shape(below, jax.eval_shape(lambda: jax.random.PRNGKey(0)), rows).shape[-1]


@dataclass(frozen=True)
class ContrastiveObjective(Objective):
    """Base of the objectives over pairs of views, ``(N, 2, H, W, C)``."""

    temperature: Temperature = hparam()
    augmentation: Augmentation = hparam()
    chunk: int | None = None
    online: OnlineProbe | None = None

    corrupts = True
    signals = SIGNALS

    def metric_names(self) -> tuple[str, ...]:
        """Return the signals, with those of the online probe."""
        return self.signals + (() if self.online is None else ONLINE_SIGNALS)

    def init_memory(self, key: Array, params: Params, outputs: int) -> dict[str, Any]:
        """Return the online probe's state."""
        return {} if self.online is None else {"online": self.online.init_memory()}

    def embed(self, network: NetworkFns, x: Array, splits: int = 1) -> tuple[Array, Array | None, Params]:
        """Return a batch's embeddings, its features if there is an online probe, and batch statistics."""
        if self.online is None:
            z, statistics = in_splits(network.run, x, splits)
            return z, None, statistics
        (h, z), statistics = in_splits(network.features_and_logits, x, splits)
        return z, h, statistics

    def update_probe(
        self, memory: Any, features: Array | None, labels: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the online probe's new state and its signals."""
        if self.online is None or features is None:
            return {}, {}
        probe, signals = self.online.update(memory["online"], features, labels)
        return {"online": probe}, signals

    def corrupt(self, key: Array, x: UInt8[Array, "N H W C"], targets: Array) -> tuple[Array, Array]:
        """Return two views of each image, and the labels."""
        return jnp.stack(self.augmentation.two_views(key, x), axis=1), targets

    def apply_eval(self, run: Callable[[Array], Array], x: Float[Array, "N 2 H W C"]) -> Float[Array, "N 2 D"]:
        """Return the embeddings of both views of each row."""
        return run(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:2], -1)

    def metrics(self, outputs: Float[Array, "N 2 D"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return NT-Xent over all rows at the last temperature, and the geometry of the embeddings."""
        a, b = outputs[:, 0], outputs[:, 1]
        loss = nt_xent(a, b, self.temperature.at(1.0, 1.0), chunk=self.chunk or 256)
        both = jnp.concatenate([a, b])
        found = {"loss": loss, **similarities(a, b), "spread": spread(both), "rankme": rankme(both)}
        return found | {"alignment": alignment(a, b), "uniformity": uniformity(both)}


@dataclass(frozen=True)
class SimclrObjective(ContrastiveObjective):
    """NT-Xent: the negatives of an image are the other images of its batch."""

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return NT-Xent of both views, which pass the network as one batch of 2N."""
        views = jnp.concatenate(self.augmentation.two_views(context.key, batch[0]))
        z, h, statistics = self.embed(network, views)
        a, b = jnp.split(z, 2)
        temperature = self.temperature.at(context.step, context.steps)
        probe, signals = self.update_probe(memory, h, jnp.concatenate([batch[1], batch[1]]))
        signals |= contrastive_signals(a, b, temperature)
        return nt_xent(a, b, temperature, chunk=self.chunk), StepAux(statistics, probe, signals)


def in_splits(run: Any, x: Float[Array, "N ..."], splits: int) -> tuple[Any, Params]:
    """Return the outputs of a batch whose splits are batch-normalised separately, and their mean statistics."""
    if splits == 1:
        return run(x)
    outputs, statistics = jax.vmap(run)(x.reshape(splits, -1, *x.shape[1:]))
    whole = jax.tree.map(lambda leaf: leaf.reshape(len(x), -1), outputs)
    return whole, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), statistics)


def contrastive_signals(a: Float[Array, "N D"], b: Float[Array, "N D"], temperature: Any) -> dict[str, Array]:
    """Return the logged values of an update (docs/self_supervision.md explains them)."""
    a, b = jax.lax.stop_gradient(a), jax.lax.stop_gradient(b)
    geometry = {**similarities(a, b), "spread": spread(jnp.concatenate([a, b]))}
    return {"temperature": jnp.asarray(temperature, jnp.float32), **geometry}


@dataclass(frozen=True)
class Contrastive(ImagePretraining):
    """Base of SimCLR and MoCo.

    ``proj_hidden_dim``, ``proj_output_dim``: of the projection head, which transfer drops; ``proj_hidden_dim=None``
    makes it one layer. ``online_probe_lr``: learning rate of a linear classifier on the features that is trained along
    with the network; ``None``: there is none. ``temperature`` and ``augmentation``: see their classes.
    """

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.5))
    augmentation: Augmentation = hparam(Augmentation())
    proj_hidden_dim: int | None = hparam(128, COUNT)
    proj_output_dim: int = hparam(64, COUNT)
    online_probe_lr: float | None = hparam(None, POSITIVE, traced=True)

    def objective(self, online: OnlineProbe | None) -> ContrastiveObjective:
        """Return what is minimised."""
        raise TypeError(f"{type(self).__name__} has no objective")

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with a projection head, and the objective."""
        online = None
        if self.online_probe_lr is not None:
            online = OnlineProbe(self.online_probe_lr, feature_count(model, data.features), data.source_outputs)
        projected = Projected(model, self.proj_hidden_dim)
        return PretrainTask(projected, self.proj_output_dim, self.objective(online), new_head=True)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data other than images, and an online probe without classes."""
        super().check(model, data, batch)
        if self.online_probe_lr is not None and data.source_kind != "classification":
            raise UserError(
                f"pretrain.online_probe_lr is {self.online_probe_lr}, and the data's source task is "
                f"{data.source_kind}; allowed: null, or data whose source task is a classification"
            )

    def negatives(self, batch: int) -> int:
        """Return the number of negatives of each embedding."""
        raise TypeError(f"{type(self).__name__} does not say how many negatives it has")

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return warnings about large gradients and collapsing embeddings."""
        return stability_warnings(rows, epoch, self.negatives(batch), self.proj_output_dim)

    def stability(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> dict[str, float]:
        """Return :func:`~src.metrics.stability.stability_facts`."""
        return stability_facts(rows, epoch, self.negatives(batch), self.proj_output_dim)

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return the accuracies by the features, and LiDAR of the test part's embeddings."""
        found = self.embedding_metrics(features, data.source["test"].x)
        return {**super().evaluate_features(features, data), "source_test_lidar": found["lidar"]}

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return the accuracies by the features, and the geometry of the embeddings."""
        accuracies = super().evaluate_features_during(features, data, step)
        return {**accuracies, **self.embedding_metrics(features, validation_splits(data).test.x)}

    def embedding_metrics(self, features: Features, x: Any) -> dict[str, float]:
        """Return :func:`embedding_geometry` of some images, with the same random views in every call."""
        x = x[:SAMPLES]
        keys = jax.random.split(jax.random.PRNGKey(VIEWS_KEY), VIEWS)
        views = [features.embedded(np.asarray(self.augmentation.augment(key, x))) for key in keys]
        return {name: float(value) for name, value in embedding_geometry(np.stack(views, axis=1)).items()}


@jax.jit
def embedding_geometry(z: Float[Array, "N Q D"]) -> dict[str, Float[Array, ""]]:
    """Return LiDAR of Q views of N images; of the first two views RankMe, alignment and uniformity."""
    a, b = z[:, 0], z[:, 1]
    both = jnp.concatenate([a, b])
    found = {"rankme": rankme(both), "lidar": lidar(z), "alignment": alignment(a, b)}
    return found | {"uniformity": uniformity(both)}


@dataclass(frozen=True)
class Simclr(Contrastive):
    """SimCLR (Chen et al., arXiv 2002.05709). ``chunk``: rows of similarities computed at once, ``None`` for all."""

    chunk: int | None = hparam(None, COUNT)

    def objective(self, online: OnlineProbe | None) -> SimclrObjective:
        """Return NT-Xent."""
        return SimclrObjective(self.temperature, self.augmentation, self.chunk, online)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data other than images, and batches without negatives."""
        super().check(model, data, batch)
        if batch < 2:
            raise UserError("pre-training's batch_size is 1, which has no negatives; allowed: at least 2")

    def negatives(self, batch: int) -> int:
        """Return both views of all other images."""
        return 2 * batch - 2
