"""RunAxis: `map` gives the bits of one run at a time, `vmap` the same numbers up to rounding; none touches another."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from src.data.diabetes import Diabetes
from src.data.digits import Digits
from src.models.mlp import Mlp
from src.optim.optimizers import Adam, Momentum
from src.optim.schedules import WarmupCosine
from src.recipe.spec import Recipe
from src.strategies.discriminative import Discriminative
from src.strategies.frozen import Frozen, Masked
from src.strategies.full import Full
from src.training import compiled
from src.training import vectorize as lanes
from src.training.vectorize import RunAxis, over_runs, padded_size, stack_runs
from tests.runs import pretrain, run_finetuning

CASES = {
    "frozen": Recipe(strategy=Frozen()),
    "masked-minibatch": Recipe(strategy=Masked(), batch_size=16, optimizer=Adam()),
    "full-clipped": Recipe(strategy=Full(), optimizer=Momentum(clip_norm=0.1, weight_decay=0.01)),
    "discriminative-minibatch": Recipe(
        strategy=Discriminative(0.5), batch_size=16, optimizer=Adam(), schedule=WarmupCosine(), model=Mlp((8, 4))
    ),
}


@pytest.fixture(scope="module")
def data():
    return Diabetes().load()


def grid(recipe, seeds=(0, 1), rates=(0.003, 0.01, 0.03)):
    base = dataclasses.replace(recipe, pretrain_steps=30, finetune_steps=47)
    return [dataclasses.replace(base, lr_fine=lr, seed=seed) for seed in seeds for lr in rates]


def one_at_a_time(recipes, data):
    found = []
    for recipe in recipes:
        rows = []
        (pre,) = pretrain([recipe], data)
        (outcome,) = run_finetuning([recipe], data, [pre], [rows.append])
        found.append((pre, outcome, rows))
    return found


def together(recipes, data, lanes):
    unique = {recipe.seed: recipe for recipe in recipes}
    pres = dict(zip(unique, pretrain(list(unique.values()), data, lanes), strict=True))
    rows = [[] for _ in recipes]
    starts = [pres[recipe.seed] for recipe in recipes]
    outcomes = run_finetuning(recipes, data, starts, [own.append for own in rows], lanes)
    return list(zip(starts, outcomes, rows, strict=True))


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        *(
            pytest.param(n, (0, 1), marks=pytest.mark.slow if "discr" in n else []) for n in CASES
        ),  # of two pre-trainings
        *(
            pytest.param(name, (3,), marks=[] if "frozen" in name else pytest.mark.slow) for name in CASES
        ),  # of one, shared
    ],
)
def test_map_gives_the_same_bits(data, name, seeds):
    recipes = grid(CASES[name], seeds)
    for alone, lane in zip(one_at_a_time(recipes, data), together(recipes, data, RunAxis.map), strict=True):
        (pre, outcome, rows), (lane_pre, lane_outcome, lane_rows) = alone, lane
        assert pre.rows == lane_pre.rows
        assert rows == lane_rows
        assert outcome.metrics == lane_outcome.metrics
        assert outcome.cost == lane_outcome.cost
        for path, value in outcome.params.items():
            np.testing.assert_array_equal(value, lane_outcome.params[path])


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("frozen", (3,)),
        *(pytest.param(name, (0, 1), marks=pytest.mark.slow) for name in CASES),
    ],
)
def test_vmap_gives_the_same_numbers(data, name, seeds):
    recipes = grid(CASES[name], seeds)
    for (_, alone, rows), (_, lane, lane_rows) in zip(
        one_at_a_time(recipes, data), together(recipes, data, RunAxis.vmap), strict=True
    ):
        for row, lane_row in zip(rows, lane_rows, strict=True):
            assert list(row) == list(lane_row)
            np.testing.assert_allclose(list(lane_row.values()), list(row.values()), rtol=1e-5, atol=1e-6)
        for key, value in alone.metrics.items():
            np.testing.assert_allclose(lane.metrics[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lanes", [RunAxis.map, RunAxis.vmap])
def test_a_diverging_lane_leaves_the_others_alone(data, lanes):
    calm = grid(Recipe(strategy=Full()), seeds=(0,))
    wild = dataclasses.replace(calm[0], lr_fine=1e5)
    wilder = dataclasses.replace(calm[0], lr_fine=1e20)
    mixed = together([calm[0], wild, calm[1], wilder, calm[2]], data, lanes)
    alone = together(calm, data, lanes)
    assert [outcome.diverged for _, outcome, _ in mixed] == [False, True, False, True, False]
    for (_, a, rows_a), (_, b, rows_b) in zip(alone, [mixed[0], mixed[2], mixed[4]], strict=True):
        for row_a, row_b in zip(rows_a, rows_b, strict=True):  # vmap may round by the number of its lanes
            np.testing.assert_allclose(
                list(row_a.values()), list(row_b.values()), rtol=0 if lanes is RunAxis.map else 1e-5
            )
        np.testing.assert_allclose(list(a.metrics.values()), list(b.metrics.values()), rtol=1e-5)
    (_, single, rows), (_, lane, lane_rows) = one_at_a_time([wild], data)[0], mixed[1]
    assert single.last_finite_step == lane.last_finite_step
    assert [row["step"] for row in rows] == [row["step"] for row in lane_rows]
    assert lane.metrics == {}
    assert lane.objective == np.inf


@pytest.mark.slow
def test_a_new_head_by_lane():
    data = Digits().load()
    recipes = [
        Recipe(seed=seed, batch_size=32, pretrain_steps=10, finetune_steps=10, model=Mlp((16,))) for seed in (0, 1)
    ]
    for alone, lane in zip(one_at_a_time(recipes, data), together(recipes, data, RunAxis.map), strict=True):
        assert alone[1].metrics == lane[1].metrics


def test_diverged_pretraining_ends_its_lane_only(data):
    calm = Recipe(pretrain_steps=20, finetune_steps=10)
    recipes = [calm, dataclasses.replace(calm, lr_pre=1e10)]
    pres = pretrain(recipes, data, RunAxis.map)
    first, second = run_finetuning(recipes, data, pres, [lambda row: None] * 2, RunAxis.map)
    assert first.status == "completed"
    assert second.status == "diverged"


def test_over_lanes_runs_only_as_many_as_there_are():
    lifted = over_runs(lambda x, shared: x * shared, RunAxis.map, (0, None))
    np.testing.assert_array_equal(lifted(3, jnp.arange(1.0, 5.0), 2.0), [2, 4, 6, 0])


def test_places():
    assert [padded_size(n) for n in (1, 2, 3, 4, 5, 50, 64)] == [1, 2, 4, 4, 8, 64, 64]
    np.testing.assert_array_equal(stack_runs([1, 2, 3]), [1, 2, 3, 1])


# --- what a long sweep holds ------------------------------------------------------------------------------------------


def test_programs_are_let_go_of_before_the_process_has_no_room_for_more(monkeypatch, tmp_path, data):
    """Half of the mappings that the system gives; whoever still holds a program can go on with it."""
    limit = tmp_path / "max_map_count"
    monkeypatch.setattr(compiled, "LIMIT", limit)
    recipe = dataclasses.replace(CASES["frozen"], pretrain_steps=5, finetune_steps=5)
    other = dataclasses.replace(recipe, optimizer=Adam())
    used = len(compiled.MAPPINGS.read_text().splitlines())
    lanes.release()
    limit.write_text(str(100 * used))
    first = one_at_a_time([recipe], data)
    held = lanes._programs.cache_info().currsize
    assert held > 1
    one_at_a_time([other], data)
    assert lanes._programs.cache_info().currsize > held
    limit.write_text("10")
    again = one_at_a_time([recipe], data)  # nothing is new: nothing is let go of
    assert lanes._programs.cache_info().currsize > held
    one_at_a_time([dataclasses.replace(recipe, optimizer=Momentum())], data)
    assert lanes._programs.cache_info().currsize == 1
    for path, leaf in first[0][1].params.items():
        assert np.array_equal(leaf, again[0][1].params[path])


def test_without_such_a_limit_nothing_is_let_go_of(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "LIMIT", tmp_path / "none")
    assert not compiled.crowded()
