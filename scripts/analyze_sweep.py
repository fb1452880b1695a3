"""Say which arm of a sweep is best, with intervals, tables and pictures.

python scripts/analyze_sweep.py outputs/sweeps/demo/sweep.parquet
python scripts/analyze_sweep.py sweep.csv --metric test_accuracy --arm strategy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _root  # noqa: F401
from rich.console import Console

from src.analysis.analysis import analyze, make_question
from src.analysis.export import read_table
from src.analysis.report import print_analysis, write_report
from src.errors import run_script


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tune each arm on validation, compare the arms on test.")
    parser.add_argument("table", type=Path, help="the table that scripts/export_sweep.py wrote")
    parser.add_argument("--metric", default="test_loss", help="what is reported (default: %(default)s)")
    parser.add_argument("--select", help="what chooses the tuned values (default: the metric's val_ twin)")
    parser.add_argument("--tune", nargs="+", metavar="COLUMN", help="what is chosen for each arm (default: lr_fine)")
    parser.add_argument("--arm", nargs="+", metavar="COLUMN", help="what is compared (default: all else that varies)")
    parser.add_argument("--pair", metavar="COLUMN", help="what pairs the jobs of two arms (default: seed)")
    parser.add_argument("--reference", metavar="ARM", help="the arm to compare with (default: frozen, or the first)")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--higher", action="store_const", const=True, dest="higher", help="higher is better")
    direction.add_argument("--lower", action="store_const", const=False, dest="higher", help="lower is better")
    parser.add_argument("--history", type=Path, help="table of the logged steps (default: history.* beside the table)")
    parser.add_argument("--out", type=Path, help="folder for analysis.md and pictures (default: beside the table)")
    return parser.parse_args()


def main() -> None:
    """Read, answer, print, write."""
    arguments = read_arguments()
    table = read_table(arguments.table)
    beside = (arguments.table.with_name(f"history{suffix}") for suffix in (".parquet", ".csv"))
    logged = arguments.history or next((path for path in beside if path.exists()), None)
    history = read_table(logged) if logged else None
    question = make_question(
        table,
        metric=arguments.metric,
        select=arguments.select,
        tune=arguments.tune,
        arms=arguments.arm,
        pair=arguments.pair,
        higher=arguments.higher,
    )
    analysis = analyze(table, question, arguments.reference)
    files = write_report(analysis, history, arguments.out or arguments.table.parent, arguments.table)
    print_analysis(analysis, Console())  # after the files, which `| head` must not cut short
    for path in files:
        print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
