"""What can be made of finished jobs without training: a path from pre-trained to fine-tuned weights, or a soup of jobs.

python scripts/average_weights.py wise outputs/runs/a --points 21
python scripts/average_weights.py soup outputs/sweeps/demo --greedy --out soups/demo
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
import pandas as pd

from src.errors import UserError, listed, run_script
from src.tracking.records import job_folders, natural_key

PRE_TRAINED, FINE_TUNED, UNIFORM, GREEDY = "pre-trained", "fine-tuned", "uniform soup", "greedy soup"


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Means of finished weights, measured on both tasks.")
    commands = parser.add_subparsers(dest="command", required=True)
    wise = commands.add_parser("wise", help="WiSE-FT: from a job's pre-trained weights to its fine-tuned ones")
    wise.add_argument("job", type=Path, metavar="JOB", help="a completed job's folder")
    wise.add_argument("--points", type=int, default=11, help="of the path, both ends included (default: %(default)s)")
    soup = commands.add_parser("soup", help="the mean of several fine-tunings of one pre-training")
    soup.add_argument("jobs", nargs="+", type=Path, metavar="SWEEP_OR_JOB", help="folders of sweeps or of jobs")
    soup.add_argument("--greedy", action="store_true", help="add members only while validation gets no worse")
    for command in (wise, soup):
        command.add_argument("--out", type=Path, help="folder for table, picture and weights (default: in the first)")
        command.add_argument(
            "--recompute", action="store_true", help="estimate batch statistics anew, on training rows"
        )
    return parser.parse_args()


def wise(arguments: argparse.Namespace) -> None:
    """Measure a path, and keep its best point."""
    if arguments.points < 2:
        raise UserError(f"--points is {arguments.points}; allowed: a whole number >= 2")
    from src.finished.weights import evaluate_path, find_job, interpolate, read_tuned, shared
    from src.models.base import same_bits

    (tuned,) = read_tuned([find_job(arguments.job)])
    line, tasks = tuned.line(np.linspace(0.0, 1.0, arguments.points)), tuned.tasks()
    table = evaluate_path(line, tasks)
    only_tuned = sorted({*tuned.params} - {*tuned.pretrained} | {*line.kept})
    if only_tuned:
        print(f"as fine-tuned at every alpha: {listed(only_tuned)}")
    if all(same_bits(leaf, tuned.params[path]) for path, leaf in shared(*line[:2], line.kept).items()):
        print("fine-tuning moved nothing else, so every point is the fine-tuned model")
    table["chosen"] = chosen(table)
    alpha = float(table["alpha"].to_numpy()[table["chosen"].to_numpy()][0])
    params = interpolate(tuned.pretrained, tuned.params, alpha, line.kept)
    print(f"taken: alpha {alpha:g}")
    metadata = {"job": str(arguments.job), "alpha": alpha}
    finish(arguments, table, params, tuned, metadata, arguments.out or arguments.job / "wise")


def soup(arguments: argparse.Namespace) -> None:
    """Average jobs; measure members and soups; keep the soup that was asked for."""
    from src.finished.weights import evaluate_path, greedy_soup, read_tuned, stack, uniform_soup, validation_loss

    tuned = read_tuned(members(arguments.jobs))
    tasks, folders = tuned[0].tasks(), [one.job.folder for one in tuned]
    weights = [one.params for one in tuned]
    name, params, kept, soups = UNIFORM, uniform_soup(weights), tuple(range(len(weights))), {}
    soups[UNIFORM] = params
    if arguments.greedy:
        name, (params, kept, *_) = GREEDY, greedy_soup(weights, validation_loss(tasks[0]))
        soups[GREEDY] = params
    table = evaluate_path(stack([*weights, *soups.values()]), tasks)
    table.insert(0, "weights", [*names(folders), *soups])
    table.insert(1, "member", [place in kept for place in range(len(table))])
    table["chosen"] = chosen(table, ties=-1)  # a soup that is as good as its best member comes after it
    print(f"taken: {name}, {len(kept)} of {len(weights)} jobs")
    best = str(table["weights"].to_numpy()[table["chosen"].to_numpy()][0])
    if best != name:
        print(f"better by validation than the {name}: {best}")
    metadata = {"soup": name, "members": [str(folders[i]) for i in kept]}
    finish(arguments, table, params, tuned[0], metadata, arguments.out or arguments.jobs[0] / "soup")


def members(paths: Sequence[Path]) -> Sequence[Any]:
    """Return the jobs that the command line names; of sweeps, those completed ones that share a pre-training.

    Where a sweep has several pre-trainings, that of most jobs is taken; among equals, that of the best job.
    """
    from src.finished.weights import find_job

    folders = list(expanded(paths))
    if folders and all(folder in paths for folder in folders):
        return [find_job(folder) for folder in folders]
    kins: dict[Any, list[Any]] = {}
    refused = []
    for folder in folders:
        try:
            job = find_job(folder)
            kins.setdefault(job.kin, []).append(job)
        except UserError as error:
            refused.append(str(error))
    if not kins:
        raise UserError(f"there is no job to average in {listed(map(str, paths))}: {listed(refused, 1) or 'no jobs'}")
    best = {kin: min(job.metrics.get("val_loss", np.inf) for job in jobs) for kin, jobs in kins.items()}
    first = max(kins, key=lambda kin: (len(kins[kin]), -best[kin]))
    others = sum(map(len, kins.values())) - len(kins[first])
    print(
        f"{len(kins[first])} jobs of one pre-training; left out: {others} of others, {len(refused)} that cannot be used"
    )
    if refused:
        print(f"cannot be used: {listed(refused, 3)}")
    return kins[first]


def expanded(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the jobs' folders in and below these, each once, in the order of their names."""
    seen = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder '{path}'; allowed: folders of sweeps or of jobs")
        for folder in sorted(job_folders(path), key=lambda folder: natural_key(str(folder))):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def names(folders: Sequence[Path]) -> list[str]:
    """Name jobs by their folders, without what is the same in all of them."""
    above = {folder.resolve().parent for folder in folders}
    return [folder.resolve().name if len(above) == 1 else str(folder) for folder in folders]


def chosen(table: pd.DataFrame, ties: int = 0) -> list[bool]:
    """Mark the row with the lowest validation loss; among equal ones the first, or with ``ties=-1`` the last.

    Raises:
        UserError: no row has a finite one.
    """
    losses = table["val_loss"].to_numpy(dtype=float)
    if not np.isfinite(losses).any():
        raise UserError("no point has a finite validation loss; allowed: at least one")
    best = np.flatnonzero(losses == np.nanmin(losses))[ties]
    return [place == best for place in range(len(losses))]


def finish(
    arguments: argparse.Namespace,
    table: pd.DataFrame,
    params: Mapping[str, Any],
    tuned: Any,
    metadata: Mapping[str, Any],
    out: Path,
) -> None:
    """Print and write the table, draw the picture, write the weights."""
    from safetensors.numpy import save

    from src.files import atomic_write

    words = {"member": "in the soup", "chosen": "<- best by validation"}
    shown = table.assign(**{name: np.where(table[name], text, "") for name, text in words.items() if name in table})
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    params = with_statistics(params, tuned, arguments)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / f"{arguments.command}.csv", index=False)
    draw(table, out / f"{arguments.command}.png", tuned.job.data.new_head)
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    with atomic_write(out / f"{arguments.command}.safetensors") as file:
        file.write(save({path: np.asarray(leaf, order="C") for path, leaf in params.items()}, texts))
    print(f"wrote {arguments.command}.csv, .png and .safetensors to {out}")


def with_statistics(params: Mapping[str, Any], tuned: Any, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the weights with batch statistics of the target's training rows where that is asked for; say so."""
    from src.finished.weights import recompute_statistics
    from src.models.base import is_statistic

    if not any(map(is_statistic, params)):
        return params
    if not arguments.recompute:
        print("batch statistics are means too, not those of the mean weights; --recompute estimates them anew")
        return params
    params = recompute_statistics(tuned.job.stage, params, tuned.job.data.target["train"].x)
    print(f"with batch statistics of the training rows: {measured(params, tuned.tasks())}")
    return params


def measured(params: Mapping[str, Any], tasks: Sequence[Any]) -> str:
    """Say the metrics of one set of weights."""
    from src.finished.weights import evaluate_path, stack

    row = evaluate_path(stack([params]), tasks).iloc[0]
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())


# --- the picture ---------------------------------------------------------------------------------------------------


def draw(table: pd.DataFrame, path: Path, new_head: bool) -> None:
    """Draw the target's test rows against the source's, a marker a row of the table."""
    from src.analysis.formatting import in_words
    from src.analysis.plots import COLOURS, legend_below, picture

    metric = "accuracy" if "test_accuracy" in table else "loss"
    x, y = table[f"source_test_{metric}"].to_numpy(float), table[f"test_{metric}"].to_numpy(float)
    best = int(table["chosen"].to_numpy().argmax())
    where = f" (alpha {table['alpha'].to_numpy()[best]:g})" if "alpha" in table else ""
    with picture(path, f"Test rows of both tasks. Ring: the lowest validation loss{where}.", height=4.8) as (ax,):
        if where:
            ax.plot(x, y, "o-", color=COLOURS[0], label="weights between")
            start = PRE_TRAINED + (" below a fine-tuned head" if new_head else "")
            # Named in the legend: beside the points, names would lie on the path, whichever way it goes.
            ax.plot(x[0], y[0], "s", ms=9, color=COLOURS[1], label=start)
            ax.plot(x[-1], y[-1], "D", ms=9, color=COLOURS[2], label=FINE_TUNED)
        else:
            draw_members(ax, table, x, y)
        ax.plot(x[best], y[best], "o", ms=17, mfc="none", mec=COLOURS[-1], mew=1.8)
        ax.margins(0.15)
        better = "higher" if metric == "accuracy" else "lower"
        ax.set_xlabel(f"source task: {in_words(f'test_{metric}')} ({better} is better)")
        ax.set_ylabel(f"target task: {in_words(f'test_{metric}')}\n({better} is better)")
        legend_below([ax])


def draw_members(ax: Any, table: pd.DataFrame, x: np.ndarray, y: np.ndarray) -> None:
    """Draw single jobs, hollow where the greedy soup left them out, and the soups."""
    from src.analysis.plots import COLOURS

    weights = table["weights"].to_numpy()
    single = ~np.isin(weights, (UNIFORM, GREEDY))
    inside = table["member"].to_numpy()
    ax.plot(x[single & inside], y[single & inside], "o", color=COLOURS[0], label="job in the soup")
    if (single & ~inside).any():
        ax.plot(x[single & ~inside], y[single & ~inside], "o", mfc="white", color=COLOURS[0], label="job left out")
    for name, marker, colour in ((UNIFORM, "^", COLOURS[2]), (GREEDY, "D", COLOURS[1])):
        if (weights == name).any():
            ax.plot(x[weights == name], y[weights == name], marker, ms=9, color=colour, label=name, linestyle="none")


def main() -> None:
    """Read, average, measure, write."""
    arguments = read_arguments()
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out is '{arguments.out}', which is no folder; allowed: a folder, made if missing")
    from src.training.compiled import prepare_jax

    prepare_jax()
    {"wise": wise, "soup": soup}[arguments.command](arguments)


if __name__ == "__main__":
    run_script(main)
