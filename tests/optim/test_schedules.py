"""Schedules against published formulas and values, and against Optax's own."""

import math
from fractions import Fraction

import jax
import numpy as np
import optax
import pytest

from src.errors import UserError
from src.optim.schedules import (
    Constant,
    OneCycle,
    SlantedTriangular,
    WarmupCosine,
    WarmupLinear,
    one_cycle,
    slanted_triangular,
    warmup_cosine,
    warmup_linear,
)

STEPS = np.arange(100)
EVERY = [
    Constant(),
    WarmupLinear(0.1),
    WarmupLinear(1.0),
    WarmupLinear(warmup_steps=1),
    WarmupCosine(0.1),
    WarmupCosine(warmup_steps=0),
    SlantedTriangular(),
    SlantedTriangular(1.0, 4.0),
    OneCycle(),
    OneCycle(pct_start=0.0),
    OneCycle(pct_start=1.0),
]


def shape_of(schedule, total=100):
    return np.array([schedule.shape(np.int32(step), np.int32(total)) for step in range(total)])


# --- warm-up -------------------------------------------------------------------------------------------------------


def hugging_face(t, w, total):
    """``get_linear_schedule_with_warmup`` as its documentation has it."""
    return t / max(1, w) if t < w else max(0.0, (total - t) / max(1, total - w))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_warmup_linear_is_the_hugging_face_formula(warmup):
    expected = [hugging_face(t, round(warmup * 100), 100) for t in STEPS]
    np.testing.assert_allclose(shape_of(WarmupLinear(warmup)), expected, atol=1e-6)


@pytest.mark.parametrize(("total", "w"), [(100, 10), (55, 7), (7, 0), (5, 5), (1, 1), (3, 10)])
def test_warmup_linear_of_plain_numbers_to_the_end_and_past_it(total, w):
    found = [float(warmup_linear(t, total, w, 0.02)) for t in range(total + 5)]
    assert found == pytest.approx([0.02 * hugging_face(t, w, total) for t in range(total + 5)], rel=1e-6, abs=1e-9)
    assert min(found) >= 0.0


def test_warmup_linear_is_continuous_where_bert_s_drops():
    """At the end of the warm-up BERT's original goes on with ``1 - t / T``: 0.9 here."""
    assert float(warmup_linear(10, 100, 10, 1.0)) == 1.0
    assert float(warmup_linear(11, 100, 10, 1.0)) == pytest.approx(89 / 90)
    assert float(warmup_linear(100, 100, 10, 1.0)) == 0.0


@pytest.mark.parametrize("warmup", [0.1, 0.25])
def test_warmup_cosine_equals_optax(warmup):
    expected = optax.warmup_cosine_decay_schedule(0.0, 1.0, round(warmup * 100), 100)
    np.testing.assert_allclose(shape_of(WarmupCosine(warmup)), [expected(t) for t in STEPS], atol=1e-6)


def test_warmup_cosine_equals_optax_past_the_end():
    expected = optax.warmup_cosine_decay_schedule(0.0, 0.3, 20, 100)
    steps = np.arange(130)
    np.testing.assert_allclose(warmup_cosine(steps, 100, 20, 0.3), expected(steps), atol=1e-6)


@pytest.mark.parametrize("option", [WarmupLinear, WarmupCosine])
def test_warmup_steps_replace_the_share(option):
    np.testing.assert_array_equal(shape_of(option(0.9, warmup_steps=25)), shape_of(option(0.25)))
    np.testing.assert_array_equal(shape_of(option(0.9, warmup_steps=0)), shape_of(option(0.0)))


@pytest.mark.parametrize("option", [WarmupLinear, WarmupCosine])
def test_a_warm_up_longer_than_the_run_is_refused(option):
    option(warmup_steps=100).check(100)
    option(warmup=1.0).check(1)
    with pytest.raises(UserError, match=r"^schedule.warmup_steps is 200; allowed: at most the 100 updates of the run$"):
        option(warmup_steps=200).check(100)
    with pytest.raises(UserError, match=r"^pretrain.schedule.warmup_steps is 4; "):
        option(warmup_steps=4).check(3, "pretrain.schedule")


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [(Constant(), 1.0, 1.0), (SlantedTriangular(), 1.0, 1 / 32), (OneCycle(), 1 / 25, 1e-5)],
)
def test_other_schedules_fit_a_run_of_one_update(schedule, first, last):
    """Before and after the one update; Optax's one-cycle schedule needs more updates than one."""
    schedule.check(1)
    assert [float(schedule.shape(step, 1)) for step in (0, 1)] == pytest.approx([first, last])


def test_constant_equals_optax():
    expected = optax.constant_schedule(0.3)
    np.testing.assert_array_equal(0.3 * shape_of(Constant()), [expected(t) for t in STEPS])


# --- slanted triangular --------------------------------------------------------------------------------------------


def ulmfit(t, total, cut_fraction=0.1, ratio=32):
    """The formula in float64, with the fall over what is left of the run, the floor of an exact decimal."""
    cut = math.floor(total * Fraction(str(cut_fraction)))
    p = t / cut if t < cut else 1 - (t - cut) / (total - cut)
    return (1 + p * (ratio - 1)) / ratio


def test_slanted_triangular_has_allennlp_s_values():
    """Its test of 5 epochs of 10 steps: the first epoch is a cycle of its own, then one over the other four."""
    first = [float(slanted_triangular(t, 10, 1.0)) for t in range(10)]
    rest = [float(slanted_triangular(t - 10, 40, 1.0)) for t in range(10, 50)]
    assert (first[0], first[1], first[9]) == pytest.approx((0.03125, 1.0, 0.138888), abs=1e-6)
    assert (rest[0], rest[4], rest[39]) == pytest.approx((0.03125, 1.0, 0.05815972), abs=1e-7)


@pytest.mark.parametrize(("cut_fraction", "ratio"), [(0.1, 32), (0.25, 10), (0.53, 5), (0.29, 100)])
def test_slanted_triangular_in_float64_for_every_length(cut_fraction, ratio):
    steps = np.arange(200)  # of one shape, so that JAX compiles once
    for total in range(1, 201):
        found = np.asarray(slanted_triangular(steps, total, 2.0, cut_fraction, ratio))[:total]
        expected = [2.0 * ulmfit(t, total, cut_fraction, ratio) for t in range(total)]
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(total))


def test_slanted_triangular_is_never_negative_where_the_published_one_is():
    total, cut = 55, 5
    published_p = 1 - (total - 1 - cut) / (cut * (1 / 0.1 - 1))
    assert (1 + published_p * 31) / 32 == pytest.approx(-0.055, abs=1e-3)
    for total in range(1, 201):
        rates = np.asarray(slanted_triangular(np.arange(203), total, 1.0))[: total + 3]
        assert float(np.min(rates)) >= (1 - 1e-6) / 32
        assert float(np.max(rates)) == pytest.approx(1.0, rel=1e-6)
        assert float(rates[total]) == pytest.approx(1 / 32)


def test_slanted_triangular_rises_and_falls_in_even_steps():
    rates = np.asarray(slanted_triangular(np.arange(201), 200, 1.0), np.float64)
    np.testing.assert_allclose(np.diff(rates[:21]), (1 - 1 / 32) / 20, atol=1e-6)
    np.testing.assert_allclose(np.diff(rates[20:]), -(1 - 1 / 32) / 180, atol=1e-6)


# --- one cycle -----------------------------------------------------------------------------------------------------


def test_one_cycle_ends_and_peak_are_fastai_s():
    assert float(one_cycle(0, 100, 2.0)) == pytest.approx(2 / 25)
    assert float(one_cycle(25, 100, 2.0)) == 2.0
    assert float(one_cycle(100, 100, 2.0)) == pytest.approx(2e-5)
    assert float(one_cycle(105, 100, 2.0)) == pytest.approx(2e-5)


@pytest.mark.parametrize(("pct_start", "div", "div_final"), [(0.25, 25.0, 1e5), (0.3, 5.0, 100.0)])
def test_one_cycle_equals_optax(pct_start, div, div_final):
    """Optax divides the first rate, as PyTorch does, where fastai divides the peak."""
    expected = optax.cosine_onecycle_schedule(200, 0.4, pct_start, div, div_final / div)
    steps = np.arange(200)
    found = one_cycle(steps, 200, 0.4, pct_start=pct_start, div=div, div_final=div_final)
    np.testing.assert_allclose(found, [expected(t) for t in steps], atol=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 55, 130])
def test_one_cycle_in_float64(total):
    """fastai: two cosines over the position ``t / T``, the peak possibly between two updates."""

    def expected(position):
        if position < 0.25:
            return 1 / 25 + (1 + math.cos(math.pi * (1 - position / 0.25))) * (1 - 1 / 25) / 2
        return 1 + (1 + math.cos(math.pi * (1 - (position - 0.25) / 0.75))) * (1e-5 - 1) / 2

    np.testing.assert_allclose(shape_of(OneCycle(), total), [expected(t / total) for t in range(total)], atol=1e-6)


# --- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", EVERY, ids=str)
@pytest.mark.parametrize("total", [1, 2, 9, 55, 200])
def test_every_rate_is_a_share_of_the_peak(schedule, total):
    rates = shape_of(schedule, total)
    assert np.isfinite(rates).all()
    assert rates.min() >= 0.0
    assert rates.max() <= 1.0


@pytest.mark.parametrize("schedule", [s for s in EVERY if s != WarmupLinear(warmup_steps=1)], ids=str)
def test_rates_do_not_jump(schedule):
    """Over 1000 updates none changes the rate by more than a warm-up of a hundredth of the run would."""
    assert np.abs(np.diff(shape_of(schedule, 1000))).max() < 0.0101


@pytest.mark.parametrize(
    "schedule", [WarmupCosine(0.1), WarmupLinear(warmup_steps=1), SlantedTriangular(), OneCycle(pct_start=0.5)], ids=str
)
def test_the_length_of_a_run_is_traced(schedule):
    """One compiled program for every number of steps, with the values of the plain call."""
    shape = jax.jit(schedule.shape)
    for total in (10, 100, 1000):
        for step in (0, 1, total // 10, total // 2, total):
            np.testing.assert_allclose(shape(step, total), schedule.shape(step, total), atol=1e-6)
    assert shape._cache_size() == 1


def test_settings_are_traced():
    """A sweep over a schedule's settings is one program too."""
    rate = jax.jit(lambda cut, ratio, w: (slanted_triangular(4, 40, 1.0, cut, ratio), warmup_linear(4, 40, w, 1.0)))
    for cut, ratio, w in ((0.1, 32.0, 4), (0.5, 8.0, 8)):
        slanted, linear = rate(cut, ratio, w)
        assert float(slanted) == pytest.approx(ulmfit(4, 40, cut, ratio), rel=1e-6)
        assert float(linear) == pytest.approx(hugging_face(4, w, 40), rel=1e-6)
    assert rate._cache_size() == 1
