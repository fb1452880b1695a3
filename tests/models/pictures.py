"""Random images, small networks for them, and two updates of a strategy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from src.data.base import Transfer
from src.models.base import ApplyOptions, is_statistic
from src.objectives.supervised import Classification
from src.optim.optimizers import Adam
from src.optim.schedules import Constant
from src.training.stage import Stage, added, frozen_paths, param_labels
from src.training.step import eval_params, start, update
from src.types import Split
from tests.checkpoints.test_huggingface_vision import FIXTURES

OUTPUTS = 3


def images(count=4, side=12, channels=3, seed=0):
    """Bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def transfer(side=12):
    """One task of three classes, as its own source."""
    rng = np.random.default_rng(1)

    def part(rows):
        return Split(images(rows, side, seed=rows), rng.integers(0, OUTPUTS, rows).astype(np.int32))

    parts = {"train": part(8), "val": part(4), "test": part(5)}
    return Transfer("classification", parts, parts, OUTPUTS, OUTPUTS, new_head=False)


def parameters(model, side=12, seed=0):
    """Random parameters in which nothing is zero or one by its initialisation; variances stay positive."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), (side, side, 3), OUTPUTS))
    rng = np.random.default_rng(seed)

    def values(path, shape):
        if path.endswith(("/var", "/scale")):
            return rng.uniform(0.5, 1.5, shape)
        return rng.normal(0, 0.3 if len(shape) < 4 else 1 / np.sqrt(np.prod(shape[:-1])), shape)

    return {path: jnp.asarray(values(path, leaf.shape), jnp.float32) for path, leaf in shapes.items()}


def two_parts(model, params, x, training):
    """Yield for each cut the whole pass and what its two parts make of it, outputs and moved statistics."""
    moving = frozenset(filter(is_statistic, params)) if training else frozenset()
    how = ApplyOptions(key=jax.random.PRNGKey(3) if training else None, mutable=moving)
    whole = model.forward(params, x, OUTPUTS, how)
    for k in range(len(model.groups()) + 1):
        middle, below = model.forward(params, x, OUTPUTS, how._replace(stop=k))
        if k == len(model.groups()):
            yield k, whole, (middle, below)
        else:
            both, above = model.forward(params, middle, OUTPUTS, how._replace(start=k))
            seen = {p: below[p] if np.any(below[p] != params[p]) else above[p] for p in moving}
            yield k, whole, (both, seen)


def two_updates(model, strategy, rows):
    """Train every phase twice; return the paths that were to move, those that did, and all parameters before and after.

    Not compiled: each phase is another program.
    """
    stage = Stage(model, OUTPUTS, Classification(), strategy, Adam(), Constant(), lr=0.01, steps=2, seed=0)
    before = parameters(model)
    params, moving, changed = dict(before), set(), set()
    for phase in range(len(strategy.tables(model.groups()))):
        stage = replace(stage, phase=phase)
        params |= added(stage, params)
        moving |= set(param_labels(stage, params).trainable)
        state = start(stage, params)
        frozen = {path: params[path] for path in frozen_paths(stage, params)}
        for number in range(2):
            state, losses = update(stage, state, frozen, rows, number)
            assert np.isfinite(losses.loss)
        after = eval_params(state)
        changed |= {path for path, leaf in after.items() if not np.array_equal(leaf, params[path])}
        params |= after
    return moving, changed, before, params


__all__ = ["FIXTURES", "OUTPUTS", "images", "parameters", "transfer", "two_parts", "two_updates"]
