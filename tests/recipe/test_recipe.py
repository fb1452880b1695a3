"""The reference function against a float64 re-computation in NumPy, and against the engine behind the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from src.data.base import Transfer
from src.recipe.reference import pretrain_then_finetune
from src.recipe.spec import Recipe
from src.types import Split
from tests.runs import run


class Reference(nn.Module):
    """The recipe's network, written again so that the test does not lean on the product's."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(8)(x)
        hidden = nn.relu(hidden)
        return nn.Dense(1)(hidden)


def by_hand(seed, x_pre, y_pre, x_fine, y_fine, lr_pre, lr_fine, finetune_steps):
    """Return the recipe's loss in float64, gradients by hand."""
    first = Reference().init(jax.random.PRNGKey(int(seed)), jnp.asarray(x_pre, jnp.float32))["params"]
    w0, b0, w1, b1 = (
        np.asarray(first[layer][name], np.float64)
        for layer, name in (
            ("Dense_0", "kernel"),
            ("Dense_0", "bias"),
            ("Dense_1", "kernel"),
            ("Dense_1", "bias"),
        )
    )

    def step(x, y, lr, trunk):
        nonlocal w0, b0, w1, b1
        before = x @ w0 + b0
        hidden = np.maximum(before, 0)
        error = (hidden @ w1 + b1)[:, 0] - y
        d_out = (2 / len(y) * error)[:, None]
        d_hidden = d_out @ w1.T * (before > 0)
        w1, b1 = w1 - lr * hidden.T @ d_out, b1 - lr * d_out.sum(0)
        if trunk:
            w0, b0 = w0 - lr * x.T @ d_hidden, b0 - lr * d_hidden.sum(0)

    for _ in range(3):
        step(x_pre, y_pre, lr_pre, trunk=True)
    for _ in range(int(finetune_steps)):
        step(x_fine, y_fine, lr_fine, trunk=False)
    return np.mean((((np.maximum(x_fine @ w0 + b0, 0)) @ w1 + b1)[:, 0] - y_fine) ** 2)


def random_case(case):
    """Return arguments of a case; a few shapes only, so that few programs are compiled."""
    rng = np.random.default_rng(case)
    n_pre, n_fine, features = [(12, 9, 4), (1, 1, 1), (7, 1, 3), (1, 20, 2), (30, 5, 1)][case % 5]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((n_pre, features), n_pre, (n_fine, features), n_fine)]
    lr_pre, lr_fine = rng.uniform(0.001, 0.1, 2)
    return float(rng.integers(0, 1000)), *arrays, lr_pre, lr_fine, float([0, 1, 5, 37, 250][case // 5 % 5])


@pytest.mark.parametrize("case", range(50))
def test_equals_the_float64_recomputation(case):
    arguments = random_case(case)
    result = pretrain_then_finetune(*arguments)
    assert result.shape == (1,)
    assert isinstance(result, jax.Array)
    assert result.dtype == jnp.float32
    expected = by_hand(*arguments)
    if expected > np.finfo(np.float32).max:  # this case's rates diverge
        assert not np.isfinite(result[0])
    else:
        np.testing.assert_allclose(result[0], expected, rtol=2e-4, atol=1e-7)


def test_a_wrong_network_would_be_noticed():
    """The oracle is sensitive: another seed, rate or number of steps moves it by far more than the tolerance."""
    seed, *arrays, lr_pre, lr_fine, _ = random_case(0)
    base = by_hand(seed, *arrays, lr_pre, lr_fine, 37)
    for other in (
        by_hand(seed + 1, *arrays, lr_pre, lr_fine, 37),
        by_hand(seed, *arrays, lr_pre, lr_fine, 36),
    ):
        assert abs(other / base - 1) > 1e-3


def test_seed_and_steps_are_cast_to_int():
    _, *arrays, lr_pre, lr_fine, _ = random_case(0)
    cast = pretrain_then_finetune(3.9, *arrays, lr_pre, lr_fine, 5.9)
    np.testing.assert_array_equal(cast, pretrain_then_finetune(3, *arrays, lr_pre, lr_fine, 5))


def test_same_bits_as_the_engine_of_the_command_line():
    seed, x_pre, y_pre, x_fine, y_fine, lr_pre, lr_fine, _ = random_case(0)
    recipe = Recipe(seed=int(seed), lr_pre=lr_pre, lr_fine=lr_fine, pretrain_steps=3, finetune_steps=37, log_every=4)
    fine = {name: Split(x_fine, y_fine) for name in ("train", "val", "test")}
    pre = {name: Split(x_pre, y_pre) for name in ("train", "test")}
    outcome = run(recipe, Transfer("regression", pre, fine, 1, 1, new_head=False), lambda *_: None)
    reference = pretrain_then_finetune(seed, x_pre, y_pre, x_fine, y_fine, lr_pre, lr_fine, 37)
    assert np.float32(outcome.metrics["train_loss"]) == np.asarray(reference)[0]


def test_initial_layers_are_named_from_the_bottom():
    """Nested constructors would name the head ``Dense_0``, and every initial value would change."""
    recipe = Recipe()
    shapes = jax.eval_shape(lambda: recipe.model.init(jax.random.PRNGKey(0), (4,), 1))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        "Dense_0/kernel": (4, 8),
        "Dense_0/bias": (8,),
        "Dense_1/kernel": (8, 1),
        "Dense_1/bias": (1,),
    }
