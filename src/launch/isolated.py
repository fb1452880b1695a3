"""``hydra/launcher=isolated``: each job of a sweep runs as the same command line in its own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from ..config.schema import typed
from ..environment import PACKAGE, SWEEP_VARIABLE
from ..tracking.console import echo
from ..tracking.job import blank_summary
from ..tracking.record_reader import Job
from .process_pool import IsolatedSettings, JobCommand, run_commands
from .sweep import Sweep, SweepJob

# Overrides of Hydra's own configuration that apply to the sweep and not to its jobs.
SWEEP_ONLY = ("hydra.mode", "hydra.sweep", "hydra.launcher", "hydra.run", "hydra/launcher", "hydra/sweeper")


class Isolated:
    """Runs jobs as child processes; ``settings`` are those of :class:`IsolatedSettings`, checked here."""

    def __init__(self, **settings: Any) -> None:
        self.settings: IsolatedSettings = typed(IsolatedSettings, settings, "hydra.launcher")

    def run(self, jobs: Sequence[SweepJob], sweep: Sweep) -> None:
        """Run jobs; every job that was started has a record afterwards, however it ended."""

        def on_end(job: JobCommand, record: Job, attempts: int) -> None:
            repeated = f" after {attempts} attempts" if attempts > 1 else ""
            detail = f"val loss {record.objective:.4f}" if record.status == "completed" else record.error or ""
            echo(f"  {record.status}{repeated}: {job.label}  {detail}")

        os.environ[SWEEP_VARIABLE] = sweep.folder.path.name  # the children inherit it
        try:
            run_commands([job_command(job, sweep) for job in jobs], self.settings, on_end)
        finally:
            del os.environ[SWEEP_VARIABLE]


def job_command(job: SweepJob, sweep: Sweep) -> JobCommand:
    """Return the command line that runs a job and writes its record to the job's folder."""
    hydra, overrides = sweep.config.hydra, job.composed.overrides
    folder = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
    command = (
        *(sys.executable, "-m", f"{PACKAGE}.train", "--config-name", str(hydra.job.config_name)),
        *overrides,
        *(line for line in hydra.overrides.hydra if not line.lstrip("+~").startswith(SWEEP_ONLY)),
        "hydra.mode=RUN",
        f"hydra.run.dir='{folder}'",  # quoted: paths may contain `=`, `,` and spaces
        f"hydra.job.num={job.number}",
        f"hydra.job.id='{job.number}'",
    )
    summary = {**blank_summary(job.composed.config), "overrides": list(overrides)}
    return JobCommand(job.label, command, job.folder, summary)
