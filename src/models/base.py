"""What the recipe asks of a model: initial parameters, outputs, and its groups from bottom to top."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Array]  # {"Dense_0/kernel": array}: the flat form that everything outside this file handles


@dataclass(frozen=True)
class Model:
    """Base of every model: a file says how to make its module and what its groups are."""

    def module(self, outputs: int) -> nn.Module:
        """Return the linen module with ``outputs`` output units."""
        raise TypeError(f"{type(self).__name__} does not say how to make its module")

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``(name, regular expression on whole paths)`` from bottom to top; the last is the head."""
        raise TypeError(f"{type(self).__name__} does not name its groups")

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters for inputs of shape ``(N, *features)``; only the shape matters."""
        variables = self.module(outputs).init(key, jnp.zeros((1, *features)))
        return flatten_dict(variables["params"], sep="/")  # type: ignore[return-value]

    def apply(self, params: Params, x: Float[Array, "N ..."], outputs: int) -> Float[Array, "N outputs"]:
        """Return the network's outputs for a batch."""
        return self.module(outputs).apply({"params": unflatten_dict(params, sep="/")}, x)  # type: ignore[return-value]


def new_head(model: Model, params: Params, fresh: Params) -> Params:
    """Return ``params`` with the head taken from ``fresh``: what a change of label space asks for."""
    head = re.compile(model.groups()[-1][1])
    return {path: fresh[path] if head.fullmatch(path) else params[path] for path in fresh}
