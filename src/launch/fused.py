"""``hydra/launcher=fused``: jobs that differ in traced values only run together in one program.

Jobs are grouped by what their programs depend on. Each group runs in chunks, whose records are written when they end.
Pre-training is computed once for all jobs that share it. Jobs that cannot run together run one by one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

from ..config.choices import Kind
from ..config.hparams import COUNT, bind, check_values, hparam, hyperparameters, static_part
from ..config.schema import typed
from ..errors import UserError, first_line
from ..recipe.configure import Plan, make_plan
from ..tracking.cache import stage_cache
from ..tracking.console import ProgressBar, echo
from ..tracking.job import StageRows
from .composing import ComposedJob
from .job import complete
from .sweep import Sweep, SweepJob

if TYPE_CHECKING:
    from ..data.base import Transfer
    from ..recipe.pretrain import Pretrained
    from ..recipe.resolve import ResolvedRun
    from ..training.stage_cache import StageCache
    from ..training.vectorize import RunAxis

FusedMode = Enum("FusedMode", ["map", "vmap", "auto"])
MAX_RUNS = 256  # per chunk, which also bounds what a kill can lose
MIN_SHARED_RUNS = 8  # this many runs of one pre-training form their own chunk, which holds its parameters once
SMALL_NETWORK = 10_000  # parameters up to which vmap is faster than map on two cores (docs/performance.md)


@dataclass(frozen=True)
class FusedSettings:
    """``mode``: map, vmap or auto. ``batch_size``: jobs per program; ``null``: as many as fit in memory."""

    mode: FusedMode = hparam(FusedMode.map)
    batch_size: int | None = hparam(None, COUNT)


class PlannedJob(NamedTuple):
    """A job with its checked configuration."""

    job: SweepJob
    plan: Plan


class Fused:
    """Runs jobs together; ``settings`` are those of :class:`FusedSettings`, checked here."""

    def __init__(self, **settings: Any) -> None:
        self.settings: FusedSettings = typed(FusedSettings, settings, "hydra.launcher")
        self.plans = PlanCache()
        self.pretrained: dict[Any, tuple[Pretrained, StageRows]] = {}  # kept until the sweep ends

    def run(self, jobs: Sequence[SweepJob], sweep: Sweep) -> None:
        """Run jobs; each has a record afterwards, however it ended."""
        from ..training.compiled import prepare_jax

        prepare_jax()
        groups: dict[Any, list[PlannedJob]] = {}
        for job in jobs:
            try:
                plan, group = self.plans.plan(job.composed)
                groups.setdefault(group, []).append(PlannedJob(job, plan))
            except UserError as error:
                sweep.fail(job, error)
        for key, values in self.plans.static_values.items():
            if len(values) > 1:
                echo(f"{key} is compiled in: each of its {len(values)} values compiles its own program")
        ended = (count for group in groups.values() for count in self.run_group(group, sweep))
        with ProgressBar({"jobs": len(jobs)}, bool(sweep.config.progress)) as bar:
            for done in itertools.accumulate(ended):
                bar.update("jobs", {"step": done})

    def run_group(self, group: list[PlannedJob], sweep: Sweep) -> Iterator[int]:
        """Run the jobs of one program; yield the number of jobs that ended, chunk by chunk."""
        remaining = {planned.job.number: planned for planned in group}
        try:
            # A sequence is a long run: its jobs run one by one and share compiled programs.
            alone = group[0].plan.recipe.recipe is Kind.sequence
            first = None if alone else self.resolve(group[0], sweep)
        except UserError as error:  # the same for all
            for planned in group:
                sweep.fail(planned.job, error)
            yield len(group)
            return
        if first is not None and len(group) > 1:
            try:
                for chunk in self.chunks(group, first):
                    self.run_chunk(chunk, first, sweep)
                    for planned in chunk:
                        del remaining[planned.job.number]
                    yield len(chunk)
            except OSError as error:  # a full disk, for instance: every further job would fail too
                raise UserError(
                    f"{sweep.folder.path} cannot be written ({error.strerror}); what was done stays done, "
                    "and the same command continues from there"
                ) from error
            except Exception as error:  # noqa: BLE001  (the failure of one program must not lose its jobs)
                reason = f"{len(remaining)} jobs could not run as one program ({first_line(error)})"
                echo(f"{reason}: running them one by one", "yellow")
        for planned in remaining.values():
            sweep.run_alone(planned.job)
            yield 1

    def resolve(self, planned: PlannedJob, sweep: Sweep) -> ResolvedRun:
        """Load a group's data and resolve its first run, before anything is trained."""
        from ..optim.optimizers import FreezeImpl
        from ..recipe.resolve import resolve

        data = load(planned.plan.source)
        sweep.folder.check_data(planned.job.composed.config["data"], data.fingerprint)
        return resolve(planned.plan.recipe, data, FreezeImpl.split)

    def chunks(self, group: list[PlannedJob], first: ResolvedRun) -> list[list[PlannedJob]]:
        """Split a group into chunks, with the jobs of one pre-training next to each other."""
        size = self.settings.batch_size or max_runs_in_memory(first, self.axis(first))
        by_pretraining: dict[Any, list[PlannedJob]] = {}
        for planned in group:
            by_pretraining.setdefault(first.bind(planned.plan.recipe).pretrain_identity, []).append(planned)
        parts = list(by_pretraining.values())
        if min(map(len, parts)) < MIN_SHARED_RUNS:
            parts = [[planned for part in parts for planned in part]]
        return [chunk for part in parts for chunk in _batched(part, size)]

    def axis(self, first: ResolvedRun) -> RunAxis:
        """Return whether runs are mapped one after the other or vectorized."""
        import jax

        from ..training.vectorize import RunAxis

        small = first.trainable.total <= SMALL_NETWORK or jax.default_backend() != "cpu"
        vectorized = self.settings.mode is FusedMode.vmap or (self.settings.mode is FusedMode.auto and small)
        return RunAxis.vmap if vectorized else RunAxis.map

    def run_chunk(self, chunk: list[PlannedJob], first: ResolvedRun, sweep: Sweep) -> None:
        """Run the jobs of a chunk as one program and write their records."""
        from ..recipe.run import finetune_together
        from ..training.compiled import Compiled

        started, compiling = time.perf_counter(), Compiled.seconds
        axis, cache = self.axis(first), stage_cache(chunk[0].plan.study)
        runs = [first.bind(planned.plan.recipe) for planned in chunk]
        shared = self.pretrain(runs, cache, axis)
        rows: list[list[dict[str, float]]] = [[] for _ in chunk]
        pretrained = [pre for pre, _ in shared]
        results = finetune_together(runs, pretrained, [run_rows.append for run_rows in rows], axis, cache)
        times = {"seconds": time.perf_counter() - started, "compile_seconds": Compiled.seconds - compiling}
        times = {name: round(value / len(chunk), 4) for name, value in times.items()}
        for planned, (_, pretrain_rows), run_rows, result in zip(chunk, shared, rows, results, strict=True):
            with sweep.track(planned.job) as tracking:
                tracking.start_tracker(planned.plan.tracker)
                stages = [pretrain_rows, StageRows("finetune", run_rows)]
                tracking.record_rows(stages, sweep.folder.path.name, first.data.fingerprint)
                complete(tracking, result, first.data, first.trainable, **times)

    def pretrain(self, runs: list[ResolvedRun], cache: StageCache, axis: RunAxis) -> list[tuple[Pretrained, StageRows]]:
        """Return each run's pre-training; those that this sweep has not computed yet are computed together."""
        from ..recipe.run import pretrain_together

        keys = [run.pretrain_identity for run in runs]
        missing = {key: run for key, run in zip(keys, runs, strict=True) if key not in self.pretrained}
        for part in _batched(list(missing), self.settings.batch_size or MAX_RUNS):
            found = pretrain_together([missing[key] for key in part], cache, axis)
            for key, pre in zip(part, found, strict=True):
                self.pretrained[key] = pre, StageRows("pretrain", pre.rows)
        return [self.pretrained[key] for key in keys]


class PlanCache:
    """Makes the plans of composed jobs; jobs that differ in traced values only share one."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Plan, Any, dict[str, Any]]] = {}
        self.static_values: dict[str, set[Any]] = {}  # swept scalars that are compiled in, by key

    def plan(self, composed: ComposedJob) -> tuple[Plan, Any]:
        """Return a job's plan, and what its program depends on."""
        key = id(composed.composition)
        if key not in self._known:
            self._known[key] = self._make(composed)
        _, _, traced = self._known[key]
        scalars = composed.scalars
        swept = {name: scalars[name] for name in scalars if name in traced and _fits(scalars[name], traced[name])}
        static = tuple((name, value) for name, value in scalars.items() if name not in swept)
        for name, value in static:
            if not name.startswith("tracker."):
                self.static_values.setdefault(name, set()).add(value)
        if (key, static) not in self._known:
            self._known[key, static] = self._make(composed)
        plan, group, traced = self._known[key, static]
        recipe = bind(plan.recipe, {name: type(traced[name])(value) for name, value in swept.items()})
        for owner in {name.rpartition(".")[0]: None for name in swept}:
            check_values(operator.attrgetter(owner)(recipe) if owner else recipe, owner)
        return dataclasses.replace(plan, recipe=recipe), group

    def _make(self, composed: ComposedJob) -> tuple[Plan, Any, dict[str, Any]]:
        cfg = OmegaConf.masked_copy(composed.composition.cfg, list(composed.config))
        for key, value in composed.scalars.items():
            OmegaConf.update(cfg, key, value)
        plan = make_plan(cfg)
        return plan, (static_part(plan.recipe), plan.source), hyperparameters(plan.recipe)


def _fits(value: Any, traced: Any) -> bool:
    """Tell whether a value can replace a traced one without conversion."""
    return isinstance(value, int if isinstance(traced, int) else (int, float)) and not isinstance(value, bool)


@functools.lru_cache(maxsize=8)
def load(source: Any) -> Transfer:
    """Load a data source once for all the groups that use it."""
    return source.load()


def max_runs_in_memory(first: ResolvedRun, axis: RunAxis) -> int:
    """Estimate how many runs fit in a quarter of the free memory: parameters, optimizer state and their successors.

    With ``vmap`` also a batch's activations: the width of the largest layer times the number of layers, twice.
    """
    from ..training.vectorize import RunAxis

    train, sizes = first.data.target["train"].x, first.trainable.sizes
    rows = min(first.recipe.batch_size or len(train), len(train))
    widest = max(sizes.values()) ** 0.5
    activations = 8 * rows * widest * len(sizes) if axis is RunAxis.vmap else 0
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(MAX_RUNS, int(free / 4 / (8 * 4 * first.trainable.total + activations + 1))))


def _batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    yield from (items[i : i + size] for i in range(0, len(items), size))
