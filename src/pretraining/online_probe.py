"""A linear classifier that is trained along with a network, on features from which no gradient goes back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..config.hparams import POSITIVE, hparam
from ..metrics.embeddings import PRECISE, unit
from ..models.base import ApplyOptions, Model

MOMENTUM = 0.9
SIGNALS = ("online_loss", "online_accuracy")


@dataclass(frozen=True)
class Online:
    """Logistic regression by gradient descent with momentum, an update of it in each of the network's.

    As in SimCLR's own code (Chen et al., arXiv 2002.05709), a classifier beside the pre-training shows how it is
    coming along. Features are centred by their batch and divided by their lengths, so that one rate fits any network.

    ``rate``: learning rate. ``features``, ``classes``: sizes of the classifier.
    """

    rate: float = hparam(1.0, POSITIVE, traced=True)
    features: int = 1
    classes: int = 2

    def init_memory(self) -> dict[str, Any]:
        """Return a classifier that has seen nothing: all zeros."""
        zeros = {"kernel": jnp.zeros((self.features, self.classes)), "bias": jnp.zeros(self.classes)}
        return {"weights": zeros, "velocity": jax.tree.map(jnp.zeros_like, zeros)}

    def loss_and_aux(
        self, memory: Any, features: Float[Array, "N F"], labels: Int[Array, " N"]
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """Return the classifier after an update, and its loss (nats) and accuracy on the batch before that."""
        x = jax.lax.stop_gradient(features)
        x = unit(x - jnp.mean(x, axis=0, keepdims=True))
        happened = jax.nn.one_hot(labels, self.classes)
        weights, velocity = jax.lax.stop_gradient((memory["weights"], memory["velocity"]))
        logits = jnp.matmul(x, weights["kernel"], precision=PRECISE) + weights["bias"][None, :]
        wrong = (jax.nn.softmax(logits) - happened) / len(x)
        slopes = {"kernel": jnp.matmul(x.T, wrong, precision=PRECISE), "bias": jnp.sum(wrong, axis=0)}
        velocity = jax.tree.map(lambda old, slope: MOMENTUM * old + slope, velocity, slopes)
        moved = jax.tree.map(lambda value, speed: value - self.rate * speed, weights, velocity)
        loss = -jnp.mean(jnp.sum(happened * jax.nn.log_softmax(logits), axis=-1))
        hits = jnp.argmax(logits, axis=-1) == labels
        signals = {"online_loss": loss, "online_accuracy": jnp.mean(hits.astype(jnp.float32))}
        return {"weights": moved, "velocity": velocity}, signals


@functools.cache
def feature_count(model: Model, features: tuple[int, ...]) -> int:
    """Return how many features a network has below its head, for inputs of a shape."""

    def below(key: Array, x: Array) -> Array:
        return model.apply(model.init(key, features, 1), x, 1, ApplyOptions(stop=len(model.groups()) - 1))

    rows = jax.ShapeDtypeStruct((2, *features), model.input_dtype)
    return jax.eval_shape(below, jax.eval_shape(lambda: jax.random.PRNGKey(0)), rows).shape[-1]
