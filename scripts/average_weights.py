"""Average the weights of finished jobs without training: WiSE-FT of one job, or a model soup of several.

python scripts/average_weights.py wise outputs/runs/a --points 21
python scripts/average_weights.py soup outputs/sweeps/demo --greedy --out soups/demo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _root  # noqa: F401
import numpy as np

from src.errors import UserError, run_script


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Averages of finished weights, evaluated on both tasks.")
    commands = parser.add_subparsers(dest="command", required=True)
    wise = commands.add_parser("wise", help="WiSE-FT: from a job's pre-trained weights to its fine-tuned ones")
    wise.add_argument("job", type=Path, metavar="JOB", help="a completed job's folder")
    wise.add_argument("--points", type=int, default=11, help="both ends included (default: %(default)s)")
    soup = commands.add_parser("soup", help="the mean of several fine-tunings of one pre-training")
    soup.add_argument("jobs", nargs="+", type=Path, metavar="SWEEP_OR_JOB", help="folders of sweeps or of jobs")
    soup.add_argument("--greedy", action="store_true", help="add members only while validation gets no worse")
    for command in (wise, soup):
        command.add_argument("--out", type=Path, help="folder for table, picture and weights (default: in the first)")
        command.add_argument("--recompute", action="store_true", help="estimate batch statistics on training rows")
    return parser.parse_args()


def main() -> None:
    """Average, print and write."""
    arguments = read_arguments()
    name, out = arguments.command, arguments.out
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out is '{out}', which is no folder; allowed: a folder, made if missing")
    if name == "wise" and arguments.points < 2:
        raise UserError(f"--points is {arguments.points}; allowed: a whole number >= 2")
    from src.analysis.plots import draw_averages
    from src.checkpoints.tensor_files import write_tensors
    from src.finished.average_jobs import select_jobs, soup, wise_ft, with_statistics
    from src.training.compiled import prepare_jax

    prepare_jax()
    if name == "wise":
        average, notes, first = wise_ft(arguments.job, arguments.points), [], arguments.job
    else:
        jobs, notes = select_jobs(arguments.jobs)
        average, first = soup(jobs, arguments.greedy), arguments.jobs[0]
    average = with_statistics(average, arguments.recompute)
    print("\n".join([*notes, *average.notes]))
    marks = {"member": "in the soup", "chosen": "<- best by validation"}
    marked = {key: np.where(average.table[key], mark, "") for key, mark in marks.items() if key in average.table}
    print(average.table.assign(**marked).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    out = out or first / name
    out.mkdir(parents=True, exist_ok=True)
    average.table.to_csv(out / f"{name}.csv", index=False)
    draw_averages(average.table, out / f"{name}.png", average.member.job.data.new_head)
    metadata = {key: json.dumps(value) for key, value in average.metadata.items()}
    write_tensors(out / f"{name}.safetensors", average.params, metadata)
    print(f"wrote {name}.csv, .png and .safetensors to {out}")


if __name__ == "__main__":
    run_script(main)
