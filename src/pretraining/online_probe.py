"""A linear classifier that is trained along with a network, on its features and without a gradient to them."""

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
class OnlineProbe:
    """Logistic regression by gradient descent with momentum, updated once in each update of the network.

    As in SimCLR's own code (Chen et al., arXiv 2002.05709), it shows the progress of the pre-training. Features are
    centred by their batch and normalised, so that one learning rate fits any network.

    ``lr``: learning rate. ``features``, ``classes``: shape of the classifier.
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
