"""Phases of fine-tuning: each its own program; the optimizer goes on for what moved, and starts anew for what joins."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from src.config.hparams import RATIO, hparam
from src.data.diabetes import Diabetes
from src.models.mlp import Mlp
from src.optim.optimizers import Adam, Sgd
from src.optim.partition import FROZEN
from src.optim.schedules import WarmupLinear
from src.recipe.spec import Recipe
from src.strategies.base import Strategy
from src.strategies.full import Full
from src.training.trainer import Keep, TrainerConfig
from src.training.vectorize import RunAxis
from src.types import ignore
from tests.runs import finetune, finetuned, phases, pretrain, pretrained, run_finetuning


@dataclass(frozen=True)
class TwoPhases(Strategy):
    """The head alone for a share of the updates, then everything."""

    share: float = hparam(0.5, RATIO)

    def tables(self, groups):
        return ((("head", 1.0), (".*", FROZEN)), ((".*", 1.0),))

    def phase_steps(self, phases, steps, epoch):
        return (round(self.share * steps), steps - round(self.share * steps))


@dataclass(frozen=True)
class OneByOne(Strategy):
    """Each group alone, from the bottom."""

    def tables(self, groups):
        return tuple(((name, 1.0), (".*", FROZEN)) for name, _ in groups)

    def phase_steps(self, phases, steps, epoch):
        return (steps // phases,) * (phases - 1) + (steps - (phases - 1) * (steps // phases),)


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    recipe = Recipe(
        model=Mlp((6, 5)), pretrain_steps=20, finetune_steps=12, log_every=3, optimizer=Adam(), lr_fine=0.01
    )
    return recipe, data, pretrained(recipe, data)


def adam(grads, m, v, count, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, v = b1 * m + (1 - b1) * grads, b2 * v + (1 - b2) * grads**2
    return m, v, -lr * (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count)) + eps)


def test_adam_s_state_goes_on_for_what_moved_and_starts_fresh_for_what_joins(task):
    """A float64 re-computation in NumPy, a count for each leaf; with one shared count, first steps would overshoot."""
    recipe, data, params = task
    recipe = replace(recipe, strategy=TwoPhases())
    end = finetuned(recipe, data, params).params
    x, y = (np.asarray(part, np.float64) for part in data.target["train"])
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    state = {path: (np.zeros_like(leaf), np.zeros_like(leaf), 0) for path, leaf in weights.items()}
    for step in range(12):
        hidden, inputs = x, [x]
        for i in range(2):
            hidden = np.maximum(hidden @ weights[f"Dense_{i}/kernel"] + weights[f"Dense_{i}/bias"], 0)
            inputs.append(hidden)
        slope = 2 * (hidden @ weights["Dense_2/kernel"][:, 0] + weights["Dense_2/bias"][0] - y)[:, None] / len(y)
        grads = {}
        for i in (2, 1, 0):
            grads[f"Dense_{i}/kernel"], grads[f"Dense_{i}/bias"] = inputs[i].T @ slope, slope.sum(0)
            slope = (slope @ weights[f"Dense_{i}/kernel"].T) * (inputs[i] > 0)
        for path, grad in grads.items():
            if step < 6 and not path.startswith("Dense_2"):
                continue
            m, v, count = state[path]
            m, v, change = adam(grad, m, v, count + 1, 0.01)
            state[path], weights[path] = (m, v, count + 1), weights[path] + change
    for path, leaf in weights.items():
        np.testing.assert_allclose(end[path], leaf, rtol=2e-4, atol=2e-6, err_msg=path)


def test_the_rows_of_phases_are_one_series(task):
    recipe, data, params = task
    rows = []
    finetuned(replace(recipe, strategy=TwoPhases(), schedule=WarmupLinear(0.5)), data, params, rows.append)
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    # Each phase has the whole schedule: the rates of updates 2 and 5 (of 6, 3 of them warm-up), twice.
    np.testing.assert_allclose([row["lr"] for row in rows[1:]], [0.01 * 2 / 3, 0.01 / 3] * 2, rtol=1e-6)


def test_what_a_phase_does_not_move_keeps_its_bits(task):
    recipe, data, params = task
    recipe = replace(recipe, strategy=OneByOne(), optimizer=Sgd())
    plan = phases([recipe], data)
    assert [(stage.phase, stage.first, stage.steps) for (stage,) in plan] == [(0, 0, 4), (1, 4, 4), (2, 8, 4)]
    two = replace(recipe, finetune_steps=12)
    end = finetuned(two, data, params).params
    assert all(not np.array_equal(end[path], params[path]) for path in params)
    only = finetuned(replace(recipe, strategy=TwoPhases(share=1.0), finetune_steps=6), data, params).params
    for path in params:
        assert np.array_equal(only[path], params[path]) == (not path.startswith("Dense_2"))


@pytest.mark.parametrize(
    "strategy", [TwoPhases(), pytest.param(OneByOne(), marks=pytest.mark.slow)], ids=["two", "one by one"]
)
def test_lanes_have_the_bits_of_single_runs(task, strategy):
    recipe, data, params = task
    recipes = [replace(recipe, strategy=strategy, lr_fine=rate) for rate in (0.01, 0.02, 1e30)]
    seen, lane_rows = [], [[] for _ in recipes]
    together = finetune(recipes, data, [params] * 3, [own.append for own in lane_rows], RunAxis.map)
    for lane, one in enumerate(recipes):
        rows = []
        alone = finetune([one], data, [params], [rows.append])
        assert rows == lane_rows[lane]
        fit, other = alone.fits[0], together.fits[lane]
        assert fit[1:-1] == other[1:-1]  # all but the parameters and the seconds
        if not fit.diverged:
            assert alone.metrics[0] == together.metrics[lane]
            for path in fit.params:
                np.testing.assert_array_equal(fit.params[path], other.params[path])
        seen.append(fit.diverged)
    assert seen == [False, False, True]


def test_phases_of_one_kind_are_one_program_for_all_rates(task):
    from src.training.vectorize import _programs

    recipe, data, params = task
    _programs.cache_clear()
    for rate in (0.1, 0.01):
        finetuned(replace(recipe, strategy=TwoPhases(), lr_fine=rate), data, params)
    assert _programs.cache_info().currsize == 2


# --- the best step, and when to stop ---------------------------------------------------------------------------------


def test_the_best_evaluation_is_what_is_kept(task):
    recipe, data, params = task
    recipe = replace(recipe, strategy=Full(), finetune_steps=60, lr_fine=0.05)
    rows = []
    last = finetuned(recipe, data, params, rows.append)
    best = finetuned(replace(recipe, trainer=TrainerConfig(keep=Keep.best)), data, params)
    lowest = min(rows, key=lambda row: row["val_loss"])
    assert 0 < lowest["step"] < 60  # or this test shows nothing
    assert (last.kept_step, best.kept_step) == (60, lowest["step"])
    exact = finetuned(replace(recipe, finetune_steps=int(lowest["step"])), data, params)
    for path in params:
        np.testing.assert_array_equal(best.params[path], exact.params[path])


def test_patience_counts_evaluations_and_goes_back_to_the_best(task):
    recipe, data, params = task
    recipe = replace(recipe, strategy=Full(), finetune_steps=300, lr_fine=0.05)
    rows, all_rows = [], []
    finetuned(recipe, data, params, all_rows.append)
    end = finetuned(replace(recipe, trainer=TrainerConfig(patience=4)), data, params, rows.append)
    waited, best, expected = 0, np.inf, {}
    for expected in all_rows:  # the rule, by hand
        waited, best = (0, expected["val_loss"]) if expected["val_loss"] < best else (waited + 1, best)
        if waited == 4:
            break
    assert rows == all_rows[: len(rows)]
    assert rows[-1] == expected
    assert len(rows) < len(all_rows)
    assert end.kept_step == rows[-5]["step"]
    assert not end.diverged


def test_patience_in_lanes_stops_each_at_its_own_step(task):
    recipe, data, params = task
    base = replace(recipe, strategy=Full(), finetune_steps=90, trainer=TrainerConfig(patience=3))
    recipes = [replace(base, lr_fine=rate) for rate in (0.2, 0.03, 0.001)]
    lane_rows = [[] for _ in recipes]
    together = finetune(recipes, data, [params] * 3, [own.append for own in lane_rows], RunAxis.map)
    for lane, one in enumerate(recipes):
        rows = []
        alone = finetune([one], data, [params], [rows.append])
        assert rows == lane_rows[lane]
        assert alone.metrics[0] == together.metrics[lane]
        assert alone.fits[0].kept_step == together.fits[lane].kept_step
    assert len({len(own) for own in lane_rows}) > 1


def test_a_loss_that_is_not_a_number_is_never_best(task):
    recipe, data, params = task
    recipe = replace(
        recipe, strategy=Full(), finetune_steps=30, optimizer=Sgd(), lr_fine=1e25, trainer=TrainerConfig(patience=2)
    )
    end = finetuned(recipe, data, params)
    assert end.diverged
    assert end.kept_step == 0
    for path in params:
        np.testing.assert_array_equal(end.params[path], params[path])


def test_signals_say_where_validation_was_best(task):
    recipe, data, _ = task
    recipe = replace(recipe, strategy=Full(), finetune_steps=60, lr_fine=0.05)
    rows = []
    (outcome,) = run_finetuning([recipe], data, pretrain([recipe], data), [rows.append])
    lowest = min(rows, key=lambda row: row["val_loss"])
    assert outcome.signals["best_step"] == lowest["step"]
    assert outcome.signals["plateau"] == pytest.approx((60 - lowest["step"]) / 60)
    assert outcome.signals["gap"] == outcome.metrics["val_loss"] - outcome.metrics["train_loss"]
    assert outcome.moved is not None
    assert outcome.moved.frozen == 0
    assert outcome.moved.unchanged == ()


def test_a_frozen_run_says_that_nothing_else_moved(task):
    recipe, data, _ = task
    recipe = replace(recipe, finetune_steps=6)
    (outcome,) = run_finetuning([recipe], data, pretrain([recipe], data), [ignore])
    assert outcome.moved is not None
    assert (outcome.moved.frozen, outcome.moved.frozen_changed) == (4, ())
