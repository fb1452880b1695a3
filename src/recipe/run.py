"""One run from start to end: pre-train, fine-tune, evaluate; and the same for many runs together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..training.calls import Steps, execute, execute_together
from ..training.compiled import Cost
from ..training.diagnostics import Moved, ValLosses, overfitting, what_moved
from ..training.stage_cache import StageCache
from ..training.vectorize import RunAxis
from ..types import LogFn, Params, Row, ignore
from .evaluate import evaluate_source, evaluate_target
from .finetune import finetune
from .pretrain import (
    Diagnostics,
    Pretrained,
    cached_pretraining,
    diagnose,
    pretrain,
    pretrain_or_load,
    put_pretraining,
    untrained,
)
from .resolve import ResolvedRun


@dataclass(frozen=True)
class RunResult:
    """The end of a run."""

    params: Params
    metrics: dict[str, float]  # of the final parameters, by part; empty if the run diverged
    diverged: bool
    last_finite_step: int  # of the stage in which the run ended
    cost: Cost  # of an update of fine-tuning; of pre-training if that diverged
    seconds: dict[str, float]  # wall time by stage
    seconds_per_update: float | None = None  # of fine-tuning, without compilation
    moved: Moved | None = None  # which parameters fine-tuning changed
    signals: dict[str, float] = field(default_factory=dict)  # of overfitting
    diagnostics: Diagnostics = field(default_factory=Diagnostics)  # of pre-training
    accuracy_matrix: list[list[float]] | None = None  # of a sequence: R[i][j], test accuracy on task j after task i

    @property
    def status(self) -> str:
        """``"completed"`` or ``"diverged"``."""
        return "diverged" if self.diverged else "completed"

    @property
    def objective(self) -> float:
        """The validation loss; infinite if the run diverged."""
        return float("inf") if self.diverged else self.metrics["val_loss"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about pre-training, a sentence each."""
        return self.diagnostics.warnings

    def summary(self) -> dict[str, Any]:
        """Return what else the job's summary records."""
        seconds = {"seconds_per_update": self.seconds_per_update}
        if self.accuracy_matrix is not None:
            return {"accuracy_matrix": self.accuracy_matrix, **seconds}
        moved = None if self.moved is None else self.moved._asdict()
        return {"moved": moved, "signals": self.signals, **seconds, **self.diagnostics.summary()}


def run(resolved: ResolvedRun, log_fn: Callable[[str, Row], None], cache: StageCache | None = None) -> RunResult:
    """Pre-train, fine-tune and evaluate.

    Args:
        resolved: what to do.
        log_fn: called with ``"pretrain"`` or ``"finetune"`` and each logged row.
        cache: of earlier pre-trainings, and of what was computed about them.
    """

    def steps() -> Steps[RunResult]:
        pretrained = yield from pretrain_or_load(resolved, cache, partial(log_fn, "pretrain"))
        return (yield from finetune_and_evaluate(resolved, pretrained, partial(log_fn, "finetune"), cache))

    return execute(steps())


def finetune_and_evaluate(
    resolved: ResolvedRun, pretrained: Pretrained, log_fn: LogFn = ignore, cache: StageCache | None = None
) -> Steps[RunResult]:
    """Fine-tune from a pre-training and evaluate; a run whose pre-training diverged ends there."""
    started = time.perf_counter()
    diagnostics = diagnose(resolved, pretrained.rows)
    seconds = {"pretrain": pretrained.seconds}
    if pretrained.diverged:
        last = pretrained.last_finite_step
        return RunResult(pretrained.params, {}, True, last, pretrained.cost, seconds, diagnostics=diagnostics)
    curve = ValLosses(log_fn)
    fine = yield from finetune(resolved, pretrained.params, curve, cache)
    target = yield from evaluate_target(resolved, fine)
    source = yield from evaluate_source(resolved, pretrained.params, fine)
    metrics, fit = pretrained.metrics | source | target, fine.fit
    diverged = fit.diverged or not all(map(math.isfinite, metrics.values()))
    return RunResult(
        fit.params,
        {} if diverged else metrics,
        diverged,
        fit.last_finite_step,
        fine.cost,
        seconds | {"finetune": time.perf_counter() - started},
        fit.seconds_per_update,
        what_moved(resolved.trainable.paths, fine.start, fit),
        {} if diverged else overfitting(target, curve, fit),
        diagnostics,
    )


# --- many runs -------------------------------------------------------------------------------------------------------


def pretrain_together(runs: Sequence[ResolvedRun], cache: StageCache | None, axis: RunAxis) -> list[Pretrained]:
    """Return the pre-training of each run; those that are not in the cache are computed together.

    Args:
        runs: they differ in traced hyperparameters only, and each has a pre-training of its own.
        cache: of earlier pre-trainings.
        axis: how the run axis is computed.
    """
    if not runs[0].starts_from_source:
        return execute_together([untrained(run) for run in runs], axis)
    found = [None if cache is None else cached_pretraining(run, cache) for run in runs]
    missing = [run for run, known in zip(runs, found, strict=True) if known is None]
    computed = iter(_with_shared_seconds(execute_together([pretrain(run, ignore) for run in missing], axis)))
    results = []
    for run_, known in zip(runs, found, strict=True):
        results.append(next(computed) if known is None else known)
        if known is None and cache is not None:
            put_pretraining(run_, results[-1], cache)
    return results


def finetune_together(
    runs: Sequence[ResolvedRun],
    pretrained: Sequence[Pretrained],
    log_fns: Sequence[LogFn],
    axis: RunAxis,
    cache: StageCache | None = None,
) -> list[RunResult]:
    """Fine-tune and evaluate runs that differ in traced hyperparameters only.

    Args:
        runs: resolved with ``FreezeImpl.split``: then the frozen half is not repeated for each run.
        pretrained: of each run; runs that share it hold the same object.
        log_fns: of each run, for the logged rows of fine-tuning.
        axis: how the run axis is computed.
        cache: of what was computed about earlier pre-trainings.
    """
    steps = [finetune_and_evaluate(*each, cache) for each in zip(runs, pretrained, log_fns, strict=True)]
    return _with_shared_seconds(execute_together(steps, axis))


def _with_shared_seconds(results: list[Any]) -> list[Any]:
    """Return the results with an equal share each of the wall time that all of them took together."""

    def share(seconds: Any) -> Any:
        if isinstance(seconds, dict):
            return seconds | {"finetune": seconds["finetune"] / len(results)} if "finetune" in seconds else seconds
        return seconds / len(results)

    return [replace(result, seconds=share(result.seconds)) for result in results]
