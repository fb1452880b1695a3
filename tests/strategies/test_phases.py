"""Strategies of several phases: what moves in each, and how the updates are shared out."""

import itertools

import jax
import numpy as np
import pytest

from src.config.schema import typed
from src.errors import UserError
from src.strategies.phases import ChainThaw, Gradual, LpFt
from tests.strategies.networks import BERT, NETWORKS, phases, rates, where

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


@EVERY_NETWORK
def test_gradual_adds_a_group_a_phase_from_the_head_down(name):
    groups, paths, blocks = NETWORKS[name]
    found = phases(Gradual(), name)
    assert len(found) == len(groups)
    for phase, moves in enumerate(found):
        assert moves == where(paths, lambda d, least=blocks - phase: d > least)
    assert all(smaller < larger for smaller, larger in itertools.pairwise(found))
    assert found[-1] == set(paths)


def test_gradual_rates_stay_a_group_s_own():
    """A group's rate is counted from the head, whatever moves below it: ULMFiT's five groups at 2.6."""
    *unfreezing, last = Gradual(decay=0.5).tables(NETWORKS["mlp"][0])
    assert rates(last, "mlp") == {99: 1.0, 6: 0.5, 5: 0.25, 4: 0.125, 3: 0.0625, 2: 0.03125, 1: 0.015625}
    assert rates(unfreezing[1], "mlp") == {99: 1.0, 6: 0.5} | dict.fromkeys(range(1, 6), None)
    assert set(rates(Gradual().tables(BERT.groups())[-1], "bert").values()) == {1.0}


def test_one_program_serves_every_decay():
    traces = []

    @jax.jit
    def multipliers(decay):
        traces.append(None)
        return [value for _, value in Gradual(decay=decay).tables(BERT.groups())[-1]]

    for decay in (1.0, 0.9, 1 / 2.6):
        np.testing.assert_allclose(multipliers(decay), np.float64(decay) ** np.arange(14), rtol=3e-6)
    assert len(traces) == 1


@EVERY_NETWORK
def test_chain_thaw_moves_each_group_alone_then_all(name):
    _, paths, blocks = NETWORKS[name]
    lowest = 0 if where(paths, lambda d: d == 0) else 1
    alone = [99, *range(lowest, blocks + 1)]
    expected = [where(paths, lambda d, only=depth: d == only) for depth in alone]
    assert phases(ChainThaw(), name) == [*expected, set(paths)]


@EVERY_NETWORK
def test_lp_ft_probes_then_moves_everything(name):
    groups, paths, _ = NETWORKS[name]
    assert phases(LpFt(), name) == [where(paths, lambda d: d == 99), set(paths)]
    probe, everything = LpFt(probe_lr_scale=8.0).tables(groups)
    assert {value for value in rates(probe, name).values() if value is not None} == {8.0}
    assert set(rates(everything, name).values()) == {1.0}


@pytest.mark.parametrize("strategy", [Gradual(every=7), Gradual(), ChainThaw(every=7), ChainThaw()])
@pytest.mark.parametrize("phases", [1, 2, 5, 14])
def test_each_phase_but_the_last_has_the_same_length(strategy, phases):
    each = 7 if strategy.every else 11
    for extra in (1, 2, 50):
        found = strategy.phase_steps(phases, each * (phases - 1) + extra, epoch=11)
        assert found == (*[each] * (phases - 1), extra)


@pytest.mark.parametrize(
    ("share", "steps", "expected"),
    [
        (0.5, 100, (50, 50)),
        (0.3, 10, (3, 7)),
        (0.01, 10, (1, 9)),
        (0.99, 10, (9, 1)),
        (0.5, 2, (1, 1)),
        (0.25, 103, (26, 77)),
    ],
)
def test_lp_ft_shares_the_updates_out(share, steps, expected):
    assert LpFt(probe_fraction=share).phase_steps(2, steps, epoch=5) == expected


@pytest.mark.parametrize("steps", [2, 3, 10, 99, 1000])
def test_no_phase_of_lp_ft_is_empty(steps):
    for share in np.linspace(0.001, 0.999, 53):
        found = LpFt(probe_fraction=float(share)).phase_steps(2, steps, epoch=5)
        assert sum(found) == steps
        assert min(found) >= 1
        assert abs(found[0] - share * steps) <= 1


@pytest.mark.parametrize(
    ("strategy", "phases", "steps", "message"),
    [
        (
            Gradual(every=50),
            5,
            100,
            "strategy.every is 50: unfreezing 5 groups needs at least 201 updates, finetune_steps is 100",
        ),
        (Gradual(every=50), 5, 200, "needs at least 201 updates, finetune_steps is 200"),
        (
            Gradual(),
            5,
            40,
            r"strategy.every is null \(an epoch, here 10\): unfreezing 5 groups needs at least 41 updates",
        ),
        (ChainThaw(every=50), 6, 100, "strategy.every is 50: thawing 5 groups needs at least 251 updates"),
        (LpFt(), 2, 1, "finetune_steps is 1; allowed with strategy=lp_ft: at least 2"),
        (LpFt(), 2, 0, "finetune_steps is 0; allowed with strategy=lp_ft: at least 2"),
    ],
)
def test_a_plan_that_ends_after_the_run_is_refused(strategy, phases, steps, message):
    with pytest.raises(UserError, match=message):
        strategy.phase_steps(phases, steps, epoch=10)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Gradual, {"every": 0}, "strategy.every is 0; allowed: a whole number >= 1"),
        (Gradual, {"decay": 0}, "strategy.decay is 0.0; allowed: a number > 0 and at most 1"),
        (ChainThaw, {"every": -1}, "strategy.every is -1; allowed: a whole number >= 1"),
        (LpFt, {"probe_fraction": 1}, "strategy.probe_fraction is 1.0; allowed: a number strictly between 0 and 1"),
        (LpFt, {"probe_fraction": 0}, "strategy.probe_fraction is 0.0; allowed: a number strictly between 0 and 1"),
        (LpFt, {"probe_lr_scale": 0}, "strategy.probe_lr_scale is 0.0; allowed: a finite number > 0"),
    ],
)
def test_what_is_refused(cls, values, message):
    with pytest.raises(UserError, match=message):
        typed(cls, values, "strategy")
