"""Features of a frozen bottom are kept where they may be, change nothing, and are not kept where they would."""

import logging
from dataclasses import replace

import jax
import numpy as np
import pytest

from src.data.diabetes import Diabetes
from src.data.digits import Digits
from src.models.bert import Bert
from src.models.mlp import Mlp
from src.optim.optimizers import Adam
from src.recipe.spec import Recipe
from src.strategies.frozen import Frozen, Masked
from src.strategies.full import Full
from src.training import feature_cache as features
from src.training.feature_cache import cache_features, chunks, num_frozen_groups
from src.training.stage import initial
from src.training.trainer import TrainerConfig
from src.training.vectorize import RunAxis
from tests.runs import finetune, phases, pretrain, pretrained

WHOLE = TrainerConfig(feature_cache=0.0)


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    recipe = Recipe(model=Mlp((7, 6, 5)), pretrain_steps=20, finetune_steps=20, optimizer=Adam(), lr_fine=0.01)
    return recipe, data, pretrained(recipe, data)


@pytest.mark.parametrize(
    ("strategy", "groups"),
    [
        (Frozen(), 3),
        (Masked(("block_2", "head")), 2),
        (Masked(("block_1", "head")), 1),
        (Masked(("Dense_0/bias", "head")), 0),
        (Full(), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 16])
def test_training_on_kept_features_is_training_the_whole(task, strategy, groups, batch_size):
    recipe, data, params = task
    recipe = replace(recipe, strategy=strategy, batch_size=batch_size)
    ((stage,),) = phases([recipe], data)
    assert num_frozen_groups(stage, params) == groups
    rows, whole_rows = [], []
    kept = finetune([recipe], data, [params], [rows.append])
    whole = finetune([replace(recipe, trainer=WHOLE)], data, [params], [whole_rows.append])
    for path in params:
        np.testing.assert_allclose(kept.fits[0].params[path], whole.fits[0].params[path], rtol=1e-4, atol=1e-5)
    for one, other in zip(rows, whole_rows, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-3, atol=1e-5)
    assert kept.metrics[0].keys() == whole.metrics[0].keys()
    if groups:
        assert kept.cost.flops < whole.cost.flops


def test_dropout_forbids_it(task):
    recipe, data, params = task
    ((stage,),) = phases([replace(recipe, model=Mlp((7, 6, 5), dropout=0.1))], data)
    assert num_frozen_groups(stage, params) == 0


def test_too_small_a_budget_is_said_and_changes_nothing_else(task, caplog):
    recipe, data, params = task
    features.warn_once.cache_clear()
    small = replace(recipe, trainer=TrainerConfig(feature_cache=1e-3))
    with caplog.at_level(logging.WARNING):
        end = finetune([small], data, [params], [lambda _row: None])
    assert "more than trainer.feature_cache=0.001" in caplog.text
    whole = finetune([replace(recipe, trainer=WHOLE)], data, [params], [lambda _row: None])
    np.testing.assert_array_equal(end.fits[0].params["Dense_3/kernel"], whole.fits[0].params["Dense_3/kernel"])


def test_rows_are_run_in_pieces_of_one_size():
    x = np.arange(2500, dtype=np.float32)[:, None]
    pieces = chunks(Mlp(), x)
    assert [len(piece) for piece, _ in pieces] == [1024, 1024, 1024]
    np.testing.assert_array_equal(np.concatenate([piece[:count] for piece, count in pieces]), x)
    (alone,) = chunks(Mlp(), x[:1024])
    assert alone[1] == 1024
    rows = np.arange(300, dtype=np.int32).reshape(100, 3, 1).repeat(64, axis=2)  # of 64 tokens
    assert [len(piece) for piece, _ in chunks(Bert(), rows)] == [64, 64]


@pytest.mark.parametrize(
    "data", [pytest.param(Diabetes(), marks=pytest.mark.slow), Digits()], ids=["diabetes", "digits"]
)
@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)], ids=["one pre-training", "three"])
def test_lanes_have_the_bits_of_single_runs(data, seeds):
    data = data.load()
    base = Recipe(model=Mlp((7, 6)), pretrain_steps=10, finetune_steps=10, strategy=Masked())
    recipes = [replace(base, lr_fine=rate, seed=seed) for rate, seed in zip((0.1, 0.03, 0.01), seeds, strict=True)]
    starts = [pre.params for pre in pretrain(recipes[:1], data)] * 3 if len(set(seeds)) == 1 else [
        pretrain([recipe], data)[0].params for recipe in recipes
    ]  # fmt: skip
    _, inputs = cache_features(phases(recipes, data)[0], starts, data.target, RunAxis.map)
    assert inputs.per_run == (len(set(seeds)) > 1)
    lane_rows = [[] for _ in recipes]
    together = finetune(recipes, data, starts, [own.append for own in lane_rows], RunAxis.map)
    for lane, (recipe, begin) in enumerate(zip(recipes, starts, strict=True)):
        rows = []
        alone = finetune([recipe], data, [begin], [rows.append])
        assert rows == lane_rows[lane]
        assert alone.metrics[0] == together.metrics[lane]
        assert alone.cost == together.cost
        for path in begin:
            np.testing.assert_array_equal(alone.fits[0].params[path], together.fits[lane].params[path])


def test_a_bottom_of_nothing_but_new_leaves_does_not_rest():
    """What a strategy adds to a group makes the group move, although its own parameters rest."""
    from src.strategies.base import Strategy

    class Adding(Strategy):
        adapter_params = ("shift",)

        def table(self, groups):
            return (("head", 1.0), (".*/shift", 1.0), (".*", None))

        def prepare(self, key, params, model):
            return {"Dense_1/shift": jax.numpy.zeros(6)}

    data = Diabetes().load()
    recipe = Recipe(model=Mlp((7, 6, 5)), strategy=Adding())
    ((stage,),) = phases([recipe], data)
    assert num_frozen_groups(stage, initial(stage, data.features, 0)) == 1
