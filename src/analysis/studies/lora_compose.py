"""``report=lora_compose``: can two adapters be blended instead of training a third?

Adapters of one base are trained on digits that were rotated, on digits that were inverted, and on the union of both.
Blends are tried on the union's rows, of which half are the one kind and half the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...errors import UserError, listed
from ..analysis import Arm
from ..conditions import choose, common_seeds, notes_of, results, tuning
from ..plots import draw_bars, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval, paired_difference
from ..study import Report

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
    """Blend the adapters of each seed and compare the blends with the adapter of the union.

    Raises:
        UserError: the sweep has not trained all three adapters at a common seed.
    """
    analysis = choose(table, "data.task")
    arms = {str(task): arm for (task,), arm in results(analysis).items()}
    missing = [task for task in (*PARTS, UNION) if task not in arms]
    if missing:
        raise UserError(
            f"report=lora_compose needs jobs of data.task={','.join(missing)}; this sweep has {listed(arms)}"
        )
    seeds = common_seeds([arms[task] for task in (*PARTS, UNION)])
    if not seeds:
        raise UserError("report=lora_compose needs a seed at which all three adapters were trained")
    found = {seed: blended({task: folder / job_of(arms[task], seed) for task in (*PARTS, UNION)}) for seed in seeds}
    values = {name: {seed: found[seed][0][name] for seed in seeds} for name in found[seeds[0]][0]}
    means = {name: mean_interval(list(own.values())) for name, own in values.items()}
    against = {name: paired_difference(own, values[TRAINED]) for name, own in values.items()}
    with picture(folder / PICTURE, "Bar: mean over seeds. Line: its 95 % interval. Dots: seeds.", 3.8) as axes:
        draw_bars(
            axes[0],
            {name: {"accuracy": mean} for name, mean in means.items()},
            {name: {"accuracy": list(own.values())} for name, own in values.items()},
        )
        axes[0].set_xlabel("test accuracy on digits of which half are rotated, half inverted")
    columns = {
        "adapters": str,
        "test accuracy": lambda name: show_interval(means[name]),
        "minus the union's": lambda name: (
            "reference"
            if name == TRAINED
            else show_interval(against[name], sign=True) + " *" * against[name].excludes_zero
        ),
    }
    weights = "; ".join(f"seed {seed}: {a:g} and {b:g}" for seed, (_, (a, b)) in found.items())
    return Report(
        title="Can two adapters be blended instead of training a third?",
        conclusion=conclude(means, against, len(seeds)),
        body="\n\n".join(
            [markdown_table(columns, list(means)), f"Weights from validation: {weights}.", tuning(analysis)]
        ),
        pictures={PICTURE: "Blends of two adapters on the rows of both"},
        notes=notes_of(analysis, table),
    )


def job_of(arm: Arm, seed: Any) -> str:
    """Return the folder of an arm's chosen job at a seed."""
    jobs: Any = arm.jobs[arm.jobs["seed"] == seed]
    for name, value in (arm.chosen or {}).items():
        jobs = jobs[jobs[name] == value]
    return str(jobs["job"].iloc[0])


def blended(folders: Mapping[str, Path]) -> tuple[dict[str, float], tuple[float, float]]:
    """Return the test accuracy of every blend of one seed's adapters, and the weights that validation chose."""
    import numpy as np

    from ...config.schema import build
    from ...finished.jobs import read_job
    from ...finished.weighted_adapters import weight_grid

    jobs = {task: read_job(folder) for task, folder in folders.items()}
    config = jobs[UNION].config
    data = build("data", config.data).load()
    parts = [jobs[task] for task in PARTS]
    search = measured(parts, data.target["val"], weight_grid(2, GRID))
    best = (float(search["weight_0"].iloc[0]), float(search["weight_1"].iloc[0]))
    points = {**FIXED, SEARCHED: best}
    on_test = measured(parts, data.target["test"], np.array(list(points.values())))
    rows = on_test.set_index(["weight_0", "weight_1"])["accuracy"]  # sorted by loss: found by their weights
    accuracy = {
        name: float(np.atleast_1d(rows.loc[np.float32(a), np.float32(b)])[0]) for name, (a, b) in points.items()
    }
    union = measured([jobs[UNION]], data.target["test"], np.ones((1, 1)))
    return {**accuracy, TRAINED: float(union["accuracy"].iloc[0])}, best


def measured(jobs: Sequence[FinishedJob], part: Split, points: Any) -> pd.DataFrame:
    """Return the metrics of weighted sums of jobs' adapters, a row a point."""
    from ...finished.weighted_adapters import search_weights
    from ...objectives.kinds import for_kind

    model = jobs[0].model
    outputs = jobs[0].base[f"{head_of(model)}"].shape[-1]
    adapters = [job.adapter for job in jobs]
    objective = for_kind("classification")
    return search_weights(
        model, jobs[0].base, adapters, part, objective=objective, outputs=outputs, grid=points, head=0
    )


def head_of(model: Any) -> str:
    """Return the path of the head's kernel."""
    return model.groups()[-1][1].replace(".*", "kernel")


def conclude(means: Mapping[str, Interval], against: Mapping[str, Interval], seeds: int) -> str:
    """Say in one sentence what the numbers carry."""
    blend, union = means[SEARCHED], means[TRAINED]
    gap = against[SEARCHED]
    best_part = max(means["rotated only"].mean, means["inverted only"].mean)
    gain = f"the blend reaches {blend.mean:.3f}, its better half alone {best_part:.3f}"
    if seeds < 2 or not gap.excludes_zero:
        which = "Undecided whether blending or training on the union is better"
    else:
        word = "worse" if gap.mean < 0 else "better"
        which = f"Blending is {word} than one adapter trained on the union by {show_interval(gap, sign=True)}"
    return f"{which} ({seeds} seeds): {gain}, the union's adapter {union.mean:.3f}."
