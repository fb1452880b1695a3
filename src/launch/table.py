"""The table at the end of a sweep: how its jobs ended, each strategy's best job, and every failure with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..tracking.console import console, echo, relative_path
from ..tracking.record_reader import Job

COLOURS = {"completed": "green", "diverged": "yellow", "failed": "red", "unfinished": "red", "damaged": "red"}


def show_table(jobs: Sequence[Job], sweep: Path) -> None:
    """Print how a sweep's jobs ended."""
    counts = Counter(job.status for job in jobs)
    parts = [f"[{COLOURS[status]}]{counts[status]} {status}[/]" for status in COLOURS if counts[status]]
    console().print(f"\n{len(jobs)} jobs: {', '.join(parts)}")
    completed = [job for job in jobs if job.status == "completed" and job.objective is not None]
    if completed:
        _show_best(completed)
    for job in jobs:
        if job.status not in ("completed", "diverged"):
            echo(f"{job.status}: {job.error or 'its process ended before its summary was written'}", "red")
            echo(f"  {relative_path(sweep / job.name)}")
    for job in [job for job in jobs if job.status == "diverged"][:10]:
        echo(f"diverged after update {job.last_finite_step}: {relative_path(sweep / job.name)}", "yellow")
    more = counts["diverged"] - 10
    if more > 0:
        echo(f"and {more} more diverged", "yellow")


def _show_best(completed: Sequence[Job]) -> None:
    """Print each strategy's best job by validation loss, the best of them first."""
    best: dict[str, Job] = {}
    for job in completed:
        name = job.config.get("strategy", {}).get("name", "")
        if name not in best or (job.objective or 0.0) < (best[name].objective or 0.0):
            best[name] = job
    width = max(map(len, best))
    for name, job in sorted(best.items(), key=lambda item: item[1].objective or 0.0):
        echo(f"best {name:<{width}}  validation loss {job.objective:.4f}  {job.name}")
