"""Averages over a sequence of tasks, worked by hand."""

import math

import numpy as np
import pytest

from src.metrics.continual import average_accuracy, backward_transfer, forgetting, forward_transfer, learning_accuracy

NAN = math.nan
# Task 0: .9 -> .95 -> .6; task 1: .2 unseen -> .8 -> .85; task 2: .3 after two tasks -> .7.
R = [[0.9, 0.2, NAN], [0.95, 0.8, 0.3], [0.6, 0.85, 0.7]]


def test_worked_by_hand():
    assert average_accuracy(R) == pytest.approx((0.6 + 0.85 + 0.7) / 3)
    assert learning_accuracy(R) == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert backward_transfer(R) == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert forgetting(R) == pytest.approx(((0.95 - 0.6) + (0.8 - 0.85)) / 2)
    assert forward_transfer(R, [NAN, 0.1, 0.25]) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.25)) / 2)


def test_forgetting_can_be_negative_and_looks_only_at_what_was_learned():
    """The last row is not in the maximum, and an accuracy before a task was learned (0.99) is not either."""
    assert forgetting([[0.5, 0.99, 0.0], [0.5, 0.6, 0.0], [0.7, 0.8, 0.9]]) == pytest.approx(-0.2)


def test_forgetting_is_minus_the_backward_transfer_of_two_tasks():
    table = np.random.default_rng(0).uniform(size=(2, 2))
    assert forgetting(table) == pytest.approx(-backward_transfer(table))


def test_one_task_has_nothing_to_forget():
    assert (average_accuracy([[0.7]]), learning_accuracy([[0.7]])) == (0.7, 0.7)
    assert (backward_transfer([[0.7]]), forgetting([[0.7]]), forward_transfer([[0.7]], [0.1])) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("measure", [average_accuracy, learning_accuracy, backward_transfer, forgetting])
@pytest.mark.parametrize("table", [[[0.1, 0.2]], [0.1], [], [[]], np.zeros((2, 2, 2))])
def test_a_table_that_is_not_square_is_refused(measure, table):
    with pytest.raises(ValueError, match=r"R must be of shape \(T, T\)"):
        measure(table)


@pytest.mark.parametrize(
    ("measure", "place", "words"),
    [
        (average_accuracy, (2, 0), "the last row"),
        (learning_accuracy, (1, 1), "the diagonal"),
        (backward_transfer, (0, 0), "the diagonal"),
        (backward_transfer, (2, 1), "the last row"),
        (forgetting, (1, 0), "the lower triangle"),
        (lambda table: forward_transfer(table, [0, 0, 0]), (1, 2), "the diagonal above"),
    ],
)
def test_what_is_needed_must_be_there(measure, place, words):
    table = np.array(R)
    measure(table)
    table[place] = NAN
    with pytest.raises(ValueError, match=words):
        measure(table)


def test_a_baseline_is_one_number_a_task():
    with pytest.raises(ValueError, match=r"baseline must be of shape \(3,\)"):
        forward_transfer(R, [0.1, 0.2])
    with pytest.raises(ValueError, match="the baseline must be finite"):
        forward_transfer(R, [0.1, NAN, 0.2])
