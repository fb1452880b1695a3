"""The side path against float64 NumPy and ``lax.conv`` with the whole kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from src.errors import UserError
from src.models.layers import lowrank
from tests.checkpoints.networks import dense


def factors(rank, *shape, dtype=np.float32):
    rng = np.random.default_rng(rank)
    *window, inputs, outputs = shape
    a = rng.normal(size=(*window, inputs, rank)).astype(dtype)
    return a, rng.normal(size=(*(1,) * len(window), rank, outputs)).astype(dtype)


@pytest.mark.parametrize("rank", range(1, 6))
@pytest.mark.parametrize("leading", [(4,), (3, 2), ()])
def test_dense(rank, leading):
    a, b = factors(rank, 6, 5)
    x = np.random.default_rng(9).normal(size=(*leading, 6)).astype(np.float32)
    found = lowrank(nn.Dense(5), x, a, b)
    np.testing.assert_allclose(found, x.astype(np.float64) @ dense(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [
    {"padding": "SAME"},
    {"padding": "VALID", "strides": (2, 1)},
    {"padding": ((2, 0), (1, 3)), "kernel_dilation": (1, 2)},
    {"padding": ((1, 1), (1, 0)), "input_dilation": (2, 1)},
])  # fmt: skip
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_convolution(settings, rank):
    a, b = factors(rank, 3, 2, 4, 5)
    x = np.random.default_rng(9).normal(size=(2, 7, 6, 4)).astype(np.float32)
    whole = lax.conv_general_dilated(
        x,
        dense(a, b).astype(np.float32),
        settings.get("strides", (1, 1)),
        settings["padding"],
        settings.get("input_dilation", (1, 1)),
        settings.get("kernel_dilation", (1, 1)),
        ("NHWC", "HWIO", "NHWC"),
    )
    found = lowrank(nn.Conv(5, (3, 2), **settings), x, a, b)
    assert found.shape == whole.shape
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_the_paddings_that_lax_does_not_know():
    a, b = factors(2, 3, 4, 5)
    x = np.random.default_rng(9).normal(size=(2, 7, 4)).astype(np.float32)
    kernel = dense(a, b).astype(np.float32)
    for padding, mode in (("CIRCULAR", "wrap"), ("REFLECT", "reflect")):
        wrap_call = np.pad(x, ((0, 0), (1, 1), (0, 0)), mode=mode)
        whole = lax.conv_general_dilated(wrap_call, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        found = lowrank(nn.Conv(5, (3,), padding=padding), x, a, b)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_types():
    a, b = factors(2, 6, 5)
    x = np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32)
    half = [jnp.asarray(v, jnp.bfloat16) for v in (x, a, b)]
    assert lowrank(nn.Dense(5), *half).dtype == jnp.bfloat16
    assert lowrank(nn.Dense(5), half[0], a, b).dtype == jnp.float32  # factors kept in float32 are not rounded
    assert lowrank(nn.Dense(5, dtype=jnp.bfloat16), x, a, b).dtype == jnp.bfloat16
    exact = x.astype(np.float64) @ dense(a, b)
    rough = np.asarray(lowrank(nn.Dense(5), *half), np.float64)
    assert 1e-4 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 2e-2


def test_the_gradient_is_that_of_the_whole_kernel():
    a, b = factors(2, 6, 5)
    x = np.random.default_rng(9).normal(size=(4, 6)).astype(np.float32)
    found = jax.grad(lambda a, b: jnp.sum(lowrank(nn.Dense(5), x, a, b) ** 2), (0, 1))(a, b)
    upstream = 2 * x.T.astype(np.float64) @ (x.astype(np.float64) @ dense(a, b))  # of the kernel A B
    np.testing.assert_allclose(found[0], upstream @ b.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[1], a.T @ upstream, rtol=1e-4, atol=1e-3)


class Standardised(nn.Conv):
    pass


@pytest.mark.parametrize(("module", "named"), [
    (nn.Conv(4, (3,), feature_group_count=2), "Conv"),
    (nn.Conv(4, (3,), mask=jnp.ones((3, 4, 4))), "Conv"),
    (Standardised(4, (3,)), "Standardised"),
    (nn.ConvTranspose(4, (3,)), "ConvTranspose"),
])  # fmt: skip
def test_modules_that_may_not_be_linear_in_their_kernel(module, named):
    a, b = factors(2, 3, 4, 4)
    bound = module.clone(name="Block_0").bind({})
    with pytest.raises(
        UserError, match=f"a {named}, is not supported; allowed: Dense, and Conv without groups or a mask"
    ):
        lowrank(bound, np.ones((2, 7, 4), np.float32), a, b)
