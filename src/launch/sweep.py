"""A sweep: the jobs that are still missing, the table at its end and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.core.utils import run_job as run_hydra_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ..analysis.reports import check_report, write_study
from ..config.identity import job_folder_name, job_id
from ..config.schema import StudyConfig, typed
from ..errors import UserError
from ..tracking.console import console, echo, relative_path
from ..tracking.job import JobTracking
from ..tracking.record_reader import Job, load_job
from ..tracking.record_writer import SUMMARY
from .composing import CachingConfigLoader, ComposedJob
from .folder import ENDED, SweepFolder

COLOURS = {"completed": "green", "diverged": "yellow", "failed": "red", "unfinished": "red", "damaged": "red"}


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep."""

    number: int  # its position in the sweep, which its id does not depend on
    composed: ComposedJob
    id: str
    folder: Path

    @property
    def label(self) -> str:
        """For the console."""
        return f"#{self.number} {' '.join(self.composed.overrides)}"


class Runner(Protocol):
    """Executes the jobs of a sweep: :class:`.fused.Fused` or :class:`.isolated.Isolated`."""

    def run(self, jobs: Sequence[SweepJob], sweep: Sweep) -> None:
        """Run jobs; each that was started has a record afterwards."""


class Sweep:
    """A running sweep: created once, launched with one batch of jobs, or several by an optimizing sweeper."""

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig, runner: Runner) -> None:
        self.context, self.task, self.config, self.runner = context, task, config, runner
        # Sweepers validate each job through the context's loader.
        self.loader = CachingConfigLoader(context.config_loader)
        context.config_loader = self.loader  # type: ignore[assignment]
        study = typed(StudyConfig, {name: config[name] for name in StudyConfig.__dataclass_fields__}, "")
        check_report(study.report)
        self.report = study.report
        self.folder = SweepFolder(Path(str(config.hydra.sweep.dir)), study.resume)

    def launch(self, batch: Sequence[Sequence[str]], first_number: int) -> list[JobReturn]:
        """Run the jobs of a batch that have not ended yet, print the table, and return all results in order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self.compose(first_number + i, overrides) for i, overrides in enumerate(batch)]
        unique = {job.folder: job for job in jobs}
        pending = [job for job in unique.values() if not self.folder.ended(job.folder, job.id)]
        done = len(unique) - len(pending)
        echo(f"{len(unique)} jobs{f', {done} of them already done' if done else ''}; {self.folder.path}")
        if pending:
            self.runner.run(pending, self)
        records = {folder: load_job(folder, folder.name) for folder in unique}
        show_table([records[job.folder] for job in jobs], self.folder.path)
        if self.report:
            show_report(self.report, self.folder.path)
        return [job_return(job, records) for job in jobs]

    def compose(self, number: int, overrides: Sequence[str]) -> SweepJob:
        """Compose a job and determine its id and folder."""
        composed = self.loader.compose(self.config, overrides)
        if composed.composition.subdir == "${job_folder:}":
            name = job_folder_name(composed.overrides, composed.config)
        else:  # the user's own `hydra.sweep.subdir`
            name = str(OmegaConf.select(self.full_config(number, overrides), "hydra.sweep.subdir"))
        return SweepJob(number, composed, job_id(composed.config), self.folder.path / name)

    def full_config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """Compose a job as Hydra's own launcher would pass it to the task function."""
        cfg = self.loader.compose_fully(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return cfg

    def track(self, job: SweepJob) -> JobTracking:
        """Write the files that Hydra writes for a job it runs itself, and begin the job's record."""
        composition = job.composed.composition
        output = OmegaConf.select(composition.cfg, "hydra.output_subdir")
        if output is not None:
            folder = job.folder / output
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in composition.yaml_files(job.composed, job.number, str(job.folder)).items():
                (folder / name).write_bytes(text.encode())
        return JobTracking(job.folder, job.composed.config, list(job.composed.overrides))

    def fail(self, job: SweepJob, error: Exception) -> None:
        """Record a job that could not be run."""
        with self.track(job) as tracking:
            tracking.fail(error)

    def run_alone(self, job: SweepJob) -> None:
        """Run a job in this process as Hydra's own launcher would."""
        run_hydra_job(
            hydra_context=self.context,
            task_function=self.task,
            config=self.full_config(job.number, job.composed.overrides),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def job_return(job: SweepJob, records: Mapping[Path, Job]) -> JobReturn:
    """Return a job's result for Hydra's sweeper; ``records`` are those of all jobs, by folder."""
    record = records[job.folder]
    result = JobReturn(overrides=list(job.composed.overrides), working_dir=str(job.folder))
    if record.status in ENDED:
        result.return_value = float("inf") if record.objective is None else record.objective
        result.status = JobStatus.COMPLETED
    else:
        failed = [r for r in records.values() if r.status not in ENDED]
        result.return_value = UserError(
            f"{len(failed)} of {len(records)} jobs did not complete; the first: {job.label}: "
            f"{record.error or record.status} ({job.folder / SUMMARY})"
        )
        result.status = JobStatus.FAILED
    return result


def show_report(name: str, sweep: Path) -> None:
    """Write a sweep's report and print its conclusion, or why there is none."""
    try:
        report, page = write_study(name, sweep)
    except Exception as error:  # noqa: BLE001  (hours of jobs must not fail with their report)
        reason = " ".join(str(error).split()) or repr(error)
        text = f"report={name} could not be written ({reason}); all records are kept; repeat the command to try again"
        echo(text, "red")
        return
    for remark in report.remarks:
        echo(remark, "yellow")
    echo(report.conclusion, "bold")
    echo(f"report: {relative_path(page)}")


def show_table(jobs: Sequence[Job], sweep: Path) -> None:
    """Print how a sweep's jobs ended."""
    counts = Counter(job.status for job in jobs)
    parts = [f"[{COLOURS[status]}]{counts[status]} {status}[/]" for status in COLOURS if counts[status]]
    console().print(f"\n{len(jobs)} jobs: {', '.join(parts)}")
    completed = [job for job in jobs if job.status == "completed" and job.objective is not None]
    best: dict[str, Job] = {}  # each strategy's best job by validation loss, the best of them first
    for job in sorted(completed, key=lambda job: job.objective or 0.0):
        best.setdefault(job.config.get("strategy", {}).get("name", ""), job)
    width = max(map(len, best), default=0)
    for name, job in best.items():
        echo(f"best {name:<{width}}  validation loss {job.objective:.4f}  {job.name}")
    for job in jobs:
        if job.status not in ("completed", "diverged"):
            echo(f"{job.status}: {job.error or 'its process ended before its summary was written'}", "red")
            echo(f"  {relative_path(sweep / job.name)}")
    for job in [job for job in jobs if job.status == "diverged"][:10]:
        echo(f"diverged after update {job.last_finite_step}: {relative_path(sweep / job.name)}", "yellow")
    if counts["diverged"] > 10:
        echo(f"and {counts['diverged'] - 10} more diverged", "yellow")
