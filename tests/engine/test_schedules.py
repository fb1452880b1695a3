"""Schedules against published formulas and Optax's own."""

import jax
import numpy as np
import optax
import pytest

from src.engine.schedules import Constant, WarmupCosine, WarmupLinear

STEPS = np.arange(100)


def shape_of(schedule, total=100):
    return np.array([schedule.shape(np.int32(step), np.int32(total)) for step in range(total)])


def test_constant():
    np.testing.assert_array_equal(shape_of(Constant()), 1.0)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_warmup_linear_is_the_hugging_face_formula(warmup):
    w, total = round(warmup * 100), 100
    expected = [t / w if t < w else (total - t) / (total - w) for t in STEPS]
    np.testing.assert_allclose(shape_of(WarmupLinear(warmup)), expected, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.1, 0.25])
def test_warmup_cosine_equals_optax(warmup):
    expected = optax.warmup_cosine_decay_schedule(0.0, 1.0, round(warmup * 100), 100)
    np.testing.assert_allclose(shape_of(WarmupCosine(warmup)), [expected(t) for t in STEPS], atol=1e-6)


def test_the_length_of_a_run_is_traced():
    """One compiled program for every number of steps."""
    shape = jax.jit(WarmupCosine(0.1).shape)
    for total in (10, 100, 1000):
        np.testing.assert_allclose(shape(total // 10, total), 1.0)
    assert shape._cache_size() == 1


@pytest.mark.parametrize("schedule", [WarmupLinear(0.1), WarmupCosine(0.1), WarmupLinear(1.0)])
def test_a_run_of_one_step_has_a_rate(schedule):
    assert np.isfinite(schedule.shape(np.int32(0), np.int32(1)))
