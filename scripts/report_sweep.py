"""Write the report of a finished sweep, or another report, into its folder: a conclusion, tables and pictures.

python scripts/report_sweep.py outputs/sweeps/probe_vs_full
python scripts/report_sweep.py outputs/sweeps/probe_vs_full --report label_efficiency
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _root  # noqa: F401

from src.analysis.reports import recorded_report, study_names, write_study
from src.errors import run_script


def main() -> None:
    """Run the study, print its conclusion and write its report."""
    parser = argparse.ArgumentParser(description="Write report.md and its pictures into the folder of a sweep.")
    parser.add_argument(
        "sweep_folder", type=Path, metavar="SWEEP_FOLDER", help="folder that contains the jobs' folders"
    )
    parser.add_argument(
        "--report",
        metavar="NAME",
        help=f"one of {', '.join(study_names())} (default: the one that the sweep was run with)",
    )
    arguments = parser.parse_args()
    report, page = write_study(arguments.report or recorded_report(arguments.sweep_folder), arguments.sweep_folder)
    for remark in report.remarks:
        print(remark)
    print(report.conclusion)
    for path in (page, *(page.parent / name for name in report.pictures)):
        print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
