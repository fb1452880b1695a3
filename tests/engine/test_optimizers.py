"""The chain against Optax's ready-made optimizers (same bits) and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from src.engine.optimizers import Adam, Adamw, Form, Momentum, Sgd, transformation


def walk(chain, steps=30):
    """Return parameters after some updates under gradients that depend on them."""
    params = {"a": jnp.linspace(-1.0, 1.0, 7), "b": jnp.linspace(2.0, 3.0, 4)}

    @jax.jit
    def run(params):
        state = chain.init(params)
        for step in range(steps):
            grads = jax.tree.map(lambda p, step=step: jnp.sin(3 * p) + 0.1 * step, params)
            updates, state = chain.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run(params)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(), optax.sgd(0.03)),
        (Momentum(momentum=0.8), optax.sgd(0.03, momentum=0.8)),
        (Momentum(nesterov=True), optax.sgd(0.03, momentum=0.9, nesterov=True)),
        (Adam(), optax.adam(0.03)),
        (Adamw(weight_decay=0.2), optax.adamw(0.03, weight_decay=0.2)),
        (Adam(clip_norm=0.3), optax.chain(optax.clip_by_global_norm(0.3), optax.adam(0.03))),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw", "clipped"],
)
def test_equals_optax(ours, theirs):
    chain = transformation(ours, lambda _: 0.03, {"a": 1.0, "b": 1.0}, Form.split)
    for mine, reference in zip(jax.tree.leaves(walk(chain)), jax.tree.leaves(walk(theirs)), strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_multipliers_scale_the_step_not_the_gradient():
    """Adam divides a scaled gradient by its own scale: only scaling the step changes the rate."""
    chain = transformation(Adam(), lambda _: 0.1, {"a": 1.0, "b": 0.25}, Form.split)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = chain.update({"a": jnp.ones(1), "b": jnp.ones(1)}, chain.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.1, -0.025], rtol=1e-5)


def test_weight_decay_is_decoupled():
    chain = transformation(Sgd(weight_decay=0.5), lambda _: 0.1, {"a": 1.0}, Form.split)
    params = {"a": jnp.full(1, 2.0)}
    updates, _ = chain.update({"a": jnp.full(1, 3.0)}, chain.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * (3.0 + 0.5 * 2.0), rtol=1e-6)
