"""LoRA and DoRA against float64 NumPy, merged kernels, and the explicit form's gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from src.config.hparams import bind, hyperparameters
from src.errors import UserError
from src.models.base import ApplyOptions, Model
from src.models.mlp import Mlp
from src.optim.partition import join, match_rules, split
from src.strategies.full import Full
from src.strategies.lora import Dora, Lora
from tests.strategies.injected import Convolutional, compiled, plain, prepared, run, started

MLP = Mlp((8, 12))
CONV = Convolutional()
VARIANTS = [{"alpha": 3.0, "rank_pattern": ("block_1:4",)}, {"alpha": 3.0, "rank_stabilised": True}]


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def scale(strategy, rank):
    """Return s: alpha / r, or alpha / sqrt(r) (arXiv 2312.03732)."""
    return strategy.alpha / (rank**0.5 if strategy.rank_stabilised else rank)


def merged(strategy, params, added):
    """Return the parameters of the adapted network as a plain one, in float64."""
    params = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    for path in added:
        module, _, name = path.rpartition("/")
        if name != "lora_a":
            continue
        a, b = (np.asarray(added[f"{module}/{leaf}"], np.float64) for leaf in ("lora_a", "lora_b"))
        kernel = params[f"{module}/kernel"]
        kernel = kernel + scale(strategy, a.shape[-1]) * np.einsum("...ir,ro->...io", a, b.reshape(b.shape[-2:]))
        if isinstance(strategy, Dora):
            norms = np.sqrt((kernel**2).sum(axis=tuple(range(kernel.ndim - 1)), keepdims=True))
            kernel = np.asarray(added[f"{module}/dora_magnitude"], np.float64) * kernel / norms
        params[f"{module}/kernel"] = kernel
    return params


def perceptron(params, x):
    """Return the outputs of ``Mlp((8, 12))`` in float64."""
    h = np.asarray(x, np.float64)
    for i in range(3):
        h = h @ params[f"Dense_{i}/kernel"] + params[f"Dense_{i}/bias"]
        h = np.maximum(h, 0) if i < 2 else h
    return h


@pytest.mark.parametrize("cls", [Lora, Dora])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_dense_layers_compute_the_formula(cls, settings):
    strategy = cls(rank=3, **settings)
    params, x = started(MLP, (5,), 2), rows(16, 5)
    added = prepared(strategy, MLP, params, 0.3)
    found = compiled(strategy, MLP, params | added, x, 2)
    expected = perceptron(merged(strategy, params, added), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - perceptron(merged(strategy, params, {}), x)).max() > 0.1


@pytest.mark.parametrize("cls", [Lora, Dora])
def test_convolutions_compute_what_merged_kernels_do(cls):
    """With strides, uneven and circular padding, with and without bias, and two ranks."""
    strategy = cls(rank=3, alpha=3.0, rank_pattern=("block_1:4",))
    params, x = started(CONV, (6, 7, 3), 2), rows(4, 6, 7, 3)
    added = prepared(strategy, CONV, params, 0.2)
    assert added["block_0/Conv_0/lora_a"].shape == (3, 3, 3, 3)
    assert added["block_0/Conv_0/lora_b"].shape == (1, 1, 3, 6)
    assert ("block_0/Conv_0/dora_magnitude" in added) == (cls is Dora)
    whole = {path: np.float32(leaf) for path, leaf in merged(strategy, params, added).items()}
    expected = plain(CONV, whole, x, 2)
    np.testing.assert_allclose(compiled(strategy, CONV, params | added, x, 2), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - plain(CONV, params, x, 2)).max() > 0.05


def test_one_program_serves_every_traced_setting():
    params, x = started(MLP, (5,), 2), rows(16, 5)
    strategy = Lora(rank=3)
    added = prepared(strategy, MLP, params, 0.3)
    assert set(hyperparameters(Lora(dropout=0.5))) == {"alpha", "dropout", "loraplus_lr_ratio"}

    @jax.jit
    def outputs(alpha):
        return run(bind(strategy, {"alpha": alpha}), MLP, params | added, x, 2)

    for alpha in (1.0, 24.0):
        expected = perceptron(merged(Lora(rank=3, alpha=alpha), params, added), x)
        np.testing.assert_allclose(outputs(alpha), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_on_the_correction_only_and_only_with_a_key():
    params, x = started(MLP, (5,), 2), rows(16, 5)
    added = prepared(Lora(rank=3), MLP, params, 0.3)
    key = jax.random.PRNGKey(7)

    def outputs(rate, key):
        return run(Lora(rank=3, dropout=rate), MLP, params | added, x, 2, key)

    without = outputs(None, key)
    for same in (outputs(None, None), outputs(0.5, None), outputs(0.0, key)):
        np.testing.assert_array_equal(same, without)
    np.testing.assert_array_equal(outputs(1.0, key), MLP.apply(params, x, 2))
    assert np.abs(outputs(0.5, key) - without).max() > 0.01
    assert np.abs(outputs(0.5, key) - outputs(0.5, jax.random.PRNGKey(8))).max() > 0.01


def test_layers_drop_apart_from_one_another():
    """Through two layers whose corrections are identities, a value arrives where both masks let it."""
    x, eye = np.ones((64, 8), np.float32), np.eye(8, dtype=np.float32)
    strategy = Lora(rank=8, alpha=8.0, dropout=0.5)

    def arrived(*layers):
        params = {"Dense_2/kernel": eye, "Dense_2/bias": 0 * eye[0]}
        for i in range(2):
            params |= {f"Dense_{i}/kernel": eye * (i not in layers), f"Dense_{i}/bias": 0 * eye[0]}
            params |= {f"Dense_{i}/lora_a": eye, f"Dense_{i}/lora_b": eye * (i in layers)}
        return np.asarray(run(strategy, Mlp((8, 8)), params, x, 8, jax.random.PRNGKey(0))) > 0

    first, second, both = arrived(0), arrived(1), arrived(0, 1)
    np.testing.assert_array_equal(both, first & second)
    for kept, share in ((first, 0.5), (second, 0.5), (both, 0.25)):
        assert abs(kept.mean() - share) < 0.09  # four standard errors of 512 draws


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("double")
def test_dora_s_gradient_takes_the_norm_as_constant():
    """Against automatic differentiation of ``x (m / const(||W + s A B||) (W + s A B)) + b`` in float64."""
    strategy = Dora(rank=3, alpha=3.0)
    model = Mlp(())
    params = {path: jnp.asarray(leaf, jnp.float64) for path, leaf in started(model, (5,), 4).items()}
    strategy = Dora(rank=3, alpha=3.0, targets=("head",))
    added = {k: jnp.asarray(v, jnp.float64) for k, v in prepared(strategy, model, params, 0.3).items()}
    x, y = (jnp.asarray(rows(6, n), jnp.float64) for n in (5, 4))

    def side(added, x):
        return jnp.sum((run(strategy, model, params | added, x, 4) - y) ** 2)

    def explicit(added, x, constant):
        a, b, m = (added[f"Dense_0/{name}"] for name in strategy.adapter_params)
        adapted = params["Dense_0/kernel"] + 1.0 * a @ b
        outputs = x @ (m[None] / constant(jnp.sqrt(jnp.sum(adapted**2, axis=0)))[None] * adapted)
        return jnp.sum((outputs + params["Dense_0/bias"][None] - y) ** 2)

    found = jax.grad(side, (0, 1))(added, x)
    expected = jax.grad(functools.partial(explicit, constant=jax.lax.stop_gradient), (0, 1))(added, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), found, expected)
    through = jax.grad(functools.partial(explicit, constant=lambda norm: norm))(added, x)
    assert np.abs(through["Dense_0/lora_b"] - found[0]["Dense_0/lora_b"]).max() > 0.1


def test_dora_keeps_a_column_of_zeros():
    """A unit that pre-training left at zero has no direction; its output and gradients stay finite."""
    params = started(MLP, (5,), 2)
    params["Dense_0/kernel"] = params["Dense_0/kernel"].at[:, 2].set(0.0)
    strategy, x = Dora(rank=3), rows(16, 5)
    added = strategy.prepare(jax.random.PRNGKey(0), params, MLP)

    def loss(added):
        return jnp.sum(run(strategy, MLP, params | added, x, 2) ** 2)

    np.testing.assert_allclose(loss(added), jnp.sum(MLP.apply(params, x, 2) ** 2), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.grad(loss)(added).values())


class Grouped(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="body")(x)
        return nn.Dense(self.outputs, name="head")(x.mean((1, 2)))


class GroupedModel(Model):
    def module(self, outputs):
        return Grouped(outputs)

    def groups(self):
        return (("body", "body/.*"), ("head", "head/.*"))


def test_a_grouped_convolution_is_refused():
    """Its kernel is no matrix on patches: ``B`` would mix the groups."""
    model = GroupedModel()
    params = started(model, (5, 5, 4), 2)
    added = prepared(Lora(rank=2), model, params)
    with pytest.raises(UserError, match=r"body, a Conv, is not supported; allowed: Dense, and Conv without groups"):
        run(Lora(rank=2), model, params | added, rows(2, 5, 5, 4), 2)


def update_flops(strategy, model, width, batch, wrap_call=None):
    """Return XLA's count for one compiled step of gradient descent on the trainable half."""

    def shapes(key):
        params = model.init(key, (width,), 10)
        return params | strategy.prepare(key, params, model)

    params = jax.eval_shape(shapes, jax.random.PRNGKey(0))
    moving, frozen = split(params, match_rules(strategy.table(model.groups()), params, model.groups()).trainable)
    how = ApplyOptions(adapter_params=frozenset(strategy.adapter_params), wrap_call=wrap_call or strategy.wrap_call)

    def step(moving, frozen, x, y):
        grads = jax.grad(lambda p: jnp.mean((model.apply(join(p, frozen), x, 10, how) - y) ** 2))(moving)
        return {path: leaf - 0.1 * grads[path] for path, leaf in moving.items()}

    data = [jax.ShapeDtypeStruct((batch, n), np.float32) for n in (width, 10)]
    return jax.jit(step).lower(moving, frozen, *data).compile().cost_analysis()["flops"]


def test_the_correction_saves_the_kernels_gradients():
    """A third of full fine-tuning's work is gone, as the count of products says; adding A B to W would save nothing.

    Of six layers, in units of one d x d product with the batch: forward 6, gradients of kernels 6, of inputs 5 (the
    lowest needs none). The correction drops the kernels' and adds six thin products of r / d a layer.
    """
    model, d = Mlp((256,) * 6), 256
    full = update_flops(Full(), model, d, 256)
    for rank, most in ((4, 0.70), (8, 0.72)):
        share = update_flops(Lora(rank=rank), model, d, 256) / full
        assert share == pytest.approx((11 + 6 * 6 * rank / d) / 17, abs=0.01)
        assert share <= most

    def added(ctx):
        own = ctx.module.variables["params"]
        return ctx.x @ (own["kernel"] + 2.0 * ctx.params["lora_a"] @ ctx.params["lora_b"]) + own["bias"][None]

    assert update_flops(Lora(rank=8), model, d, 256, added) > full
