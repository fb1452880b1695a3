"""The chain against Optax's ready-made optimizers (same bits) and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from src.optim.optimizers import Adam, Adamw, FreezeImpl, Momentum, Sgd, transformation
from src.optim.partition import FROZEN


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
    chain = transformation(ours, lambda _: 0.03, {"a": 1.0, "b": 1.0}, FreezeImpl.split)
    for mine, reference in zip(jax.tree.leaves(walk(chain)), jax.tree.leaves(walk(theirs)), strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_lr_scale_acts_on_the_step_not_the_gradient():
    """Adam divides a scaled gradient by its own scale: only scaling the step changes the rate."""
    chain = transformation(Adam(), lambda _: 0.1, {"a": 1.0, "b": 0.25}, FreezeImpl.split)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = chain.update({"a": jnp.ones(1), "b": jnp.ones(1)}, chain.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.1, -0.025], rtol=1e-5)


def test_weight_decay_is_decoupled():
    chain = transformation(Sgd(weight_decay=0.5), lambda _: 0.1, {"a": 1.0}, FreezeImpl.split)
    params = {"a": jnp.full(1, 2.0)}
    updates, _ = chain.update({"a": jnp.full(1, 3.0)}, chain.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * (3.0 + 0.5 * 2.0), rtol=1e-6)


# --- what decays ---------------------------------------------------------------------------------------------------

NETWORK = ("Dense_0/kernel", "Dense_0/bias", "LayerNorm_0/scale", "LayerNorm_0/bias", "BatchNorm_0/scale",
           "BatchNorm_0/mean", "BatchNorm_0/var", "bias_net/kernel", "rescale", "Embed_0/embedding",
           "Dense_0/adapter_down", "Dense_0/adapter_down_bias", "Dense_0/adapter_up", "Dense_0/adapter_up_bias",
           "Dense_0/lora_a", "Dense_0/lora_b", "Dense_0/dora_magnitude",
           "Dense_0/ia3", "Dense_0/ia3_input")  # fmt: skip
BIASES = {"Dense_0/bias", "LayerNorm_0/bias", "Dense_0/adapter_down_bias", "Dense_0/adapter_up_bias"}
EXEMPT = BIASES | {"LayerNorm_0/scale", "BatchNorm_0/scale"}  # without decay_bias_and_norm
STATISTICS = {"BatchNorm_0/mean", "BatchNorm_0/var"}
NEVER = STATISTICS | {"Dense_0/dora_magnitude", "Dense_0/ia3", "Dense_0/ia3_input"}
FROZEN_PATHS = ("Dense_0/kernel", "LayerNorm_0/bias", "BatchNorm_0/mean")


def network(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {path: rng.normal(1.0, 1.0, 3).astype(dtype) for path in NETWORK}


def gradient(params, step):
    """Return a gradient that depends on the parameters; statistics have none."""
    return {path: 0 * leaf if path in STATISTICS else np.sin(3 * leaf) + 0.1 * step for path, leaf in params.items()}


def adamw_in_float64(decayed, frozen=(), lr=0.01, decay=0.3, steps=20):
    """Loshchilov and Hutter's algorithm 2 with Adam's bias correction, in NumPy."""
    params = network(np.float64)
    m, v = ({path: np.zeros(3) for path in params} for _ in range(2))
    for step in range(steps):
        for path, g in gradient(params, step).items():
            if path in frozen:
                continue
            m[path], v[path] = 0.9 * m[path] + 0.1 * g, 0.999 * v[path] + 0.001 * g**2
            ratio = m[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[path] / (1 - 0.999 ** (step + 1))) + 1e-8)
            params[path] = params[path] - lr * (ratio + decay * params[path] * (path in decayed))
    return params


def trained(optimizer, form, frozen=(), steps=20):
    """Return all parameters after updates with one implementation of freezing."""
    params = {path: jnp.asarray(leaf) for path, leaf in network().items()}
    lr_scale = {path: FROZEN if path in frozen else 1.0 for path in params}
    chain = transformation(optimizer, lambda _: 0.01, lr_scale, form)
    optimized_paths = [path for path in params if form is not FreezeImpl.split or path not in frozen]
    state = chain.init({path: params[path] for path in optimized_paths})
    for step in range(steps):
        moving = {path: params[path] for path in optimized_paths}
        updates, state = chain.update(jax.tree.map(jnp.asarray, gradient(moving, step)), state, moving)
        params |= dict(optax.apply_updates(moving, updates))  # type: ignore[call-overload]
    return params


@pytest.mark.parametrize("form", FreezeImpl)
@pytest.mark.parametrize("frozen", [(), FROZEN_PATHS], ids=["full", "partly frozen"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_adamw_decays_what_it_should_in_every_form(form, frozen, decay_all):
    found = trained(Adamw(weight_decay=0.3, decay_bias_and_norm=decay_all), form, frozen)
    expected = adamw_in_float64(set(NETWORK) - NEVER - (set() if decay_all else EXEMPT), frozen)
    for path, leaf in network().items():
        np.testing.assert_allclose(found[path], expected[path], atol=1e-5, err_msg=path)
        if path in frozen or path in STATISTICS:
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize("decay_all", [True, False])
def test_the_forms_give_the_same_bits(decay_all):
    optimizer = Adamw(weight_decay=0.3, decay_bias_and_norm=decay_all, clip_norm=1.0)
    split, *others = (trained(optimizer, form, FROZEN_PATHS) for form in FreezeImpl)
    for other in others:
        for path, leaf in split.items():
            np.testing.assert_array_equal(other[path], leaf, err_msg=path)


def test_without_exemptions_nothing_is_masked():
    """The default leaves Optax's plain chain, state included."""
    lr_scale = {"Dense_0/kernel": 1.0, "Dense_0/bias": 1.0}
    params = {path: jnp.ones(2) for path in lr_scale}
    plain = transformation(Adamw(), lambda _: 0.1, lr_scale, FreezeImpl.split).init(params)
    masked = transformation(Adamw(decay_bias_and_norm=False), lambda _: 0.1, lr_scale, FreezeImpl.split).init(params)
    reference = optax.adamw(lambda _: 0.1).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(reference)
    assert jax.tree.structure(masked) != jax.tree.structure(reference)


def test_ia3_and_dora_stay_neutral_without_a_gradient():
    """In float64: ``w (1 - lr decay)**steps`` for what decays, the initial value for what scales the base's outputs."""
    params = {path: jnp.ones(2) for path in ("Dense_0/lora_a", "Dense_0/ia3", "Dense_0/dora_magnitude")}
    chain = transformation(Adamw(weight_decay=0.5), lambda _: 0.1, dict.fromkeys(params, 1.0), FreezeImpl.split)
    state, still = chain.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(10):
        updates, state = chain.update(still, state, params)
        params = dict(optax.apply_updates(params, updates))  # type: ignore[call-overload]
    np.testing.assert_allclose(params.pop("Dense_0/lora_a"), np.float64(1 - 0.1 * 0.5) ** 10, rtol=1e-6)
    for leaf in params.values():
        np.testing.assert_array_equal(leaf, 1.0)


def test_only_the_last_part_of_a_path_counts():
    optimizer = Sgd(decay_bias_and_norm=False)
    assert [path for path in NETWORK if not optimizer.decays(path)] == [
        path for path in NETWORK if path in EXEMPT | NEVER
    ]
    assert optimizer.decays("bias/kernel")
    assert not optimizer.decays("bias")
