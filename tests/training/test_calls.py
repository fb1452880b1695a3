"""Runs as generators: one is executed alone, many in lockstep, with the calls of each step computed together."""

from dataclasses import dataclass

import pytest

from src.training.calls import Call, Share, execute, execute_together
from src.training.vectorize import RunAxis


@dataclass(frozen=True)
class Double(Call):
    """Doubles a number, and notes how many runs asked at once."""

    value: int
    seen: list

    @staticmethod
    def compute(calls, axis):
        calls[0].seen.append((len(calls), axis))
        return [2 * call.value for call in calls]


@dataclass(frozen=True)
class Negate(Call):
    value: int

    @staticmethod
    def compute(calls, axis):
        return [-call.value for call in calls]


def doubled(value, times, seen):
    for _ in range(times):
        value = yield Double(value, seen)
    return value


def test_one_run():
    seen = []
    assert execute(doubled(3, 4, seen)) == 3 * 2**4
    assert seen == [(1, RunAxis.none)] * 4


def test_the_calls_of_a_step_are_computed_together_and_a_run_may_end_early():
    seen = []
    runs = [doubled(value, times, seen) for value, times in ((1, 3), (5, 0), (7, 1), (9, 3))]
    assert execute_together(runs, RunAxis.map) == [8, 5, 14, 72]
    assert seen == [(3, RunAxis.map), (2, RunAxis.map), (2, RunAxis.map)]


def test_parts_of_runs_may_be_shared_generators():
    def run(value, seen):
        first = yield from doubled(value, 1, seen)
        return (yield Negate(first))

    assert execute_together([run(1, seen := []), run(2, seen)], RunAxis.vmap) == [-2, -4]
    assert seen == [(2, RunAxis.vmap)]


def test_equal_keys_share_one_object():
    made = []

    def run(key):
        return (yield Share(key, lambda: made.append(key) or object()))

    a, b, c = execute_together([run("x"), run("y"), run("x")], RunAxis.map)
    assert a is c
    assert a is not b
    assert made == ["x", "y"]


def test_runs_that_part_ways_are_an_error():
    def other(value):
        return (yield Negate(value))

    with pytest.raises(TypeError, match=r"Double.*Negate"):
        execute_together([doubled(1, 1, []), other(1)], RunAxis.map)
