"""WiSE-FT and model soups of finished jobs: which jobs are averaged, and the metrics of what results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..errors import UserError, listed
from ..models.base import is_statistic, same_bits
from ..tracking.record_reader import job_folders, natural_key
from ..types import Params
from .averaging import greedy_soup, interpolate, shared, stack, uniform_soup
from .evaluation import evaluate_weights, recompute_statistics, validation_loss
from .finetuned import FinetunedWeights, compatibility_key, eval_stage, read_finetuned, read_finetuned_job
from .jobs import FinishedJob

UNIFORM, GREEDY = "uniform soup", "greedy soup"


class Average(NamedTuple):
    """Averaged weights, and how they compare with others."""

    params: Params
    metadata: dict[str, Any]  # how they were made, as JSON can hold it
    table: pd.DataFrame  # a row a point or job; `chosen` marks the lowest validation loss
    notes: list[str]  # sentences for the terminal
    member: FinetunedWeights  # the first of those averaged


def wise_ft(folder: Path, points: int) -> Average:
    """Evaluate points from a job's pre-trained to its fine-tuned weights; return the best by validation.

    Args:
        folder: a completed job's.
        points: both ends included.

    Raises:
        UserError: the job's weights cannot be averaged, or no point has a finite validation loss.
    """
    (member,) = read_finetuned([read_finetuned_job(folder)])
    path = member.interpolation(np.linspace(0.0, 1.0, points))
    table = evaluate_weights(path, member.tasks())
    notes = []
    if kept := sorted({*member.params} - {*member.pretrained} | {*path.kept}):
        notes.append(f"fine-tuned at every alpha: {listed(kept)}")
    if all(same_bits(leaf, member.params[name]) for name, leaf in shared(path.a, path.b, path.kept).items()):
        notes.append("fine-tuning changed nothing else, so every point is the fine-tuned model")
    table["chosen"] = lowest_loss(table)
    alpha = float(table["alpha"].to_numpy()[table["chosen"].to_numpy()][0])
    notes.append(f"written: alpha {alpha:g}")
    params = interpolate(path.a, path.b, alpha, path.kept)
    return Average(params, {"job": str(folder), "alpha": alpha}, table, notes, member)


def soup(jobs: Sequence[FinishedJob], greedy: bool) -> Average:
    """Average jobs, and evaluate them beside the soups.

    Raises:
        UserError: the jobs do not share a pre-training, or none has a finite validation loss.
    """
    members = read_finetuned(jobs)
    tasks, weights = members[0].tasks(), [member.params for member in members]
    name, params, kept = UNIFORM, uniform_soup(weights), tuple(range(len(weights)))
    soups = {name: params}
    if greedy:
        name, (params, kept, *_) = GREEDY, greedy_soup(weights, validation_loss(tasks[0]))
        soups[name] = params
    table = evaluate_weights(stack([*weights, *soups.values()]), tasks)
    table.insert(0, "weights", [*job_names(jobs), *soups])
    table.insert(1, "member", [i in kept for i in range(len(table))])
    table["chosen"] = lowest_loss(table, last=True)  # a soup as good as its best member comes after it
    notes = [f"written: {name}, {len(kept)} of {len(weights)} jobs"]
    best = str(table["weights"].to_numpy()[table["chosen"].to_numpy()][0])
    if best != name:
        notes.append(f"better by validation than the {name}: {best}")
    metadata = {"soup": name, "members": [str(jobs[i].folder) for i in kept]}
    return Average(params, metadata, table, notes, members[0])


def lowest_loss(table: pd.DataFrame, last: bool = False) -> list[bool]:
    """Mark the row with the lowest validation loss; among equal ones the first, or the last.

    Raises:
        UserError: no row has a finite one.
    """
    losses = table["val_loss"].to_numpy(dtype=float)
    if not np.isfinite(losses).any():
        raise UserError("no point has a finite validation loss; allowed: at least one")
    best = np.flatnonzero(losses == np.nanmin(losses))[-1 if last else 0]
    return [row == best for row in range(len(losses))]


def with_statistics(average: Average, recompute: bool) -> Average:
    """Return the average with the batch statistics of the target's training rows, if it has any and they are wanted."""
    params, job = average.params, average.member.job
    if not any(map(is_statistic, params)):
        return average
    if not recompute:
        note = "batch statistics are averages too, not those of the averaged weights; --recompute estimates them"
        return average._replace(notes=[*average.notes, note])
    params = recompute_statistics(eval_stage(job), params, job.data.target["train"].x)
    metrics = evaluate_weights(stack([params]), average.member.tasks()).iloc[0]
    words = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return average._replace(
        params=params, notes=[*average.notes, f"with batch statistics of the training rows: {words}"]
    )


# --- the jobs of a soup ----------------------------------------------------------------------------------------------


def select_jobs(paths: Sequence[Path]) -> tuple[list[FinishedJob], list[str]]:
    """Return the jobs in these folders that share a pre-training, and notes on those that are left out.

    Named jobs are all taken. Of sweeps, the pre-training of most jobs is taken; among equals, that of the best job.

    Raises:
        UserError: a named job cannot be averaged, or there is none.
    """
    folders = list(_job_folders(paths))
    if folders and all(folder in paths for folder in folders):
        return [read_finetuned_job(folder) for folder in folders], []
    groups: dict[Any, list[FinishedJob]] = {}
    refused = []
    for folder in folders:
        try:
            job = read_finetuned_job(folder)
            groups.setdefault(compatibility_key(job), []).append(job)
        except UserError as error:
            refused.append(str(error))
    if not groups:
        raise UserError(f"there is no job to average in {listed(map(str, paths))}: {listed(refused, 1) or 'no jobs'}")

    def loss(jobs: list[FinishedJob]) -> float:
        return min(job.record.metrics.get("val_loss", np.inf) for job in jobs)

    jobs = max(groups.values(), key=lambda own: (len(own), -loss(own)))
    others = sum(map(len, groups.values())) - len(jobs)
    notes = [f"{len(jobs)} jobs of one pre-training; left out: {others} of others, {len(refused)} that cannot be used"]
    return jobs, notes + ([f"cannot be used: {listed(refused, 3)}"] if refused else [])


def _job_folders(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the jobs' folders in and below these, each once, in the order of their names."""
    seen = set()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder '{path}'; allowed: folders of sweeps or of jobs")
        for folder in sorted(job_folders(path), key=lambda folder: natural_key(str(folder))):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def job_names(jobs: Sequence[FinishedJob]) -> list[str]:
    """Return the names of jobs' folders; whole paths where they lie in different ones."""
    folders = [job.folder.resolve() for job in jobs]
    return [
        folder.name if len({f.parent for f in folders}) == 1 else str(job.folder)
        for folder, job in zip(folders, jobs, strict=True)
    ]
