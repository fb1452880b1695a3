"""What every model owes the engine: passes in parts, injected leaves, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from src.models.base import ApplyOptions, is_statistic, new_head
from src.models.cnn import Cnn, ConvNorm
from src.models.mlp import Mlp

MODELS = [(Mlp(widths=(7, 6, 5), dropout=0.5), 4), (Cnn(widths=(3, 4), dropout=0.5), 16)]
WITH_BOTH = pytest.mark.parametrize(("model", "features"), MODELS, ids=["mlp", "cnn"])


def start(model, features, outputs=2):
    params = model.init(jax.random.PRNGKey(0), (features,), outputs)
    return params, jax.random.normal(jax.random.PRNGKey(1), (6, features))


@WITH_BOTH
@pytest.mark.parametrize("training", [False, True])
def test_two_parts_make_the_whole_pass(model, features, training):
    """Cut at every group, with dropout's masks and the statistics that a training pass moves."""
    params, x = start(model, features)
    moving = frozenset(filter(is_statistic, params))
    how = ApplyOptions(key=jax.random.PRNGKey(3), mutable=moving) if training else ApplyOptions()
    whole, changed = model.forward(params, x, 2, how)
    for k in range(len(model.groups()) + 1):
        middle, below = model.forward(params, x, 2, how._replace(stop=k))
        if k == len(model.groups()):
            np.testing.assert_array_equal(middle, whole)
            continue
        assert k == 0 or middle.shape != whole.shape
        both, above = model.forward(params, middle, 2, how._replace(start=k))
        np.testing.assert_array_equal(both, whole)
        for path, value in changed.items():
            parts = [part[path] for part in (below, above) if np.any(part[path] != params[path])]
            assert len(parts) == 1, path
            np.testing.assert_array_equal(parts[0], value)


@WITH_BOTH
def test_a_part_needs_its_own_parameters_alone(model, features):
    """So that a frozen bottom can be left out of the program that trains the top."""
    params, x = start(model, features)
    middle = model.apply(params, x, 2, ApplyOptions(stop=1))
    name = model.groups()[0][0]
    prefix = {"block_0": ("block_0/", "Dense_0/")}[name]
    top = {path: leaf for path, leaf in params.items() if not path.startswith(prefix)}
    assert len(top) < len(params)
    np.testing.assert_array_equal(model.apply(top, middle, 2, ApplyOptions(start=1)), model.apply(params, x, 2))


@WITH_BOTH
def test_injected_leaves_stand_around_their_module(model, features):
    """Each is given once, with its own leaves, its module's path, input and parameters; others are not bothered."""
    params, x = start(model, features)
    points = [point for block in model.adapter_points() for point in block][:2]
    extra = {f"{point}/shift": jnp.float32(i + 1) for i, point in enumerate(points)}
    calls = []

    def wrap_call(ctx):
        calls.append(("/".join(ctx.module.path), dict(ctx.params), type(ctx.module), ctx.key is None, ctx.x.shape[-1]))
        return ctx.call(ctx.x) + ctx.params["shift"]

    how = ApplyOptions(adapter_params=frozenset({"shift"}), wrap_call=wrap_call)
    with_extra = model.apply(params | extra, x, 2, how)
    assert [(path, leaves) for path, leaves, *_ in calls] == [
        (point, {"shift": extra[f"{point}/shift"]}) for point in points
    ]
    assert {kind for *_, kind, _, _ in calls} == {nn.Dense if isinstance(model, Mlp) else ConvNorm}
    assert all(no_key for *_, no_key, _ in calls)
    assert calls[0][-1] == (features if isinstance(model, Mlp) else 1)
    # A shift after a module is a shift of that module's own bias.
    shifted = dict(params)
    for i, point in enumerate(points):
        bias = f"{point}/bias" if isinstance(model, Mlp) else f"{point}/BatchNorm_0/bias"
        shifted[bias] = params[bias] + (i + 1)
    np.testing.assert_allclose(with_extra, model.apply(shifted, x, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        model.apply(params | extra, x, 2, how._replace(wrap_call=None)), model.apply(params, x, 2)
    )


@WITH_BOTH
def test_each_place_has_a_dropout_key_of_its_own(model, features):
    params, x = start(model, features)
    points = [block[0] for block in model.adapter_points()]
    extra = {f"{point}/shift": jnp.float32(0) for point in points}
    keys = []

    def wrap_call(ctx):
        keys.append(tuple(np.asarray(ctx.key)))
        return ctx.call(ctx.x)

    model.apply(
        params | extra,
        x,
        2,
        ApplyOptions(key=jax.random.PRNGKey(0), adapter_params=frozenset({"shift"}), wrap_call=wrap_call),
    )
    assert len(set(keys)) == len(points)


@pytest.mark.parametrize("widths", [(8,), (5, 4, 3)])
def test_the_perceptron_starts_from_the_bits_of_the_compact_form(widths):
    """Names that are spelled out (``Dense_0``) give the initial values that automatic names give."""

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in widths:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(2)(x)

    for seed in range(3):
        key = jax.random.PRNGKey(seed)
        expected = flatten_dict(Compact().init(key, jnp.zeros((1, 4)))["params"], sep="/")
        found = Mlp(widths=widths, dropout=0.1).init(key, (4,), 2)
        assert set(found) == set(expected)
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf)


@WITH_BOTH
def test_a_new_head_is_the_last_group(model, features):
    params, _ = start(model, features)
    fresh = {path: leaf + 1 for path, leaf in start(model, features, outputs=5)[0].items()}
    changed = {path for path, leaf in new_head(model, params, fresh).items() if leaf is fresh[path]}
    head = "Dense_3" if isinstance(model, Mlp) else "head"
    assert changed == {f"{head}/kernel", f"{head}/bias"}
