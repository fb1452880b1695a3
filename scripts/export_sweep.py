"""Export the records of a sweep, or W&B runs, as one table.

python scripts/export_sweep.py outputs/sweeps/demo --out sweep.parquet --history history.parquet
python scripts/export_sweep.py --wandb my-team/thaw/demo --out sweep.csv
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401

from src.analysis.export import check_format, history_table, jobs_table, load_sweep, write_table
from src.errors import UserError, listed, run_script
from src.tracking.record_reader import STATUSES, Job


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Export a sweep as a table with one row for each job.")
    parser.add_argument(
        "sweep_dir", nargs="?", metavar="SWEEP_DIR", help="folder that contains the jobs' folders, at any depth"
    )
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT[/GROUP]", help="export W&B runs instead of a folder")
    parser.add_argument("--out", required=True, type=Path, help="path of the table (.parquet or .csv)")
    parser.add_argument(
        "--history", type=Path, help="path of a second table with one row for each logged step (.parquet or .csv)"
    )
    arguments = parser.parse_args()
    if (arguments.sweep_dir is None) == (arguments.wandb is None):
        parser.error("give either SWEEP_DIR or --wandb")
    return arguments


def load(arguments: argparse.Namespace) -> Sequence[Job]:
    """Read the jobs that the command line names.

    Raises:
        UserError: there are none, or none can be read.
    """
    if arguments.wandb:
        from src.tracking.wandb_runs import load_wandb_project

        jobs = load_wandb_project(arguments.wandb)
    else:
        jobs = load_sweep(arguments.sweep_dir)
    where = arguments.wandb or arguments.sweep_dir
    if not jobs:
        raise UserError(f"no jobs in '{where}': neither summary.json, nor .hydra folders, nor .wandb files")
    if all(job.status == "damaged" for job in jobs):
        raise UserError(f"none of the {len(jobs)} jobs in '{where}' can be read; the first: {jobs[0].error}")
    return jobs


def main() -> None:
    """Read the jobs, print their number by status, and write the tables."""
    arguments = read_arguments()
    for path in filter(None, (arguments.out, arguments.history)):
        check_format(path)  # before the jobs are read, which may take minutes
    jobs = load(arguments)
    count = Counter(job.status for job in jobs)
    print(f"{len(jobs)} jobs: " + ", ".join(f"{count[status]} {status}" for status in STATUSES if count[status]))
    for status in ("failed", "damaged"):
        if named := [f"{job.name} ({job.error or 'no reason recorded'})" for job in jobs if job.status == status]:
            print(f"{status}: {listed(named, limit=5)}")
    table = jobs_table(jobs)
    write_table(table, arguments.out)
    print(f"wrote {arguments.out} ({len(table)} rows, {len(table.columns)} columns)")
    if arguments.history:
        history = history_table(jobs)
        write_table(history, arguments.history)
        print(f"wrote {arguments.history} ({len(history)} rows, {len(history.columns)} columns)")


if __name__ == "__main__":
    run_script(main)
