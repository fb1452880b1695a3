"""What a run asks the device to compute, and how one run or many are executed.

A run is written as a generator for itself alone: it yields a :class:`Call` and receives its result::

    params = yield InitParams(stage, features)
    metrics = yield Evaluate(stage, params, inputs)

:func:`execute` runs one generator. :func:`execute_together` runs many in lockstep: runs that differ in traced
hyperparameters only yield the same calls in the same order, and the calls of all runs at one step are computed by one
program with a run axis.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import numpy as np

from ..config.hparams import static_part
from ..optim.partition import split
from ..retention.base import RetentionState
from ..types import Params, Split
from .cost import update_cost
from .feature_cache import Inputs, cache_features
from .loop import PhaseData, PhaseRun, PhaseRunner, shortest_float, train_phase
from .stage import Stage, frozen_paths, traced
from .vectorize import RunAxis, programs, stack_runs

T = TypeVar("T")


class Call:
    """Base of the calls."""

    @staticmethod
    def compute(calls: Sequence[Any], axis: RunAxis) -> Sequence[Any]:
        """Return the result of each call; all are of one class, and ``axis`` is ``none`` for a single one."""
        raise TypeError("a call says how it is computed")


Steps = Generator[Call, Any, T]  # a run that ends with a T


def execute(run: Steps[T]) -> T:
    """Run one generator to its end and return its result."""
    return execute_together([run], RunAxis.none)[0]


def execute_together(runs: Sequence[Steps[T]], axis: RunAxis) -> list[T]:
    """Run generators in lockstep, the calls of each step as one program, and return their results.

    A run may end before the others.
    """
    results: dict[int, T] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while answers:
        calls: dict[int, Call] = {}
        for i, answer in answers.items():
            try:
                calls[i] = runs[i].send(answer)
            except StopIteration as end:
                results[i] = end.value
        answers = dict(zip(calls, _compute(list(calls.values()), axis), strict=True))
    return [results[i] for i in range(len(runs))]


def _compute(calls: Sequence[Call], axis: RunAxis) -> Sequence[Any]:
    kinds = {type(call) for call in calls}
    if len(kinds) > 1:
        raise TypeError(f"runs that are executed together yield different calls: {sorted(k.__name__ for k in kinds)}")
    return kinds.pop().compute(calls, axis) if kinds else ()


@dataclass(frozen=True)
class Share(Call):
    """Compute something on the host, once for all runs with the same key."""

    key: Hashable
    make: Callable[[], Any]

    @staticmethod
    def compute(calls: Sequence[Share], axis: RunAxis) -> list[Any]:
        """Return what ``make`` returns, the same object for equal keys."""
        made: dict[Hashable, Any] = {}
        for call in calls:
            if call.key not in made:
                made[call.key] = call.make()
        return [made[call.key] for call in calls]


@dataclass(frozen=True)
class InitParams(Call):
    """Draw a stage's initial parameters from ``PRNGKey(seed)``, or from a stream folded into it."""

    stage: Stage
    features: tuple[int, ...]  # shape of a row of inputs
    stream: int = 0

    @staticmethod
    def compute(calls: Sequence[InitParams], axis: RunAxis) -> list[Params]:
        """Return each run's parameters."""
        first = calls[0]
        init = programs(static_part(first.stage), axis).init(first.features, first.stream)
        if axis is RunAxis.none:
            return [init(traced(first.stage))]
        hyper = stack_runs([traced(call.stage) for call in calls])
        together = jax.device_get(init(np.int32(len(calls)), hyper))
        return [{path: leaf[i] for path, leaf in together.items()} for i in range(len(calls))]


@dataclass(frozen=True)
class CacheFeatures(Call):
    """Replace the inputs by the features of the frozen bottom, where there is one (:func:`cache_features`)."""

    stage: Stage
    params: Params
    splits: Mapping[str, Split]

    @staticmethod
    def compute(calls: Sequence[CacheFeatures], axis: RunAxis) -> list[tuple[Any, Inputs]]:
        """Return each run's stage and parameters above the bottom, and the inputs of all."""
        stages, params = [call.stage for call in calls], [call.params for call in calls]
        runs, inputs = cache_features(stages, params, calls[0].splits, axis)
        return [(run, inputs) for run in runs]


@dataclass(frozen=True)
class TrainPhase(Call):
    """Train one phase (:func:`train_phase`)."""

    run: PhaseRun
    data: PhaseData
    previous: PhaseRunner | None = None
    final: bool = True

    @staticmethod
    def compute(calls: Sequence[TrainPhase], axis: RunAxis) -> list[tuple[Params, PhaseRunner]]:
        """Return each run's parameters, and the runner that the next phase continues."""
        first = calls[0]
        runner = train_phase([call.run for call in calls], first.data, axis, previous=first.previous, final=first.final)
        return [(params, runner) for params in runner.params()]


@dataclass(frozen=True)
class Evaluate(Call):
    """Compute all metrics of each split, ``{"val_loss": ...}``."""

    stage: Stage
    params: Params
    inputs: Inputs

    @staticmethod
    def compute(calls: Sequence[Evaluate], axis: RunAxis) -> list[dict[str, float]]:
        """Return each run's metrics as numbers."""
        splits = calls[0].inputs.splits
        if not splits:
            return [{} for _ in calls]
        found = _run_program("report", calls, splits, axis)
        # JAX returns dictionaries with sorted keys; readers expect the order train, val, test.
        names = [name for part in splits for name in found if name.startswith(f"{part}_")]
        return [{name: shortest_float(found[name][i]) for name in names} for i in range(len(calls))]


@dataclass(frozen=True)
class Predict(Call):
    """Compute the outputs for all rows of the named parts."""

    stage: Stage
    params: Params
    inputs: Inputs
    parts: tuple[str, ...]

    @staticmethod
    def compute(calls: Sequence[Predict], axis: RunAxis) -> list[dict[str, np.ndarray]]:
        """Return each run's outputs by part."""
        first = calls[0]
        x = {name: first.inputs.splits[name].x for name in first.parts}
        found = _run_program("predictions", calls, x, axis)
        return [{name: np.asarray(found[name][i]) for name in x} for i in range(len(calls))]


def _run_program(
    name: str, calls: Sequence[Evaluate] | Sequence[Predict], parts: Mapping[str, Any], axis: RunAxis
) -> dict[str, np.ndarray]:
    """Return what a program of :class:`src.training.vectorize.Programs` computes, with a leading run axis."""
    first = calls[0]
    program = getattr(programs(static_part(first.stage), axis, data_per_run=first.inputs.per_run), name)
    frozen = frozen_paths(first.stage, first.params)
    if axis is RunAxis.none:
        rest, trainable = split(first.params, frozen)
        found = program(traced(first.stage), trainable, rest, parts)
        return {part: np.asarray(value)[None] for part, value in found.items()}
    rest, trainable = split(stack_runs([call.params for call in calls]), frozen)
    hyper = stack_runs([traced(call.stage) for call in calls])
    return jax.device_get(program(np.int32(len(calls)), hyper, trainable, rest, parts))


@dataclass(frozen=True)
class UpdateCost(Call):
    """Compute the cost of an update of a single run (:func:`update_cost`)."""

    stage: Stage
    params: Params
    data: Split  # or its shapes
    retention_state: RetentionState | None = None

    @staticmethod
    def compute(calls: Sequence[UpdateCost], axis: RunAxis) -> list[Any]:
        """Return the cost, the same for all runs."""
        first = calls[0]
        stage = replace(first.stage, freeze_impl=None)
        return [update_cost(stage, first.params, first.data, first.retention_state)] * len(calls)
