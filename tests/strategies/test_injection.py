"""What strategies with injected leaves share: targets, tables, counts, errors, the pre-trained model at the start."""

import re

import jax
import numpy as np
import pytest

from src.errors import UserError
from src.models.mlp import Mlp
from src.optim.partition import FROZEN, match_rules
from src.strategies.adapter import Adapter, AdapterKind
from src.strategies.dora import Dora
from src.strategies.ia3 import Ia3
from src.strategies.lora import Lora
from tests.strategies.injected import Convolutional, Encoder, count, prepared, run, shapes_added, started

MLP = Mlp((8, 12))
ENCODER = Encoder()
ATTENTION = (".*/[qkvo]",)
STRATEGIES = [
    Lora(rank=2),
    Dora(rank=2),
    Ia3(),
    Ia3(feedforward=(".*",)),
    Adapter(size=3),
    Adapter(kind=AdapterKind.houlsby, size=4),
]


def case(model):
    """Return parameters and inputs of one of the two networks."""
    features = (5,) if isinstance(model, Mlp) else (6, 7, 3)
    x = np.random.default_rng(0).standard_normal((4, *features)).astype(np.float32)
    return started(model, features, 9), x


@pytest.mark.parametrize("model", [MLP, Convolutional()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_fine_tuning_starts_at_the_pretrained_model(strategy, model):
    """To the bit; within rounding for DoRA, whose gain is a quotient of two norms, and for fused programs."""
    params, x = case(model)
    both = params | prepared(strategy, model, params)
    assert len(both) > len(params)
    plain, adapted = model.apply(params, x, 9), run(strategy, model, both, x, 9)
    if isinstance(strategy, Dora):
        np.testing.assert_allclose(adapted, plain, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(adapted, plain)
    fused = jax.jit(lambda both: run(strategy, model, both, x, 9))
    np.testing.assert_allclose(fused(both), plain, rtol=2e-6, atol=1e-6)
    assert np.abs(fused(params | prepared(strategy, model, params, 0.1)) - plain).max() > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_only_what_was_added_and_the_head_move(strategy):
    params, _ = case(MLP)
    added = set(strategy.prepare(jax.random.PRNGKey(0), params, MLP))
    groups = MLP.groups()
    moving = set(match_rules(strategy.table(groups), params | dict.fromkeys(added), groups).trainable)
    assert moving == added | {"Dense_2/kernel", "Dense_2/bias"}
    alone = type(strategy)(**{**vars(strategy), "train_head": False})
    assert set(match_rules(alone.table(groups), params | dict.fromkeys(added), groups).trainable) == added


def test_b_has_its_own_rate():
    params, _ = case(MLP)
    for strategy in (Lora(rank=2, loraplus_lr_ratio=16.0), Dora(rank=2, loraplus_lr_ratio=16.0)):
        added = strategy.prepare(jax.random.PRNGKey(0), params, MLP)
        found = match_rules(strategy.table(MLP.groups()), params | added, MLP.groups()).lr_scale
        assert {found[path] for path in added if path.endswith("lora_b")} == {16.0}
        assert {found[path] for path in added if not path.endswith("lora_b")} == {1.0}
        assert found["Dense_2/bias"] == 1.0
        assert found["Dense_0/kernel"] is FROZEN


def test_normalisation_moves_only_when_told_to():
    model = Convolutional()
    params, _ = case(model)
    both = params | Adapter().prepare(jax.random.PRNGKey(0), params, model)

    def moving(strategy):
        return set(match_rules(strategy.table(model.groups()), both, model.groups()).trainable)

    norms = {f"block_{i}/BatchNorm_0/{leaf}" for i in range(2) for leaf in ("scale", "bias")}
    assert norms <= set(params)
    assert moving(Adapter(train_norm=True)) - moving(Adapter()) == norms


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
def test_lora_has_the_published_number_of_parameters(rank):
    """Four 768 x 768 projections in twelve layers: 12 * 4 * 2 * 768 = 73,728 for each unit of rank."""
    assert count(shapes_added(Lora(rank=rank, targets=ATTENTION), ENCODER, ENCODER.shapes())) == 73_728 * rank


def test_the_others_have_the_published_numbers_of_parameters():
    """Of adapters with biases, 12 * (2 * 768 * 64 + 64 + 768) for one a layer, twice that for two."""
    shapes = ENCODER.shapes()
    assert count(shapes_added(Adapter(size=64), ENCODER, shapes)) == 1_189_632
    assert count(shapes_added(Adapter(kind=AdapterKind.houlsby, size=64), ENCODER, shapes)) == 2_379_264
    assert count(shapes_added(Dora(rank=8, targets=ATTENTION), ENCODER, shapes)) == 73_728 * 8 + 12 * 4 * 768
    # Liu et al., section 3.3: keys, values and the middle of the feed-forward block.
    ia3 = Ia3(targets=(".*/[kv]",), feedforward=(".*/down",))
    assert count(shapes_added(ia3, ENCODER, shapes)) == 12 * (768 + 768 + 3072)


def test_ranks_by_pattern():
    """The first pattern that matches decides: of a group, of a kernel, of a module; the others have the common rank."""
    strategy = Lora(rank=2, rank_pattern=("layer_0/q:5", "layer_0:3", ".*/up/kernel:7"))
    added = shapes_added(strategy, ENCODER, ENCODER.shapes())
    ranks = {path.removesuffix("/lora_a"): leaf.shape[-1] for path, leaf in added.items() if path.endswith("lora_a")}
    assert len(ranks) == 12 * 6
    assert ranks["layer_0/q"] == 5
    assert {ranks[f"layer_0/{name}"] for name in ("k", "v", "o", "up", "down")} == {3}
    assert {ranks[f"layer_{i}/up"] for i in range(1, 12)} == {7}
    assert {ranks[f"layer_{i}/{name}"] for i in range(1, 12) for name in ("q", "k", "v", "o", "down")} == {2}
    for path, rank in ranks.items():
        assert added[f"{path}/lora_b"].shape[0] == rank


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (("trunk",), ["Dense_0", "Dense_1"]),
        (("block_1",), ["Dense_1"]),
        (("Dense_0",), ["Dense_0"]),
        (("Dense_0/kernel", "head"), ["Dense_0", "Dense_2"]),
        ((".*",), ["Dense_0", "Dense_1", "Dense_2"]),
    ],
)
def test_targets(targets, modules):
    params, _ = case(MLP)
    added = shapes_added(Lora(rank=2, targets=targets), MLP, params)
    assert sorted(added) == sorted(f"{module}/{leaf}" for module in modules for leaf in ("lora_a", "lora_b"))
    assert sorted(shapes_added(Ia3(targets=targets), MLP, params)) == [f"{module}/ia3" for module in modules]


def test_a_leaf_starts_the_same_whatever_else_is_a_target():
    params, _ = case(MLP)
    key = jax.random.PRNGKey(3)
    alone, among = (Lora(rank=2, targets=t).prepare(key, params, MLP) for t in (("Dense_1",), ("trunk",)))
    np.testing.assert_array_equal(alone["Dense_1/lora_a"], among["Dense_1/lora_a"])
    # Uniform on +-1/sqrt(fan-in): 768 * 64 values come close to the bounds, and have the variance 1 / (3 fan-in).
    wide = {"Dense_0/kernel": np.zeros((768, 64), np.float32)}
    a = Lora(rank=64, targets=("Dense_0",)).prepare(key, wide, Mlp((64,)))["Dense_0/lora_a"]
    assert 0.999 < np.abs(a).max() * 768**0.5 <= 1
    np.testing.assert_allclose(np.var(a), 1 / (3 * 768), rtol=0.02)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Lora(rank=64), "strategy.rank: rank 64 is above the 5 x 8 matrix of Dense_0/kernel; allowed: at most 5"),
        (Dora(rank=64), "strategy.rank: rank 64 is above the 5 x 8 matrix of Dense_0/kernel; allowed: at most 5"),
        (
            Lora(rank=2, rank_pattern=("Dense_1:9",)),
            "strategy.rank_pattern: rank 9 is above the 8 x 12 matrix of Dense_1/kernel; allowed: at most 8",
        ),
        (
            Lora(rank=2, rank_pattern=("head:2",)),
            "strategy.rank_pattern: 'head' matches no target; allowed: Dense_0/kernel, Dense_1/kernel",
        ),
        (
            Lora(targets=("Dens_0",)),
            "strategy.targets: the pattern 'Dens_0' matches no kernel (did you mean 'Dense_0'?); allowed: groups "
            "(trunk, block_0, block_1, head) or expressions on kernels (Dense_0/kernel, Dense_1/kernel, Dense_2/",
        ),
        (Ia3(targets=("truk",)), "strategy.targets: the pattern 'truk' matches no kernel (did you mean 'trunk'?)"),
        (Ia3(feedforward=("blok_1",)), "strategy.feedforward: the pattern 'blok_1' matches no kernel"),
        (
            Lora(rank=2, targets=("trunk", "Dense_0/bias")),
            "strategy.targets: the pattern 'Dense_0/bias' matches only Dense_0/bias; allowed",
        ),
        (Lora(targets=("Dense_[",)), "strategy: 'Dense_[' is not a regular expression"),
        (Lora(targets=()), "strategy.targets is empty"),
        (Ia3(targets=()), "strategy.targets is empty"),
    ],
)
def test_mistakes_are_found_from_shapes_alone(strategy, message):
    params, _ = case(MLP)
    with pytest.raises(UserError, match=re.escape(message)):
        shapes_added(strategy, MLP, params)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (".*/scale", "matches only block_0/BatchNorm_0/scale, block_1/BatchNorm_0/scale"),
        (".*/mean", "matches only block_0/BatchNorm_0/mean, block_1/BatchNorm_0/mean"),
    ],
)
def test_what_is_no_kernel_takes_nothing(pattern, message):
    model = Convolutional()
    params, _ = case(model)
    for strategy in (Lora(rank=2, targets=(pattern,)), Ia3(targets=(pattern,))):
        with pytest.raises(UserError, match=message):
            shapes_added(strategy, model, params)


def test_kernels_with_heads_and_embeddings_are_refused():
    shapes = {"Dense_0/kernel": (8, 2, 4), "table/embedding": (100, 8), "Dense_1/kernel": (8, 3)}
    params = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    with pytest.raises(UserError, match=r"names Dense_0/kernel, which has the shape 8 x 2 x 4; allowed"):
        shapes_added(Lora(), Mlp((8,)), params)
    with pytest.raises(UserError, match=r"'table/.*' matches only table/embedding"):
        shapes_added(Lora(targets=("table/.*",)), Mlp((8,)), params)
