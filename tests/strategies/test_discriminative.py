"""Discriminative rates: the multipliers that others publish, one program for all of them, and steps in proportion."""

from dataclasses import dataclass
from fractions import Fraction

import jax
import numpy as np
import pytest

from src.config.hparams import hparam, static_part
from src.config.schema import typed
from src.data.diabetes import Diabetes
from src.errors import UserError
from src.models.mlp import Mlp
from src.recipe.spec import Recipe
from src.strategies import layer_scales
from src.strategies.base import Strategy
from src.strategies.discriminative import Discriminative
from src.strategies.full import Full
from src.training.stage import traced
from tests.runs import finetuned, finetuning_stage, pretrained
from tests.strategies.networks import BERT, NETWORKS, rates


def test_each_group_has_its_rate():
    """By the words of the paths, on 12 layers: layer_1 and layer_10 differ by nine steps."""
    found = rates(Discriminative(0.75).table(BERT.groups()), "bert")
    assert found == {99: 1.0} | {block: float(Fraction(3, 4) ** (13 - block)) for block in range(13)}


def test_min_scale_is_a_floor():
    """Above the floor nothing changes, below it every group has it."""
    found = rates(Discriminative(0.5, min_scale=0.1).table(NETWORKS["mlp"][0]), "mlp")
    assert found == {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.125, 5: 0.25, 6: 0.5, 99: 1.0}


def test_xi_is_one_over_decay():
    found = rates(Discriminative(xi=2.6).table(BERT.groups()), "bert")
    assert 1 / found[0] == pytest.approx(248_115, abs=0.5)
    assert found[99] == 1.0
    assert found[12] == pytest.approx(1 / 2.6)


@pytest.mark.parametrize(("decay", "share"), [(1 / 2.6, (0.8, 1.0)), (0.9, (0.0, 0.01))])
def test_the_hidden_freeze(decay, share):
    """With 2e-5 for the head, a step of Adam's size at the bottom of 14 groups: how many float32 weights it moves."""
    weights = np.random.default_rng(0).normal(0, 0.02, 100_000).astype(np.float32)
    step = np.float32(2e-5 * layer_scales(14, decay)[0])
    least, most = share
    assert least <= np.mean(weights - step == weights) <= most


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"xi": 0.5}, "strategy.xi is 0.5; allowed: a finite number >= 1"),
        ({"xi": 0}, "strategy.xi is 0.0; allowed: a finite number >= 1"),
        ({"xi": float("inf")}, "strategy.xi is inf; allowed: a finite number >= 1"),
        ({"decay": 1.5}, "strategy.decay is 1.5; allowed: a number > 0 and at most 1"),
        ({"min_scale": -0.1}, "strategy.min_scale is -0.1; allowed: a number from 0 to 1"),
        ({"xi": 2.6, "decay": 0.5}, r"strategy.xi is 2.6 and strategy.decay is 0.5; allowed: one of them"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        typed(Discriminative, values, "strategy")


def test_one_program_serves_every_value():
    traces = []

    @jax.jit
    def multipliers(decay, xi, least):
        traces.append(None)
        lines = [Discriminative(decay, None, least), Discriminative(xi=xi, min_scale=least)]
        return [[value for _, value in strategy.table(BERT.groups())] for strategy in lines]

    for decay, xi, least in [(0.9, 2.6, 0.0), (0.75, 1.0, 0.2), (1.0, 1.5, 1e-3)]:
        for found, factor in zip(multipliers(decay, xi, least), (decay, 1 / xi), strict=True):
            expected = [max(np.float64(factor) ** n, least) for n in range(14)]
            np.testing.assert_allclose(found, expected, rtol=3e-6)
    assert len(traces) == 1


@dataclass(frozen=True)
class TrainerConfig(Strategy):
    """The formula without floor or divisor."""

    decay: float = hparam(0.9, traced=True)

    def table(self, groups):
        return tuple((name, self.decay**depth) for depth, (name, _) in enumerate(reversed(groups)))


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    return data, pretrained(Recipe(model=Mlp(widths=(8, 8)), pretrain_steps=20), data)


def trained(task, strategy, **changes):
    data, params = task
    recipe = Recipe(model=Mlp(widths=(8, 8)), strategy=strategy, **{"finetune_steps": 20, "lr_fine": 0.03} | changes)
    return finetuned(recipe, data, params).params


@pytest.mark.parametrize("least", [None, 0.0])
def test_no_floor_changes_no_bit(task, least):
    mine, plain = trained(task, Discriminative(min_scale=least)), trained(task, TrainerConfig())
    for path in plain:
        np.testing.assert_array_equal(mine[path], plain[path])


@pytest.mark.parametrize(("strategy", "factor"), [(Discriminative(0.5), 0.5), (Discriminative(xi=4.0), 0.25)])
def test_steps_are_in_proportion(task, strategy, factor):
    """One update of gradient descent moves each group by its scale of what full fine-tuning moves it."""
    before = task[1]
    mine, full = (trained(task, s, finetune_steps=1) for s in (strategy, Full()))
    for path, power in {"Dense_0/kernel": 2, "Dense_1/kernel": 1, "Dense_2/kernel": 0}.items():
        step, whole = (np.asarray(after[path], np.float64) - before[path] for after in (mine, full))
        assert np.abs(whole).max() > 1e-3
        np.testing.assert_allclose(step, whole * factor**power, atol=1e-7)


def test_xi_is_traced_where_it_is_given(task):
    """Two divisors are arguments of one program, whose static part knows the lines; without one there is none."""
    one, other = (finetuning_stage(Recipe(strategy=Discriminative(xi=xi)), task[0]) for xi in (2.6, 4.0))
    assert static_part(one) == static_part(other)
    assert traced(one)["strategy.xi"] == np.float32(2.6)
    assert [name for name, _ in static_part(one).strategy.table(Mlp().groups())] == ["head", "block_0"]
    assert "strategy.xi" not in traced(finetuning_stage(Recipe(strategy=Discriminative()), task[0]))
