"""IA3 and adapters against float64 NumPy."""

import math

import jax
import numpy as np
import pytest

from src.errors import UserError
from src.models.base import ApplyOptions
from src.models.mlp import Mlp
from src.strategies.adapter import Activation, Adapter, AdapterKind
from src.strategies.ia3 import Ia3
from tests.strategies.injected import Convolutional, compiled, plain, prepared, run, started

MLP = Mlp((8, 8))  # square, so that inputs and outputs could be taken for one another
CONV = Convolutional()

BENDS = {
    "relu": lambda v: np.maximum(v, 0),
    "tanh": np.tanh,
    "silu": lambda v: v / (1 + np.exp(-v)),
    # jax.nn.gelu is the approximation by tanh (Hendrycks and Gimpel, arXiv 1606.08415, section 2)
    "gelu": lambda v: v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
}


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def doubled(params):
    return {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}


def perceptron(params, x, before=lambda i, h: h, after=lambda i, h: h):
    """Return the outputs of ``Mlp((8, 8))``, with something done to what enters and leaves each dense layer."""
    h = np.asarray(x, np.float64)
    for i in range(3):
        h = after(i, before(i, h) @ params[f"Dense_{i}/kernel"] + params[f"Dense_{i}/bias"])
        h = np.maximum(h, 0) if i < 2 else h
    return h


def test_ia3_scales_outputs_of_targets_and_inputs_of_feedforward():
    strategy = Ia3(targets=("trunk",), feedforward=("Dense_1",))
    params, x = started(MLP, (8,), 2), rows(16, 8)
    added = prepared(strategy, MLP, params, 0.5)
    assert sorted(added) == ["Dense_0/ia3", "Dense_1/ia3_input"]
    scales = doubled(added)
    expected = perceptron(
        doubled(params),
        x,
        before=lambda i, h: h * scales["Dense_1/ia3_input"] if i == 1 else h,
        after=lambda i, h: h * scales["Dense_0/ia3"] if i == 0 else h,
    )
    np.testing.assert_allclose(compiled(strategy, MLP, params | added, x, 2), expected, rtol=1e-5, atol=1e-5)


def test_ia3_scales_channels_of_convolutions():
    """Scaling a convolution's outputs is scaling its kernel and bias, its inputs the kernel's rows."""
    strategy = Ia3(feedforward=(".*Conv_1",))
    params, x = started(CONV, (6, 7, 3), 2), rows(4, 6, 7, 3)
    added = prepared(strategy, CONV, params, 0.5)
    whole = dict(params)
    for path, leaf in added.items():
        module, _, name = path.rpartition("/")
        kernel = f"{module}/kernel"
        whole[kernel] = whole[kernel] * (leaf[None, None, None] if name == "ia3" else leaf[None, None, :, None])
        if name == "ia3" and f"{module}/bias" in whole:
            whole[f"{module}/bias"] = whole[f"{module}/bias"] * leaf
    assert {path.rpartition("/")[2] for path in added} == {"ia3", "ia3_input"}
    expected = plain(CONV, whole, x, 2)
    np.testing.assert_allclose(compiled(strategy, CONV, params | added, x, 2), expected, rtol=1e-5, atol=1e-5)


def bottleneck(added, point, h, bend):
    """Return ``h + f(h D + b) U + c`` in float64."""
    names = ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias")
    down, bias, up, shift = (np.asarray(added[f"{point}/{name}"], np.float64) for name in names)
    h = np.asarray(h, np.float64)
    return h + BENDS[bend](h @ down + bias) @ up + shift


@pytest.mark.parametrize("bend", BENDS)
def test_an_adapter_computes_the_formula(bend):
    strategy = Adapter(size=3, activation=Activation[bend])
    params, x = started(MLP, (8,), 2), rows(16, 8)
    added = prepared(strategy, MLP, params, 0.5)
    expected = perceptron(
        doubled(params), x, after=lambda i, h: bottleneck(added, f"Dense_{i}", h, bend) if i < 2 else h
    )
    np.testing.assert_allclose(compiled(strategy, MLP, params | added, x, 2), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_stands_after_a_whole_block():
    strategy = Adapter(size=4)
    params, x = started(CONV, (6, 7, 3), 2), rows(4, 6, 7, 3)
    added = prepared(strategy, CONV, params, 0.3)
    assert {path.rpartition("/")[0] for path in added} == {"block_0", "block_1"}
    assert added["block_1/adapter_down"].shape == (10, 4)
    h = x
    for i in range(2):
        block = plain(CONV, params, h, 2, ApplyOptions(start=i, stop=i + 1))
        h = np.float32(bottleneck(added, f"block_{i}", block, "relu"))
    expected = plain(CONV, params, h, 2, ApplyOptions(start=2))
    np.testing.assert_allclose(compiled(strategy, CONV, params | added, x, 2), expected, rtol=1e-5, atol=1e-5)


def test_houlsby_has_every_point_and_pfeiffer_the_last():
    params = started(CONV, (6, 7, 3), 2)

    def points(kind):
        return {path.rpartition("/")[0] for path in prepared(Adapter(kind=kind), CONV, params)}

    assert points(AdapterKind.pfeiffer) == {"block_0", "block_1"}
    assert points(AdapterKind.houlsby) == {"block_0", "block_0/Conv_0", "block_1", "block_1/Conv_0"}


def test_an_adapter_starts_with_small_random_down_projections_and_zeros():
    """A normal distribution cut at two standard deviations has 0.8796 of its standard deviation left."""
    params = {f"Dense_0/{name}": np.zeros(shape, np.float32) for name, shape in (("kernel", (4, 512)), ("bias", 512))}
    added = Adapter(size=64).prepare(jax.random.PRNGKey(0), params, Mlp((512,)))
    down = added.pop("Dense_0/adapter_down")
    assert np.abs(down).max() <= 0.02
    np.testing.assert_allclose(np.std(down), 0.8796e-2, rtol=0.02)
    assert all(not leaf.any() for leaf in added.values())


def test_a_point_whose_width_cannot_be_seen_is_named():
    """The width is the last kernel's; where the block returns another one, tracing says so."""
    params, x = started(CONV, (6, 7, 3), 2), rows(4, 6, 7, 3)
    strategy = Adapter(size=4)
    added = prepared(strategy, CONV, params)
    wrong = {path: leaf[:5] if path == "block_0/adapter_down" else leaf for path, leaf in added.items()}
    with pytest.raises(UserError, match="block_0 returns 6 values, but its last kernel has 5"):
        run(strategy, CONV, params | wrong, x, 2)

    class Nowhere(Mlp):
        def adapter_points(self):
            return (("nowhere",),)

    with pytest.raises(UserError, match="the model names nowhere in adapter_points, which has no parameters"):
        strategy.prepare(jax.random.PRNGKey(0), params, Nowhere())
