"""What every way of running a sweep has in common: its folder, what is left to do, the closing table and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ..analysis.reports import check_report, write_study
from ..config.identity import job_folder_name, job_id
from ..config.schema import Study, typed
from ..errors import UserError
from ..tracking.console import near, say
from ..tracking.job import JobTracking
from ..tracking.record import SUMMARY
from ..tracking.records import Job, load_job
from .composing import Composed, SweepComposer
from .folder import ENDED, SweepFolder
from .table import show_table


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep."""

    number: int  # its place in the sweep, which its identity does not depend on
    composed: Composed
    id: str
    folder: Path

    @property
    def label(self) -> str:
        """What people see: its number and its overrides."""
        return f"#{self.number} {' '.join(self.composed.overrides)}"


class Sweep:
    """A sweep under way: made once, asked for one batch of jobs or for several (an optimising sweeper)."""

    def __init__(
        self,
        context: HydraContext,
        task: TaskFunction,
        config: DictConfig,
        way: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.context, self.task, self.config = context, task, config
        self.runner = make_runner(way, settings)
        # Sweepers validate each job through the context's loader: from here on that costs next to nothing.
        self.composer = SweepComposer(context.config_loader)
        context.config_loader = self.composer  # type: ignore[assignment]
        study = typed(Study, {name: config[name] for name in Study.__dataclass_fields__}, "")
        check_report(study.report)
        self.report = study.report
        self.folder = SweepFolder(Path(str(config.hydra.sweep.dir)), study.resume)

    def launch(self, batch: Sequence[Sequence[str]], first_number: int) -> list[JobReturn]:
        """Run what is missing of a batch of jobs, show the table, and return every job's result in order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self.describe(first_number + i, overrides) for i, overrides in enumerate(batch)]
        unique = {job.folder: job for job in jobs}
        pending = [job for job in unique.values() if not self.folder.ended(job.folder, job.id)]
        done = len(unique) - len(pending)
        there = f", {done} of them there already" if done else ""
        say(f"{len(unique)} jobs{there}; {self.folder.path}")
        if pending:
            self.runner.run(pending, self)
        records = {folder: load_job(folder, folder.name) for folder in unique}
        show_table([records[job.folder] for job in jobs], self.folder.path)
        if self.report:
            show_report(self.report, self.folder.path)
        return [self.returned(job, records[job.folder], records) for job in jobs]

    def describe(self, number: int, overrides: Sequence[str]) -> SweepJob:
        """Compose a job; say who it is and where it goes."""
        composed = self.composer.compose(self.config, overrides)
        if composed.template.subdir == "${job_folder:}":
            name = job_folder_name(composed.overrides, composed.config)
        else:  # the user's own way of naming jobs
            name = str(OmegaConf.select(self.full_config(number, overrides), "hydra.sweep.subdir"))
        return SweepJob(number, composed, job_id(composed.config), self.folder.path / name)

    def full_config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """Compose a job as Hydra's own launcher would hand it to the task."""
        cfg = self.composer.compose_fully(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return cfg

    def write_hydra_files(self, job: SweepJob) -> None:
        """Write what Hydra writes for a job that it runs itself."""
        output = OmegaConf.select(job.composed.template.cfg, "hydra.output_subdir")
        if output is not None:
            folder = job.folder / output
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in job.composed.template.yaml_files(job.composed, job.number, str(job.folder)).items():
                (folder / name).write_bytes(text.encode())

    def track(self, job: SweepJob) -> JobTracking:
        """Begin a job's record."""
        self.write_hydra_files(job)
        return JobTracking(job.folder, job.composed.config, list(job.composed.overrides))

    def fail(self, job: SweepJob, error: Exception) -> None:
        """Record a job that could not be run."""
        with self.track(job) as tracking:
            tracking.fail(error)

    def returned(self, job: SweepJob, record: Job, records: Mapping[Path, Job]) -> JobReturn:
        """Return what Hydra's sweeper wants to know of a job."""
        result = JobReturn(overrides=list(job.composed.overrides), working_dir=str(job.folder))
        if record.status in ENDED:
            objective = record.objective
            result.return_value = float("inf") if objective is None else objective
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
    """Write a sweep's report and say what it found; whatever goes wrong here, the jobs' records stay as they are."""
    try:
        report, page = write_study(name, sweep)
    except Exception as error:  # noqa: BLE001  (hours of jobs must not end as a failure of their last picture)
        reason = " ".join(str(error).split()) or repr(error)
        again = f"python scripts/report_sweep.py {near(sweep)} --report {name}"
        say(
            f"report={name} could not be written ({reason}); every record is kept, and this tries again: {again}", "red"
        )
        return
    for remark in report.remarks:
        say(remark, "yellow")
    say(report.conclusion, "bold")
    say(f"report: {near(page)}")


def make_runner(way: str, settings: Mapping[str, Any]) -> Any:
    """Return what runs the jobs that are missing: ``fused`` or ``isolated``, its settings checked."""
    if way == "fused":
        from .fused import Fused, FusedSettings

        return Fused(typed(FusedSettings, settings, "hydra.launcher"))
    from .isolated import Settings
    from .processes import Isolated

    return Isolated(typed(Settings, settings, "hydra.launcher"))
