"""Networks and passes for the tests of strategies that inject parameters."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from src.models.base import PLAIN, ApplyOptions, Model


class Block(nn.Module):
    """Two convolutions, the first with a stride and uneven padding, around a shortcut."""

    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), strides=(2, 1), padding=((1, 0), (2, 1)))(x)
        y = nn.relu(nn.BatchNorm()(y))
        y = nn.Conv(self.width, (3, 3), padding="CIRCULAR", use_bias=False)(y)
        return nn.relu(y + nn.Conv(self.width, (1, 1), strides=(2, 1), padding=((0, 0), (1, 0)), name="shortcut")(x))


class Tower(nn.Module):
    """Two blocks of different width, mean over places, a dense head."""

    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        stop = 3 if stop is None else stop
        for i, width in enumerate((6, 10)):
            if start <= i < stop:
                x = Block(width, name=f"block_{i}")(x)
        return nn.Dense(self.outputs, name="head")(x.mean((1, 2))) if stop > 2 else x


@dataclass(frozen=True)
class Convolutional(Model):
    """The tower; Houlsby's arrangement has a point inside each block and one around it."""

    def module(self, outputs):
        return Tower(outputs)

    def groups(self):
        return (("block_0", "block_0/.*"), ("block_1", "block_1/.*"), ("head", "head/.*"))

    def adapter_points(self):
        return tuple((f"block_{i}/Conv_0", f"block_{i}") for i in range(2))


@dataclass(frozen=True)
class Encoder(Model):
    """The shapes of BERT's twelve layers (768 wide, 3072 in the middle); nothing runs."""

    def groups(self):
        return (*((f"layer_{i}", f"layer_{i}/.*") for i in range(12)), ("head", "head/.*"))

    def adapter_points(self):
        return tuple((f"layer_{i}/o", f"layer_{i}/down") for i in range(12))

    def shapes(self):
        shapes = {"head/kernel": (768, 2), "head/bias": (2,)}
        for i in range(12):
            kernels = dict.fromkeys("qkvo", (768, 768)) | {"up": (768, 3072), "down": (3072, 768)}
            for name, shape in kernels.items():
                shapes[f"layer_{i}/{name}/kernel"] = shape
                shapes[f"layer_{i}/{name}/bias"] = shape[1:]
        return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}


def shapes_added(strategy, model, params):
    """Return the shapes that a strategy adds, as before any training."""
    return jax.eval_shape(lambda key, params: strategy.prepare(key, params, model), jax.random.PRNGKey(0), params)


@functools.cache
def initial(model, features, outputs):
    """Return initial parameters; as one program, and once, because tests ask for few different ones."""
    return jax.device_get(jax.jit(lambda key: model.init(key, features, outputs))(jax.random.PRNGKey(0)))


def started(model, features, outputs):
    """Return initial parameters in which nothing is zero or one by its initialisation."""
    params = initial(model, features, outputs)
    return {path: jnp.asarray(leaf + abs(noise(path, leaf.shape, 0.1))) for path, leaf in params.items()}


def noise(path, shape, scale=0.3):
    """Return the same random values for the same path."""
    seed = np.frombuffer(path.encode(), np.uint8)
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prepared(strategy, model, params, shake=0.0):
    """Return what a strategy adds, every leaf moved by random values of size ``shake``."""
    added = jax.jit(lambda key, params: strategy.prepare(key, params, model))(jax.random.PRNGKey(1), params)
    return {path: jnp.asarray(np.asarray(leaf) + noise(path, leaf.shape, shake)) for path, leaf in added.items()}


def run(strategy, model, params, x, outputs, key=None):
    """Return the outputs of a pass in which a strategy's leaves act."""
    how = ApplyOptions(adapter_params=frozenset(strategy.adapter_params), wrap_call=strategy.wrap_call, key=key)
    return model.apply(params, x, outputs, how)


def compiled(strategy, model, params, x, outputs, key=None):
    """Return the same, computed by one program: much faster than step by step where a test needs a pass only once."""
    return jax.jit(lambda *arrays: run(strategy, model, *arrays[:2], outputs, arrays[2]))(params, x, key)


def plain(model, params, x, outputs, how=PLAIN):
    """Return the outputs of the model itself, computed by one program."""
    return jax.jit(lambda params, x: model.apply(params, x, outputs, how))(params, x)


def count(shapes):
    """Return how many numbers there are."""
    return sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
