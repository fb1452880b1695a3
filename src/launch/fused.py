"""``hydra/launcher=fused``: jobs that differ in traced values only run as lanes of one program.

Jobs are grouped by what their programs depend on; each group runs in chunks of lanes, and a chunk's records are written
when it ends, so a kill loses at most the chunk in flight. Pre-training is computed once for all jobs that share it,
across groups and strategies. Whatever cannot run this way runs job by job, and the console says why.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

from ..config.choices import Kind
from ..config.hparams import COUNT, bind, check_value, hparam, hyperparameters, static_part
from ..errors import UserError
from ..recipe.configure import Plan, make_plan
from ..tracking.console import Bar, say
from ..tracking.job import StageRows
from .composing import Composed
from .job import complete, stage_cache

if TYPE_CHECKING:
    from ..data.base import Transfer
    from ..recipe.pretrain import Pretrained
    from ..recipe.resolve import ResolvedRun
    from ..training.stage_cache import StageCache
    from ..training.vectorize import RunAxis
    from .sweep import Sweep, SweepJob

Mode = Enum("Mode", ["map", "vmap", "auto"])
MOST_RUNS = 256  # in a chunk: what a kill may cost is bounded too
SHARING_RUNS = 8  # this many jobs of one pre-training are a chunk of their own, which shares its parameters
SMALL_NETWORK = 10_000  # parameters up to which vmap is faster than map on two cores (docs/performance.md)


@dataclass(frozen=True)
class FusedSettings:
    """``mode``: map, vmap or auto. ``batch_size``: lanes of one program; ``null``: as many as fit in memory."""

    mode: Mode = hparam(Mode.map)
    batch_size: int | None = hparam(None, COUNT)


class Ready(NamedTuple):
    """A job whose configuration has been understood."""

    job: SweepJob
    plan: Plan
    group: Any  # what its program depends on


class Fused:
    """Runs jobs as lanes."""

    def __init__(self, settings: FusedSettings) -> None:
        self.settings = settings
        self.plans = Plans()
        self.pretrained: dict[Any, tuple[Pretrained, StageRows]] = {}  # for as long as the sweep lasts

    def run(self, jobs: Sequence[SweepJob], sweep: Sweep) -> None:
        """Run jobs; every one has a record afterwards, whatever happened to it."""
        from ..training.compiled import prepare_jax

        prepare_jax()
        groups: dict[Any, list[Ready]] = {}
        for job in jobs:
            try:
                ready = Ready(job, *self.plans.of(job.composed))
            except UserError as error:
                sweep.fail(job, error)
                continue
            groups.setdefault(ready.group, []).append(ready)
        for key, values in self.plans.compiled_in.items():
            if len(values) > 1:
                say(f"{key} is compiled in: its {len(values)} values are programs of their own")
        with Bar({"jobs": len(jobs)}, bool(sweep.config.progress)) as bar:
            done = 0
            for group in groups.values():
                for ended in self.run_group(group, sweep):
                    done += ended
                    bar.update("jobs", {"step": done})

    def run_group(self, group: list[Ready], sweep: Sweep) -> Iterator[int]:
        """Run jobs of one program; yield how many have ended, chunk by chunk."""
        left = {ready.job.number: ready for ready in group}
        if group[0].plan.recipe.recipe is Kind.sequence:  # long runs, one by one; they share compiled programs
            for ready in group:
                self.run_alone(ready.job, sweep)
                yield 1
            return
        try:
            first = self.understand(group[0], sweep)
        except UserError as error:  # of the data or the table: the same for all
            for ready in group:
                sweep.fail(ready.job, error)
            yield len(group)
            return
        if len(group) > 1:
            try:
                for chunk in self.chunks(group, first):
                    self.run_chunk(chunk, first, sweep)
                    for ready in chunk:
                        del left[ready.job.number]
                    yield len(chunk)
            except OSError as error:  # a full disk: every further job would meet it too
                raise UserError(
                    f"{sweep.folder.path} cannot be written ({error.strerror}); what was done stays done, "
                    "and the same command goes on from there"
                ) from error
            except Exception as error:  # noqa: BLE001  (one program's failure must not cost its jobs)
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                say(f"{len(left)} jobs could not run as one program ({reason}): running them one by one", "yellow")
        for ready in left.values():
            self.run_alone(ready.job, sweep)
            yield 1

    def understand(self, ready: Ready, sweep: Sweep) -> ResolvedRun:
        """Load a group's data and look at where its strategy moves, before anything is trained."""
        from ..optim.optimizers import FreezeImpl
        from ..recipe.resolve import resolve

        data = load(ready.plan.source)
        sweep.folder.check_data(ready.job.composed.config["data"], data.fingerprint)
        return resolve(ready.plan.recipe, data, FreezeImpl.split)

    def run_alone(self, job: SweepJob, sweep: Sweep) -> None:
        """Run a job in this process as Hydra's own launcher would."""
        from hydra.core.utils import run_job

        run_job(
            hydra_context=sweep.context,
            task_function=sweep.task,
            config=sweep.full_config(job.number, job.composed.overrides),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def chunks(self, group: list[Ready], first: ResolvedRun) -> list[list[Ready]]:
        """Cut a group into chunks of runs, those that share a pre-training side by side."""
        n_runs = self.settings.batch_size or runs_that_fit(first, self.axis(first))
        by_pretraining: dict[Any, list[Ready]] = {}
        for ready in group:
            by_pretraining.setdefault(first.bind(ready.plan.recipe).pretrain_identity, []).append(ready)
        families = list(by_pretraining.values())
        if min(map(len, families)) < SHARING_RUNS:
            families = [[ready for family in families for ready in family]]
        return [family[i : i + n_runs] for family in families for i in range(0, len(family), n_runs)]

    def axis(self, first: ResolvedRun) -> RunAxis:
        """Return how the run axis is computed."""
        import jax

        from ..training.vectorize import RunAxis

        small = first.trainable.total <= SMALL_NETWORK or jax.default_backend() != "cpu"
        together = self.settings.mode is Mode.vmap or (self.settings.mode is Mode.auto and small)
        return RunAxis.vmap if together else RunAxis.map

    def run_chunk(self, chunk: list[Ready], first: ResolvedRun, sweep: Sweep) -> None:
        """Run the jobs of a chunk together and write their records."""
        from ..recipe.run import finetune_together
        from ..training.compiled import Compiled

        started, compiling = time.perf_counter(), Compiled.seconds
        axis, cache, data = self.axis(first), stage_cache(chunk[0].plan.study), first.data
        runs = [first.bind(ready.plan.recipe) for ready in chunk]
        shared = self.pretrain(runs, cache, axis)
        rows: list[list[dict[str, float]]] = [[] for _ in chunk]
        pretrained = [pre for pre, _ in shared]
        results = finetune_together(runs, pretrained, [own.append for own in rows], axis, cache)
        seconds = round((time.perf_counter() - started) / len(chunk), 4)
        compile_seconds = round((Compiled.seconds - compiling) / len(chunk), 4)
        for ready, (_, pretrain_rows), own, result in zip(chunk, shared, rows, results, strict=True):
            with sweep.track(ready.job) as tracking:
                tracking.open_view(ready.plan.tracker)
                stages = [pretrain_rows, StageRows.of("finetune", own)]
                tracking.keep(stages, sweep.folder.path.name, data.fingerprint)
                complete(tracking, result, data, first.trainable, seconds=seconds, compile_seconds=compile_seconds)

    def pretrain(
        self, runs: list[ResolvedRun], cache: StageCache | None, axis: RunAxis
    ) -> list[tuple[Pretrained, StageRows]]:
        """Return each run's pre-training; those that the sweep has not computed yet are computed together."""
        from ..recipe.run import pretrain_together

        keys = [run.pretrain_identity for run in runs]
        missing = {key: run for key, run in zip(keys, runs, strict=True) if key not in self.pretrained}
        for part in _cut(list(missing), self.settings.batch_size or MOST_RUNS):
            found = pretrain_together([missing[key] for key in part], cache, axis)
            for key, pre in zip(part, found, strict=True):
                self.pretrained[key] = pre, StageRows.of("pretrain", pre.rows)
        return [self.pretrained[key] for key in keys]


class Plans:
    """Understands composed jobs; those that differ in traced values only are understood once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Plan, Any, dict[str, Any]]] = {}
        self.compiled_in: dict[str, set[Any]] = {}  # scalars that were swept and are no argument of a program

    def of(self, composed: Composed) -> tuple[Plan, Any]:
        """Return a job's plan, and what its program depends on.

        Raises:
            UserError: a value that is not allowed.
        """
        family = id(composed.template)
        if family not in self._known:
            self._known[family] = self._make(composed)
        _, _, traced = self._known[family]
        swept = {key: value for key, value in composed.values.items() if key in traced and _fits(value, traced[key])}
        rest = tuple((key, value) for key, value in composed.values.items() if key not in swept)
        for key, value in rest:
            if not key.startswith("tracker."):
                self.compiled_in.setdefault(key, set()).add(value)
        if (family, rest) not in self._known:
            self._known[family, rest] = self._make(composed)
        plan, group, traced = self._known[family, rest]
        for key, value in swept.items():
            check_value(plan.recipe, key, value)
        recipe = bind(plan.recipe, {key: type(traced[key])(value) for key, value in swept.items()})
        return dataclasses.replace(plan, recipe=recipe), group

    def _make(self, composed: Composed) -> tuple[Plan, Any, dict[str, Any]]:
        cfg = OmegaConf.masked_copy(composed.template.cfg, list(composed.config))
        for key, value in composed.values.items():
            OmegaConf.update(cfg, key, value)
        plan = make_plan(cfg)
        return plan, (static_part(plan.recipe), plan.source), hyperparameters(plan.recipe)


def _fits(value: Any, like: Any) -> bool:
    """Tell whether a value can stand in a traced field as it is, so that only its check is left."""
    return not isinstance(value, bool) and isinstance(value, int if isinstance(like, int) else (int, float))


@functools.lru_cache(maxsize=8)
def load(source: Any) -> Transfer:
    """Load a data source once for all the groups that use it."""
    return source.load()


def runs_that_fit(first: ResolvedRun, axis: RunAxis) -> int:
    """Estimate how many runs fit in a quarter of the free memory.

    A run holds its parameters, its optimizer state and their successors; with ``vmap`` also the activations of a batch,
    estimated as the width of the largest layer times the number of layers, forward and backward.
    """
    from ..training.vectorize import RunAxis

    train, sizes = first.data.target["train"].x, first.trainable.sizes
    rows = min(first.recipe.batch_size or len(train), len(train))
    widest = max(sizes.values()) ** 0.5
    activations = 8 * rows * widest * len(sizes) if axis is RunAxis.vmap else 0
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(MOST_RUNS, int(free / 4 / (8 * 4 * first.trainable.total + activations + 1))))


def _cut(items: list[Any], size: int) -> Iterator[list[Any]]:
    yield from (items[i : i + size] for i in range(0, len(items), size))
