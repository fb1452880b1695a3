"""Pre-training of one run: the source task is learned, or read from the cache; or there is nothing to learn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..checkpoints import huggingface
from ..config.hparams import static_part
from ..pretraining.base import Features
from ..training.cache_key import stage_label
from ..training.calls import Evaluate, InitParams, Share, Steps, TrainPhase, UpdateCost
from ..training.compiled import Cost
from ..training.feature_cache import Inputs, chunks
from ..training.loop import EvalHook, PhaseData, PhaseRun, RunProgress, shortest_float
from ..training.stage import Stage, traced
from ..training.stage_cache import Entry, StageCache
from ..training.vectorize import programs
from ..types import LogFn, Params, Row
from .resolve import ResolvedRun, pretrain_batch


@dataclass(frozen=True)
class Pretrained:
    """The result of pre-training, shared by the fine-tunings that start from it."""

    params: Params
    rows: list[Row]  # logged
    metrics: dict[str, float]  # on the source task's test and validation parts
    diverged: bool
    last_finite_step: int
    cost: Cost  # of an update
    seconds: float  # wall time; 0 when it comes from the cache


class Diagnostics(NamedTuple):
    """Warnings about pre-training, from its logged rows."""

    warnings: tuple[str, ...] = ()  # a sentence each
    stability: Mapping[str, float] = {}  # the numbers behind them

    def summary(self) -> dict[str, Any]:
        """Return what the job's summary records."""
        own = {"warnings": list(self.warnings), "stability": dict(self.stability)}
        return {name: value for name, value in own.items() if value}


def pretrain(run: ResolvedRun, log_fn: LogFn) -> Steps[Pretrained]:
    """Learn the source task.

    Args:
        run: what to do.
        log_fn: called with each logged row as it happens.
    """
    started = time.perf_counter()
    stage, source = run.pretrain_stage, run.data.source
    params = yield from initial_params(run, checkpoint=True)
    rows: list[Row] = []

    def log(row: Row) -> None:
        rows.append(row)
        log_fn(row)

    features = yield from feature_view(stage, params)
    progress = RunProgress(log)
    phase_run = PhaseRun(stage, params, progress, hook=feature_hook(run, features))
    end, _ = yield TrainPhase(phase_run, PhaseData(source["train"]))
    cost: Cost = yield UpdateCost(stage, params, source["train"])
    parts = {f"source_{name}": source[name] for name in ("test", "val") if name in source}
    metrics: dict[str, float] = yield Evaluate(stage, end, Inputs(parts))
    fit = progress.fit(end)
    if not fit.diverged:
        scores = run.recipe.pretrain.evaluate_features(features(end), run.data)
        # Methods that are compared by their features are compared at equal memory, too.
        scores |= {"pretrain_peak_bytes": cost.peak_bytes} if scores else {}
        metrics |= {name: shortest_float(value) for name, value in scores.items()}
    seconds = time.perf_counter() - started
    return Pretrained(end, rows, metrics, fit.diverged, fit.last_finite_step, cost, seconds)


def initial_params(run: ResolvedRun, checkpoint: bool) -> Steps[Params]:
    """Return the parameters before pre-training: random ones, replaced by the checkpoint's where there is one."""
    stage = run.pretrain_stage
    params: Params = yield InitParams(stage, run.data.features)
    return params | huggingface.read_initial(stage.model, stage.outputs) if checkpoint else params


def untrained(run: ResolvedRun) -> Steps[Pretrained]:
    """Return the start of a run that learns no source task: a checkpoint, or random parameters (``scratch``)."""
    params = yield from initial_params(run, checkpoint=run.recipe.strategy.pretrained)
    return Pretrained(params, [], {}, False, 0, Cost(0.0, 0), 0.0)


def pretrain_or_load(run: ResolvedRun, cache: StageCache | None, log_fn: LogFn) -> Steps[Pretrained]:
    """Return the run's pre-training: from the cache, or computed now and put there.

    ``log_fn`` is called with the rows of a cached pre-training, too.
    """
    if not run.starts_from_source:
        return (yield from untrained(run))
    if cache is None:
        return (yield from pretrain(run, log_fn))
    if (found := cached_pretraining(run, cache)) is not None:
        for row in found.rows:
            log_fn(row)
        return found
    pretrained = yield from pretrain(run, log_fn)
    put_pretraining(run, pretrained, cache)
    return pretrained


def cached_pretraining(run: ResolvedRun, cache: StageCache) -> Pretrained | None:
    """Return the run's pre-training from the cache, or ``None``."""
    if (entry := cache.get(run.cache_key)) is None:
        return None
    facts = {name: value for name, value in entry.facts.items() if name != "stage"}
    facts["cost"] = Cost(**facts["cost"])
    params: Any = entry.params  # NumPy arrays, which every program takes
    return Pretrained(params, entry.rows, **facts, seconds=0.0)


def put_pretraining(run: ResolvedRun, pretrained: Pretrained, cache: StageCache) -> None:
    """Put a pre-training into the cache."""
    facts = {
        "stage": stage_label(run.pretrain_stage),
        "metrics": pretrained.metrics,
        "diverged": pretrained.diverged,
        "last_finite_step": pretrained.last_finite_step,
        "cost": pretrained.cost._asdict(),
    }
    params = {path: np.asarray(leaf) for path, leaf in pretrained.params.items()}
    cache.put(run.cache_key, Entry(params, pretrained.rows, facts))


def diagnose(run: ResolvedRun, rows: Sequence[Row]) -> Diagnostics:
    """Return the warnings that pre-training's logged rows give rise to."""
    if not rows:
        return Diagnostics()
    total = len(run.data.source["train"].x)
    batch = min(pretrain_batch(run.recipe, run.data), total)
    arguments = (rows, -(-total // batch), batch)
    pretraining = run.recipe.pretrain
    return Diagnostics(tuple(pretraining.warnings(*arguments)), pretraining.stability(*arguments))


# --- features during and after pre-training -------------------------------------------------------------------------


def feature_view(stage: Stage, initial: Params) -> Steps[Callable[[Params], Features]]:
    """Return what gives the features of the network with given parameters.

    Runs of one seed start from the same parameters, so they share the initial features and their evaluation.
    """
    cache = yield Share("evaluations of what pre-training does not change", dict)
    initial_features = yield Share(stage.seed, partial(features_of, stage, initial))
    return lambda params: Features(features_of(stage, params), initial_features, outputs_of(stage, params), cache)


def feature_hook(run: ResolvedRun, features: Callable[[Params], Features]) -> EvalHook | None:
    """Return the evaluation of features during pre-training, where it is configured."""
    pretraining = run.recipe.pretrain
    if (every := pretraining.feature_eval_every()) is None:
        return None
    return EvalHook(every, lambda step, params: pretraining.evaluate_features_during(features(params), run.data, step))


def features_of(stage: Stage, params: Params) -> Callable[[Any], Any]:
    """Return a function from inputs to the features below the stage's head."""
    below = replace(static_part(stage), bottom=len(stage.model.groups()) - 1)

    def features(x: Any) -> Any:
        compute = partial(programs(below).features, traced(stage), params)
        return np.concatenate([np.asarray(compute(piece))[:count] for piece, count in chunks(stage.model, x)])

    return features


def outputs_of(stage: Stage, params: Params) -> Callable[[Any], Any]:
    """Return a function from inputs to the stage's outputs."""
    compute = programs(static_part(stage)).predictions
    return lambda x: np.asarray(compute(traced(stage), params, {}, {"rows": x})["rows"])
