"""The linear probe's new head, and BitFit's biases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from src.config.schema import typed
from src.errors import UserError
from src.models.mlp import Mlp
from src.optim.partition import match_rules
from src.strategies.frozen import Bitfit, LinearProbe
from tests.strategies.networks import BERT, MLP, MLP_PARAMS, NETWORKS, bert_shapes, moving, where

WIDE = Mlp(widths=(400,))


def fresh_head(std=0.01, seed=0):
    """A new head for a trunk of 400 features and 100 classes."""
    params = WIDE.init(jax.random.PRNGKey(7), (3,), 100)
    return params, LinearProbe(std).prepare(jax.random.PRNGKey(seed), params, WIDE)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_probe_moves_the_head_only(name):
    groups, paths, _ = NETWORKS[name]
    assert moving(LinearProbe().table(groups), name) == where(paths, lambda d: d == 99)


def test_the_probe_s_head_starts_anew():
    """MoCo's protocol: normal kernel of standard deviation 0.01, zero bias; the trunk is not touched."""
    params, head = fresh_head()
    assert set(head) == {"Dense_1/kernel", "Dense_1/bias"}
    assert {path: leaf.shape for path, leaf in head.items()} == {path: params[path].shape for path in head}
    np.testing.assert_array_equal(head["Dense_1/bias"], np.zeros(100))
    kernel = np.asarray(head["Dense_1/kernel"], np.float64).ravel()
    assert stats.kstest(kernel, stats.norm(0, 0.01).cdf).pvalue > 0.01
    # The standard deviation of 40,000 draws is known to 0.35 %.
    assert kernel.std() == pytest.approx(0.01, rel=0.015)


def test_seeds_and_leaves_draw_for_themselves():
    one, two = (fresh_head(seed=seed)[1]["Dense_1/kernel"] for seed in (0, 1))
    assert np.abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.02
    params = {
        "pooler/kernel": jnp.ones((50, 50)),
        "classifier/kernel": jnp.ones((50, 50)),
        "pooler/scale": jnp.ones(50),
    }
    head = LinearProbe().prepare(jax.random.PRNGKey(0), params, BERT)
    assert set(head) == {"pooler/kernel", "classifier/kernel"}  # a scale of 0 would cut the network in two
    assert np.abs(np.corrcoef(head["pooler/kernel"].ravel(), head["classifier/kernel"].ravel())[0, 1]) < 0.08


def test_a_probe_may_start_from_zero():
    np.testing.assert_array_equal(fresh_head(std=0.0)[1]["Dense_1/kernel"], np.zeros((400, 100)))
    with pytest.raises(UserError, match=r"strategy.std is -1.0; allowed: a finite number >= 0"):
        typed(LinearProbe, {"std": -1}, "strategy")


def test_one_program_serves_every_standard_deviation():
    params, _ = fresh_head()
    traces = []

    @jax.jit
    def kernel(std):
        traces.append(None)
        return LinearProbe(std=std).prepare(jax.random.PRNGKey(0), params, WIDE)["Dense_1/kernel"]

    draws = np.asarray(fresh_head(std=1.0)[1]["Dense_1/kernel"])
    for std in (0.0, 0.01, 2.0):
        np.testing.assert_allclose(kernel(std), np.float32(std) * draws, rtol=1e-6)
    assert len(traces) == 1


def test_a_new_head_is_of_the_head_s_precision():
    params = {path: leaf.astype(jnp.bfloat16) for path, leaf in fresh_head()[0].items()}
    head = LinearProbe().prepare(jax.random.PRNGKey(0), params, WIDE)
    assert {leaf.dtype for leaf in head.values()} == {jnp.dtype(jnp.bfloat16)}


def test_shapes_are_enough():
    found = jax.eval_shape(lambda params: LinearProbe().prepare(jax.random.PRNGKey(0), params, MLP), MLP_PARAMS)
    assert {path: leaf.shape for path, leaf in found.items()} == {"Dense_6/kernel": (4, 2), "Dense_6/bias": (2,)}
    assert jax.eval_shape(lambda params: Bitfit().prepare(jax.random.PRNGKey(0), params, MLP), MLP_PARAMS) == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_bitfit_moves_the_head_and_biases(name):
    groups, paths, _ = NETWORKS[name]
    biases = {path for path in paths if path.split("/")[-1] == "bias"}
    assert moving(Bitfit().table(groups), name) == biases | where(paths, lambda d: d == 99)


def test_bitfit_s_share_of_bert_base():
    """Ben Zaken et al., table 1: 0.09 % of BERT-base, without the classifier's layers; by hand 102,144 biases."""
    shapes = bert_shapes()
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    assert sum(sizes.values()) - 768 * 2 - 2 == 109_482_240  # BERT-base, the pooler included
    below = where(sizes, lambda d: d != 99)
    moved = sum(sizes[path] for path in moving(Bitfit().table(BERT.groups()), "bert") & below)
    assert moved == 12 * (5 * 768 + 3072 + 2 * 768) + 768
    assert f"{moved / sum(sizes.values()):.2%}" == "0.09%"


def test_bitfit_needs_a_bias_below_the_head():
    params = {"Dense_0/kernel": jnp.ones((3, 4)), "Dense_1/kernel": jnp.ones((4, 1)), "Dense_1/bias": jnp.ones(1)}
    with pytest.raises(UserError, match="strategy is bitfit, but the model has no bias below its head"):
        Bitfit().prepare(jax.random.PRNGKey(0), params, Mlp())
    with pytest.raises(
        UserError, match=r"strategy: the pattern '\.\*/bias' matches no parameter; groups: trunk, block_0"
    ):
        match_rules(Bitfit().table(Mlp().groups()), [path for path in params if "bias" not in path], Mlp().groups())
