"""The convolutional network against a float64 re-computation in NumPy."""

import re

import jax
import numpy as np
import pytest

from src.errors import UserError
from src.models.base import ApplyOptions, is_statistic
from src.models.cnn import Cnn

OUTPUTS = 3


def parameters(model, features, seed=0):
    """Return random parameters of a model's shapes: no zeros and ones that would hide a mistake."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), (features,), OUTPUTS))
    return {
        path: (rng.uniform(0.5, 2.0, leaf.shape) if path.endswith("var") else rng.normal(0.3, 0.5, leaf.shape)).astype(
            np.float32
        )
        for path, leaf in shapes.items()
    }


def convolved(x, kernel):
    """The sum over neighbours and channels, place by place."""
    n, height, width, _ = x.shape
    out = np.zeros((n, height, width, kernel.shape[-1]))
    for r in range(height):
        for c in range(width):
            for i in range(3):
                for j in range(3):
                    if 0 <= r + i - 1 < height and 0 <= c + j - 1 < width:
                        out[:, r, c] += x[:, r + i - 1, c + j - 1] @ kernel[i, j]
    return out


def pooled(x):
    n, height, width, channels = x.shape
    if min(height, width) < 2:
        return x
    out = np.empty((n, height // 2, width // 2, channels))
    for r in range(height // 2):
        for c in range(width // 2):
            out[:, r, c] = x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max(axis=(1, 2))
    return out


def by_hand(params, x, blocks, moving=frozenset()):
    """Return the outputs in float64, and the statistics of the batch by the path of the running ones."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    seen = {}
    for i in range(blocks):
        for j in range(2):
            at = f"block_{i}/ConvNorm_{j}"
            x = convolved(x, p[f"{at}/Conv_0/kernel"])
            norm = f"{at}/BatchNorm_0"
            mean, var = p[f"{norm}/mean"], p[f"{norm}/var"]
            if f"{norm}/mean" in moving:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
                seen |= {f"{norm}/mean": mean, f"{norm}/var": var}
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * p[f"{norm}/scale"] + p[f"{norm}/bias"], 0)
        x = pooled(x)
    return x.mean((1, 2)) @ p["head/kernel"] + p["head/bias"], seen


def rows(side, channels, count=5, seed=1):
    return np.random.default_rng(seed).standard_normal((count, side * side * channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("side", "channels", "widths"),
    [(8, 1, (4, 5)), (5, 3, (4,)), (7, 2, (3, 4)), (2, 1, (3, 2, 4)), (1, 1, (3,))],
)
def test_inference_equals_the_float64_recomputation(side, channels, widths):
    """Odd sides lose their last line in pooling; a side of 1 is not pooled any more."""
    model = Cnn(widths=widths, channels=channels)
    params, x = parameters(model, side * side * channels), rows(side, channels)
    expected, _ = by_hand(params, x.reshape(-1, side, side, channels).astype(np.float64), len(widths))
    np.testing.assert_allclose(model.apply(params, x, OUTPUTS), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("moving_blocks", [(0, 1), (1,), (0,)])
def test_a_training_pass_normalises_by_the_batch_and_moves_what_it_is_told(moving_blocks):
    """New = .9 old + .1 batch, the variance divided by N; a block at rest normalises by its own and keeps them."""
    model = Cnn(widths=(4, 5))
    params, x = parameters(model, 64), rows(8, 1)
    moving = frozenset(
        path for path in params if is_statistic(path) and path.startswith(tuple(f"block_{i}/" for i in moving_blocks))
    )
    expected, batch = by_hand(params, x.reshape(-1, 8, 8, 1).astype(np.float64), 2, moving)
    outputs, changed = model.forward(params, x, OUTPUTS, ApplyOptions(mutable=moving))
    np.testing.assert_allclose(outputs, expected, rtol=2e-4, atol=5e-4)
    assert set(changed) == moving == set(batch)
    assert len(moving) == 4 * len(moving_blocks)
    for path, seen in batch.items():
        np.testing.assert_allclose(changed[path], 0.9 * params[path] + 0.1 * seen, rtol=1e-4, atol=1e-5)


def test_inference_changes_no_statistic():
    model = Cnn()
    params = parameters(model, 64)
    assert model.forward(params, rows(8, 1), OUTPUTS)[1] == {}


def test_shapes_and_groups():
    """The groups cover every leaf once, statistics included; two adapters have a place in each block."""
    model = Cnn()
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), (64,), 10))
    assert shapes["block_0/ConvNorm_0/Conv_0/kernel"].shape == (3, 3, 1, 16)
    assert shapes["block_1/ConvNorm_1/BatchNorm_0/var"].shape == (32,)
    assert shapes["head/kernel"].shape == (32, 10)
    count = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32) + 4 * (16 + 16 + 32 + 32) + 32 * 10 + 10
    assert sum(leaf.size for leaf in shapes.values()) == count
    assert [name for name, _ in model.groups()] == ["block_0", "block_1", "head"]
    for path in shapes:
        assert sum(bool(re.fullmatch(expression, path)) for _, expression in model.groups()) == 1, path
    modules = {path.rsplit("/", 2)[0] for path in shapes if "ConvNorm" in path}
    assert {point for block in model.adapter_points() for point in block} == modules
    assert [len(block) for block in model.adapter_points()] == [2, 2]


def test_ten_blocks_have_ten_groups():
    groups = Cnn(widths=(1,) * 11).groups()
    assert not re.fullmatch(groups[1][1], "block_10/ConvNorm_0/Conv_0/kernel")


@pytest.mark.parametrize(("features", "channels"), [(10, 1), (64, 3), (2, 4)])
def test_rows_that_are_no_image_are_refused_while_shapes_are_traced(features, channels):
    model = Cnn(channels=channels)
    message = f"model.channels={channels} is given rows of {features} values; allowed: side"
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), (features,), 1))


def test_dropout_acts_on_the_head_s_inputs_in_training_alone():
    model = Cnn(dropout=1.0)
    params = parameters(model, 64)
    x = rows(8, 1)
    dropped = model.apply(params, x, OUTPUTS, ApplyOptions(key=jax.random.PRNGKey(0)))
    np.testing.assert_array_equal(dropped, np.broadcast_to(params["head/bias"], (5, OUTPUTS)))
    np.testing.assert_array_equal(model.apply(params, x, OUTPUTS), Cnn().apply(params, x, OUTPUTS))
    assert model.stochastic
    assert not Cnn().stochastic
