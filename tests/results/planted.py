"""Sweeps with a planted answer: every combination of a grid as a job's folder, its numbers from a function."""

import itertools
import math
from pathlib import Path

import numpy as np

from src.results.export import history_table, jobs_table
from src.results.records import load_jobs
from tests.fabricate import write_job

RATES = (0.001, 0.01, 0.1)
STATUS = {"failed": "ValueError: planted", "unfinished": None}


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


def seed_noise(seeds, scale):
    """One shift a seed, of mean 0 over the seeds: the same for all arms, as an easy initialisation is."""
    noise = np.random.default_rng(5).normal(0, scale, seeds)
    return noise - noise.mean() if seeds > 1 else noise


def plant(
    folder: Path,
    grid,
    score,
    seeds: int = 5,
    rates: tuple = RATES,
    best=0.01,
    own=0.0,
    shared=0.02,
    curve=None,
    status=None,
):
    """Write a job for each combination.

    ``score(**condition)`` is the test accuracy at the rate ``best``; other rates lose 0.05 a decade. ``shared`` is the
    spread over seeds that all arms have in common, ``own`` the one that they have not. ``curve(condition, seed)`` gives
    logged rows, ``status(condition, rate, seed)`` how a job ended (default: completed).
    """
    shifts = seed_noise(seeds, shared)
    conditions = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for number, (condition, rate, seed) in enumerate(itertools.product(conditions, rates, range(seeds))):
        noise = np.random.default_rng([number, 7]).normal(0, own) if own else 0.0
        accuracy = score(**{key.split(".")[-1]: value for key, value in condition.items()})
        accuracy += shifts[seed] + noise - 0.05 * abs(math.log10(rate / best))
        metrics = {"val_loss": 1 - accuracy, "test_loss": 1.1 - accuracy, "test_accuracy": accuracy}
        config = nested({"seed": seed, "lr_fine": rate, "report": None, "name": "planted"} | condition)
        ended = status(condition, rate, seed) if status else "completed"
        extra = {"objective": 1 - accuracy, "metrics": metrics}
        if "rank" in str(condition):
            extra["parameters"] = {"trainable": 100 * condition["strategy.rank"], "total": 5000}
        if ended == "diverged":
            extra = {"objective": math.inf, "metrics": dict.fromkeys(metrics, math.nan)}
        elif ended != "completed":
            extra = {"objective": None, "error": STATUS[ended]}
        write_job(
            folder / f"{number:04d}",
            config,
            curve(condition, rate, seed) if curve else None,
            status=None if ended == "unfinished" else ended,
            **extra,
        )
    return folder


def tables_of(folder: Path):
    """Return what a study is handed."""
    jobs = load_jobs(folder)
    return jobs_table(jobs), history_table(jobs)
