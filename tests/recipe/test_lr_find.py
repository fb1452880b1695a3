"""The range test against curves with known answers, and on a real task."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from src.data.diabetes import Diabetes
from src.errors import UserError
from src.recipe.lr_find import Exponential, cut_off, longest_decrease, range_test, suggestions
from src.recipe.spec import Recipe
from src.strategies.full import Full
from tests.runs import finetune, pretrained

RATES = np.logspace(-6, 1, 100)


def test_rates_grow_by_a_factor_from_end_to_end():
    shape = Exponential(1e-6, 1e-2)
    np.testing.assert_allclose([shape.shape(i, 5) for i in range(5)], [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_decrease_is_the_longest(seed):
    values = np.random.default_rng(seed).permutation(9).astype(float)
    found = longest_decrease(values)
    assert (np.diff(values[found]) < 0).all()
    assert (np.diff(found) > 0).all()
    longest = max(
        size
        for size in range(1, 10)
        for places in itertools.combinations(range(9), size)
        if (np.diff(values[list(places)]) < 0).all()
    )
    assert len(found) == longest


def test_an_explosion_ends_the_curve():
    losses = np.concatenate([np.full(50, 2.0), np.full(50, 1e6)])
    assert len(cut_off(RATES, losses).rates) == 50
    with_nan = np.full(100, 2.0)
    with_nan[30:] = np.nan
    assert len(cut_off(RATES, with_nan).rates) == 30
    with pytest.raises(UserError, match="the loss exploded after 3 updates"):
        cut_off(RATES, np.concatenate([np.ones(3), np.full(97, np.inf)]))


def test_smoothing_starts_unbiased():
    """A constant loss stays itself; a moving average that starts from 0 would rise."""
    np.testing.assert_allclose(cut_off(RATES, np.full(100, 3.0)).smoothed, 3.0)


def test_suggestions_lie_where_a_known_curve_has_them():
    x = np.log10(RATES)
    losses = 1 + 1 / (1 + np.exp(4 * (x + 3))) + np.exp(8 * (x + 0.5))  # falls fastest at 1e-3, lowest near 10**-1.2
    found = suggestions(cut_off(RATES, losses)._replace(smoothed=losses[: len(cut_off(RATES, losses).rates)]))
    assert found["steepest"] == pytest.approx(1e-3, rel=0.1)
    lowest = RATES[np.argmin(losses)]
    assert found["minimum / 10"] == pytest.approx(lowest / 10)
    assert 1e-6 < found["valley"] < lowest


def test_on_a_real_task_the_suggestion_trains_and_the_caller_s_parameters_stay():
    data = Diabetes().load()
    recipe = Recipe(strategy=Full(), pretrain_steps=20, finetune_steps=50)
    params = pretrained(recipe, data)
    before = {path: np.array(leaf) for path, leaf in params.items()}
    test = range_test(recipe, data, params, low=1e-5, high=100.0)
    assert len(test.rates) < 100  # it explodes before a rate of 100
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, before[path])
    rate = suggestions(test)["valley"]
    rows = []
    finetune([replace(recipe, lr_fine=rate)], data, [params], [rows.append])
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]


@pytest.mark.parametrize(("low", "high", "steps"), [(1.0, 0.1, 100), (0.0, 1.0, 100), (1e-3, 1.0, 3)])
def test_bad_input_is_refused(low, high, steps):
    data = Diabetes().load()
    with pytest.raises(UserError, match="allowed"):
        range_test(Recipe(), data, {}, low=low, high=high, steps=steps)
