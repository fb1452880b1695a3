"""``hydra/launcher=isolated``: each job of a sweep is the command line again, in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from ..environment import PACKAGE, SWEEP_VARIABLE
from ..tracking.console import say
from ..tracking.job import blank_summary
from .isolated import Ended, Settings, Task, run_isolated

if TYPE_CHECKING:
    from .sweep import Sweep, SweepJob

# Overrides of Hydra's own configuration that belong to the sweep and not to one of its jobs.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.launcher", "hydra.run", "hydra/launcher", "hydra/sweeper")


class Isolated:
    """Runs jobs as child processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def run(self, jobs: Sequence[SweepJob], sweep: Sweep) -> None:
        """Run jobs; every one that was started has a record afterwards, whatever happened to it."""
        tasks = [task_of(job, sweep) for job in jobs]

        def tell(task: Task, ended: Ended) -> None:
            tries = f" after {ended.tries} tries" if ended.tries > 1 else ""
            result = f"val loss {ended.objective:.4f}" if ended.status == "completed" else ended.error or ""
            say(f"  {ended.status}{tries}: {task.label}  {result}")

        os.environ[SWEEP_VARIABLE] = sweep.folder.path.name  # the children inherit it
        try:
            run_isolated(tasks, self.settings, tell)
        finally:
            del os.environ[SWEEP_VARIABLE]


def task_of(job: SweepJob, sweep: Sweep) -> Task:
    """Return the child that runs a job: the same command line, told where its record goes."""
    hydra = sweep.config.hydra
    passed_on = [line for line in hydra.overrides.hydra if not line.lstrip("+~").startswith(OF_THE_SWEEP)]
    arguments = [
        *job.composed.overrides,
        *passed_on,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(str(job.folder))}",
        f"hydra.job.num={job.number}",
        f"hydra.job.id='{job.number}'",
    ]
    command = (sys.executable, "-m", f"{PACKAGE}.train", "--config-name", str(hydra.job.config_name), *arguments)
    overrides = OmegaConf.to_container(OmegaConf.create(list(job.composed.overrides)))
    summary = {**blank_summary(job.composed.config), "overrides": overrides}
    return Task(job.label, command, job.folder, summary)


def quoted(text: str) -> str:
    """Quote a value for Hydra's grammar: paths hold ``=``, ``,`` and spaces."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
