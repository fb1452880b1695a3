"""Sweeps with a planted answer: a job's folder for every combination of a grid, with metrics from a function."""

import itertools
import math
from pathlib import Path

import numpy as np

from src.analysis.export import history_table, jobs_table
from src.tracking.record_reader import load_jobs
from tests.fabricate import write_job

RATES = (0.001, 0.01, 0.1)


def nested(values):
    """``{"data.train_rows": 5}`` as a configuration holds it; a plain ``strategy`` is a group's name."""
    config = {}
    for key, value in values.items():
        *above, last = (f"{key}.name" if key in ("strategy", "schedule", "data") else key).split(".")
        node = config
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return config


def plant(folder: Path, grid, score, seeds: int = 5, rates: tuple = (0.01,), own=0.0, curve=None, status=None):
    """Write a job for each combination; 0.01 is the best rate, others lose 0.05 a decade.

    ``score(**condition)`` is the mean test accuracy over seeds, to rounding: what the seeds add is 0 on average. All
    arms share a large part of that; ``own`` is the standard deviation of what each has for itself. ``curve(condition,
    rate, seed)`` gives logged rows, ``status(condition, rate, seed)`` how a job ended (default: completed).
    """
    spread = np.linspace(-1, 1, seeds) / max(np.linspace(-1, 1, seeds).std(ddof=min(1, seeds - 1)), 1e-9)
    conditions = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for number, (condition, rate) in enumerate(itertools.product(conditions, rates)):
        mean = score(**{key.split(".")[-1]: value for key, value in condition.items()})
        mean -= 0.05 * abs(math.log10(rate / 0.01))
        shuffled = np.random.default_rng([number, 3]).permutation(spread)
        for seed in range(seeds):
            accuracy = mean + (0.02 * spread[seed] + own * shuffled[seed] if seeds > 1 else 0.0)
            metrics = {"val_loss": 1 - accuracy, "test_loss": 1.1 - accuracy, "test_accuracy": accuracy}
            ended = status(condition, rate, seed) if status else "completed"
            extra = {"objective": 1 - accuracy, "metrics": metrics}
            if ended == "diverged":
                extra = {"objective": math.inf, "metrics": dict.fromkeys(metrics, math.nan)}
            elif ended != "completed":
                extra = {"objective": None, "error": "ValueError: planted"}
            write_job(
                folder / f"{number:03d}_{seed}",
                nested({"seed": seed, "lr_fine": rate, "report": None, "name": "planted"} | condition),
                curve(condition, rate, seed) if curve else None,
                status=None if ended == "unfinished" else ended,
                parameters={"trainable": 100 * condition.get("strategy.rank", 1), "total": 5000},
                **extra,
            )
    return folder


def tables_of(folder: Path):
    """Return the arguments of a study: the table of the jobs and their history."""
    jobs = load_jobs(folder)
    return jobs_table(jobs), history_table(jobs)


def first_table(markdown: str) -> dict[str, list[str]]:
    """Return the cells of the lines of the first table by their first cell."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), markdown.splitlines())
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: row[1:] for row in rows}
