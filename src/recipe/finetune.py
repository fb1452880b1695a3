"""Fine-tuning of one run: phase by phase from pre-trained parameters, with a new head where the labels are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..models.base import head_paths, new_head
from ..retention.base import CacheFn, RetentionState, SourceTask, compute_anew
from ..training.cache_key import finding_key, stage_label
from ..training.calls import CacheFeatures, InitParams, Share, Steps, TrainPhase, UpdateCost
from ..training.compiled import Cost
from ..training.feature_cache import Inputs
from ..training.loop import Fit, PhaseRun, PhaseRunner, RunProgress
from ..training.stage import Stage
from ..training.stage_cache import Entry, StageCache
from ..types import LogFn, Params
from .resolve import ResolvedRun, device_kind, new_head_paths

NEW_HEAD_STREAM = 1  # of the seed: a new head must not repeat the initial values of the first one


class PhaseEnd(NamedTuple):
    """The end of a phase, above the features that it cached."""

    stage: Stage
    params: Params
    inputs: Inputs


class Finetuned(NamedTuple):
    """The end of fine-tuning."""

    fit: Fit
    cost: Cost  # of an update; over phases, the mean FLOPs and the largest bytes
    start: Params  # with the new head
    last: PhaseEnd


def finetune(run: ResolvedRun, pretrained: Params, log_fn: LogFn, cache: StageCache | None = None) -> Steps[Finetuned]:
    """Learn the target task.

    Args:
        run: what to do.
        pretrained: the parameters to start from, with the source task's head.
        log_fn: called with each logged row as it happens.
        cache: of what the retention method computed about the source task.
    """
    retention_state = yield from retention_state_of(run, pretrained, cache)
    params = start = yield from with_target_head(run, pretrained)
    progress, costs, ends = RunProgress(log_fn), [], []
    previous: PhaseRunner | None = None
    for stage in run.phases:
        upper, inputs = yield CacheFeatures(stage, params, run.data.target)
        phase_run = PhaseRun(upper.stage, upper.params, progress, retention_state)
        final = stage is run.phases[-1]
        end, previous = yield TrainPhase(phase_run, inputs.phase_data, previous, final)
        params = {**params, **end}
        ends.append(PhaseEnd(upper.stage, end, inputs))
        costs.append((yield UpdateCost(upper.stage, upper.params, inputs.shapes("train"), retention_state)))
    return Finetuned(progress.fit(params), mean_cost(costs, run.phases), start, ends[-1])


def with_target_head(run: ResolvedRun, params: Params) -> Steps[Params]:
    """Return the parameters with a head for the target's labels: a new one where the source's does not fit.

    Without a source task, the reader of the checkpoint has made the head.
    """
    if not (run.replaces_head and run.learns_source):
        return params
    fresh: Params = yield InitParams(run.phases[0], run.data.features, NEW_HEAD_STREAM)
    # Runs with one start and one seed go on sharing their parameters.
    return (yield Share((id(params), run.recipe.seed), lambda: new_head(run.recipe.model, params, fresh)))


def mean_cost(costs: Sequence[Cost], phases: Sequence[Stage]) -> Cost:
    """Return the mean FLOPs of an update over the phases, and the largest bytes."""
    steps = [max(stage.steps, 1) for stage in phases]
    flops = sum(cost.flops * count for cost, count in zip(costs, steps, strict=True)) / sum(steps)
    return Cost(flops, max(c.peak_bytes for c in costs), max(c.optimizer_bytes for c in costs))


# --- what the retention method keeps of the source task -------------------------------------------------------------


def retention_state_of(run: ResolvedRun, pretrained: Params, cache: StageCache | None) -> Steps[RetentionState | None]:
    """Return the retention method's state, once for all runs of one pre-training and one seed; ``None``: no state.

    ``own`` is the method's; ``head`` is the source's head where fine-tuning replaces it.
    """
    if not run.recipe.retention.needs_state:
        return None

    def make() -> RetentionState:
        # Initial parameters belong to no cached stage.
        cached = cache_in(run, pretrained, cache) if cache is not None and run.recipe.strategy.pretrained else None
        task = source_task(run, pretrained, cached or compute_anew)
        head = {path: pretrained[path] for path in task.head} if task.new_head else {}
        return {"own": run.recipe.retention.init_state(task), "head": head}

    return (yield Share((id(pretrained), run.recipe.seed), make))


def source_task(run: ResolvedRun, params: Params, cached: CacheFn = compute_anew) -> SourceTask:
    """Return what a retention method gets of the learned source task."""
    source = run.pretrain_stage
    return SourceTask(
        source.model,
        source.outputs,
        source.objective,
        params,
        head_paths(source.model, params),
        bool(new_head_paths(run, params)),
        run.data.source.get("train"),
        run.recipe.seed,
        cached,
    )


def cache_in(run: ResolvedRun, params: Params, cache: StageCache) -> CacheFn:
    """Return a function that caches what a retention method computes of the source task's parameters."""

    def cached(what: Any, compute: Callable[[], Params]) -> Params:
        extra = {**device_kind(), "seed": int(run.recipe.seed)}
        key = finding_key(what, params, run.data.source_fingerprint, extra)
        if (entry := cache.get(key)) is not None:
            known: Any = entry.params  # NumPy arrays, which every program takes
            return known
        found = compute()
        facts = {"stage": f"{what} of {stage_label(run.pretrain_stage)}"}
        cache.put(key, Entry({path: np.asarray(leaf) for path, leaf in found.items()}, [], facts))
        return found

    return cached
