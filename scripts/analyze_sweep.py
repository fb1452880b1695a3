"""Compare the arms of a sweep and write tables, intervals and pictures.

python scripts/analyze_sweep.py outputs/sweeps/demo/sweep.parquet
python scripts/analyze_sweep.py sweep.csv --metric test_accuracy --arm strategy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _root  # noqa: F401
from rich.console import Console

from src.analysis.comparison import compare, make_spec
from src.analysis.export import read_table
from src.analysis.pages import print_comparison, write_comparison
from src.errors import run_script


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Compare the arms of a sweep: each arm is tuned on validation data and reported on test data."
    )
    parser.add_argument("table", type=Path, help="table written by scripts/export_sweep.py (.parquet or .csv)")
    parser.add_argument(
        "--metric",
        help="reported column (default: test_entity_f1, test_exact_match, test_accuracy, test_macro_f1 or test_loss, "
        "the first that the table has)",
    )
    parser.add_argument(
        "--select", help="column that chooses the tuned values (default: val_x for test_x, or val_loss)"
    )
    parser.add_argument("--tune", nargs="+", metavar="COLUMN", help="columns to choose for each arm (default: lr_fine)")
    parser.add_argument(
        "--arm", nargs="+", metavar="COLUMN", help="columns that define the arms (default: all others that vary)"
    )
    parser.add_argument("--pair", metavar="COLUMN", help="column that pairs the jobs of two arms (default: seed)")
    parser.add_argument("--reference", metavar="ARM", help="arm to compare with (default: frozen, or else the first)")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        "--higher", action="store_const", const=True, dest="higher", help="a higher value of the metric is better"
    )
    direction.add_argument(
        "--lower", action="store_const", const=False, dest="higher", help="a lower value of the metric is better"
    )
    parser.add_argument("--history", type=Path, help="table of logged steps (default: history.* beside the table)")
    parser.add_argument("--out", type=Path, help="folder for analysis.md and its pictures (default: that of the table)")
    return parser.parse_args()


def main() -> None:
    """Read the tables, compare the arms, print and write the result."""
    arguments = read_arguments()
    table = read_table(arguments.table)
    beside = (arguments.table.with_name(f"history{suffix}") for suffix in (".parquet", ".csv"))
    logged = arguments.history or next((path for path in beside if path.exists()), None)
    history = read_table(logged) if logged else None
    spec = make_spec(
        table,
        metric=arguments.metric,
        select=arguments.select,
        tune=arguments.tune,
        factors=arguments.arm,
        pair=arguments.pair,
        higher=arguments.higher,
    )
    found = compare(table, spec, arguments.reference)
    files = write_comparison(found, history, arguments.out or arguments.table.parent)
    print_comparison(found, Console())  # after the files, so that a closed pipe does not prevent them
    for path in files:
        print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main)
