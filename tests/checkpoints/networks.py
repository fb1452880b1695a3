"""Networks with a convolution in them, and adapters whose B is not zero: with a zero B every claim would hold."""

from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import linen as nn

from src.checkpoints.adapters import LoraAdapter, extract
from src.models.base import Model

HEAD = ("Dense_1/bias", "Dense_1/kernel")
SHAPES = {"Conv_0": (3, 2, 2, 6), "Conv_1": (3, 3, 6, 4), "Dense_0": (4, 7)}


class Small(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        x = nn.relu(nn.Conv(6, (3, 2), strides=(2, 1), padding="VALID", name="Conv_0")(x))
        x = nn.Conv(4, (3, 3), padding="SAME", kernel_dilation=2, use_bias=False, name="Conv_1")(x)
        x = nn.BatchNorm(name="BatchNorm_0")(x)
        x = nn.relu(nn.Dense(7, name="Dense_0")(x))  # with two leading dimensions beside the batch's
        return nn.Dense(self.outputs, name="Dense_1")(x.mean(axis=(1, 2)))


@dataclass(frozen=True)
class SmallNet(Model):
    def module(self, outputs):
        return Small(outputs)

    def groups(self):
        return (("trunk_", "(Conv|BatchNorm).*|Dense_0/.*"), ("head", "Dense_1/.*"))


IMAGES = np.random.default_rng(0).normal(size=(5, 9, 8, 2)).astype(np.float32)


def network(seed=0, outputs=3):
    """Initial parameters; statistics and biases that are not trivial."""
    params = SmallNet().init(jax.random.PRNGKey(seed), IMAGES.shape[1:], outputs)
    rng = np.random.default_rng(seed)
    noise = {p: rng.uniform(0.5, 1.5, v.shape).astype(np.float32) for p, v in params.items() if v.ndim == 1}
    return {path: np.asarray(value) for path, value in params.items()} | noise


def leaves(ranks, seed, dtype=np.float32, size=0.5):
    """Random factors by path: ``{"Conv_0": 3}`` gives them rank 3."""
    rng = np.random.default_rng([7, seed])
    found = {}
    for module, r in ranks.items():
        *window, inputs, outputs = SHAPES[module]
        ones = (1,) * len(window)
        found[f"{module}/lora_a"] = (size * rng.normal(size=(*window, inputs, r))).astype(dtype)
        found[f"{module}/lora_b"] = (size * rng.normal(size=(*ones, r, outputs))).astype(dtype)
    return found


def fresh_head(seed, outputs=3):
    rng = np.random.default_rng([8, seed])
    return {
        "Dense_1/kernel": rng.normal(size=(7, outputs)).astype(np.float32),
        "Dense_1/bias": rng.normal(size=outputs).astype(np.float32),
    }


def adapter(ranks, seed, scales=1.0, base=None, head=True, **options) -> LoraAdapter:
    """An adapter of a base, with a head of its own unless told otherwise."""
    base = network() if base is None else base
    tuned = {**base, **leaves(ranks, seed, **options), **(fresh_head(seed) if head else {})}
    found = extract(tuned, HEAD, alpha=1.0)
    return replace(found, scaling=scales if isinstance(scales, dict) else dict.fromkeys(ranks, scales), meta={})


def dense(a, b):
    """``A B`` by loops over the window: an oracle for the contraction."""
    a, b = a.astype(np.float64), b.astype(np.float64).reshape(b.shape[-2:])
    out = np.zeros((*a.shape[:-1], b.shape[-1]))
    for place in np.ndindex(a.shape[:-2]):
        out[place] = a[place] @ b
    return out
