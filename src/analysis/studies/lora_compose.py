"""``report=lora_compose``: can a blend of two adapters replace a third one trained on both tasks?

The adapters of one base are trained on rotated digits, on inverted digits, and on the union of both. Blends are
measured on the rows of the union.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...errors import UserError, listed
from ..factors import common_seeds, compare_factors
from ..formatting import count_of, markdown_table, show_difference, show_interval, show_mean
from ..plots import DOTS, IntervalRow, draw_rows, picture, style_of
from ..reports import Report
from ..statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    from ...finished.jobs import FinishedJob
    from ...types import Split

PICTURE = "lora_compose.png"
PARTS = ("rotated", "inverted")
UNION = "union"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FIXED = {"no adapter": (0.0, 0.0), "rotated only": (1.0, 0.0), "inverted only": (0.0, 1.0), "sum (1, 1)": (1.0, 1.0)}
SEARCHED, TRAINED = "blend, weights from validation", "one adapter trained on the union"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Blend the adapters of each seed and compare the blends with the adapter of the union."""
    tasks = (*PARTS, UNION)
    found = compare_factors(table, ["data.task"])
    arms = found.at()
    if missing := [task for task in tasks if task not in arms]:
        raise UserError(
            f"report=lora_compose needs jobs of data.task={','.join(missing)}; this sweep has {listed(arms)}"
        )
    seeds = common_seeds([arms[task] for task in tasks])
    if not seeds:
        raise UserError("report=lora_compose needs a seed at which all three adapters were trained")
    jobs = {task: arms[task].jobs.set_index("seed")["job"] for task in tasks}
    blends = {seed: blend_adapters({task: folder / str(own[seed]) for task, own in jobs.items()}) for seed in seeds}
    values = {name: {seed: blends[seed][0][name] for seed in seeds} for name in blends[seeds[0]][0]}
    rows = [IntervalRow(name, name, mean_interval(own.values()), list(own.values())) for name, own in values.items()]
    with picture(folder / PICTURE, DOTS, 3.8) as (ax,):
        draw_rows(ax, rows, dict.fromkeys(values, style_of(0)))
        ax.set_xlabel("test accuracy on the rows of both tasks")
    columns = {
        "adapters": str,
        "test accuracy": lambda name: show_mean(values[name].values()),
        "minus the union's": lambda name: (
            "reference" if name == TRAINED else show_difference(paired_difference(values[name], values[TRAINED]))
        ),
    }
    weights = "; ".join(f"seed {seed}: {a:g} and {b:g}" for seed, (_, (a, b)) in blends.items())
    return Report(
        title="Can a blend of two adapters replace a third one?",
        conclusion=conclude(values),
        body=[markdown_table(columns, list(values)), f"Weights from validation: {weights}.", found.how],
        pictures={PICTURE: "Blends of two adapters on the rows of both"},
        notes=found.notes,
    )


def blend_adapters(folders: Mapping[str, Path]) -> tuple[dict[str, float], tuple[float, float]]:
    """Return the test accuracy of every blend of one seed's adapters, and the weights chosen by validation loss."""
    import numpy as np

    from ...config.schema import build
    from ...finished.jobs import read_job
    from ...finished.weighted_adapters import weight_grid

    jobs = {task: read_job(folder) for task, folder in folders.items()}
    data = build("data", jobs[UNION].config.data).load()
    parts = [jobs[task] for task in PARTS]
    search = measure_blends(parts, data.target["val"], weight_grid(2, GRID))
    best = (float(search["weight_0"].iloc[0]), float(search["weight_1"].iloc[0]))
    points = {**FIXED, SEARCHED: best}
    on_test = measure_blends(parts, data.target["test"], np.array(list(points.values())))
    rows = on_test.set_index(["weight_0", "weight_1"])["accuracy"]  # sorted by loss, so found by their weights
    accuracy = {
        name: float(np.atleast_1d(rows.loc[np.float32(a), np.float32(b)])[0]) for name, (a, b) in points.items()
    }
    union = measure_blends([jobs[UNION]], data.target["test"], np.ones((1, 1)))
    return {**accuracy, TRAINED: float(union["accuracy"].iloc[0])}, best


def measure_blends(jobs: Sequence[FinishedJob], part: Split, points: Any) -> pd.DataFrame:
    """Return the metrics of weighted sums of the jobs' adapters, a row for each point."""
    from ...finished.weighted_adapters import search_weights
    from ...objectives.kinds import for_kind

    model, base = jobs[0].model, jobs[0].base
    kernel = model.groups()[-1][1].replace(".*", "kernel")  # of the head
    task = {"objective": for_kind("classification"), "outputs": base[kernel].shape[-1], "head": 0}
    return search_weights(model, base, [job.adapter for job in jobs], part, grid=points, **task)


def conclude(values: Mapping[str, Mapping[Any, float]]) -> str:
    """Return the conclusion in one sentence."""
    means = {name: mean_interval(own.values()).mean for name, own in values.items()}
    gap = paired_difference(values[SEARCHED], values[TRAINED])
    accuracies = (
        f"accuracy {means[SEARCHED]:.3f} for the blend, {means['rotated only']:.3f} and {means['inverted only']:.3f} "
        f"for the single adapters, {means[TRAINED]:.3f} for the adapter of the union"
    )
    verdict = "Undecided whether a blend or training on the union is better"
    if gap.excludes_zero:
        word = "worse" if gap.mean < 0 else "better"
        verdict = f"A blend is {word} than one adapter trained on the union by {show_interval(gap, sign=True)}"
    return f"{verdict} ({count_of(gap.n, 'seed')}): {accuracies}."
