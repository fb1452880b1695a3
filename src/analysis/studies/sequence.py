"""``report=sequence``: how much of earlier tasks is forgotten while learning one task after another?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...errors import UserError
from ..comparison import Arm
from ..factors import compare_factors, varying_factors
from ..formatting import markdown_table, show_difference, show_interval
from ..plots import draw_means, picture, style_of
from ..reports import Report
from ..statistics import mean_interval, paired_difference

PICTURE = "sequence.png"
AVERAGE = "average_accuracy"
COLUMNS = {
    AVERAGE: "average accuracy",
    "forgetting": "forgetting",
    "learning_accuracy": "accuracy when learned",
    "backward_transfer": "backward transfer",
}
LEGEND = (
    "The arms are in the order of their mean validation loss over all tasks at the end. ± is the 95 % Student-t "
    "interval over seeds; differences are paired by seed, and \\* marks an interval that excludes 0."
)


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare strategies, or retention methods, over a sequence of tasks."""
    if any(name not in table for name in COLUMNS):
        raise UserError("report=sequence needs jobs of recipe=sequence")
    table = table.dropna(subset=list(COLUMNS))
    found = compare_factors(table, varying_factors(table, "retention"))
    best = found.arms[0]
    tasks = draw(found.arms, folder)
    gaps = {arm.label: paired_difference(arm.by_seed(AVERAGE), best.by_seed(AVERAGE)) for arm in found.arms[1:]}
    columns = {"arm": lambda arm: arm.label, "chosen": lambda arm: arm.choice}
    columns |= {label: lambda arm, key=key: show_interval(arm.mean_of(key)) for key, label in COLUMNS.items()}
    columns |= {f"average minus {best.label}'s": lambda arm: show_difference(gaps.get(arm.label), "reference")}
    return Report(
        title="How much of earlier tasks is forgotten while learning one task after another?",
        conclusion=conclude(found.arms, tasks),
        body=[markdown_table(columns, found.arms), LEGEND, *([found.how] if found.spec.tune else [])],
        pictures={PICTURE: "Accuracy after each task"},
        notes=found.notes,
    )


def accuracy_matrix(job: Path) -> Float[np.ndarray, "T T"]:
    """Return the accuracy matrix of a job: row i holds the test accuracies on every task after training task i."""
    try:
        return np.array(json.loads((job / "summary.json").read_text(encoding="utf-8"))["accuracy_matrix"], float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{job}' has no accuracy matrix in its summary.json") from error


def draw(arms: Sequence[Arm], folder: Path) -> int:
    """Draw the mean accuracy on all tasks so far and on the first task after each task; return how many there are."""
    steps: list[int] = []
    with picture(folder / PICTURE, "Lines: means over seeds. Bands: 95 % intervals.", 4.0, panels=2) as axes:
        for place, arm in enumerate(arms):
            own = [accuracy_matrix(folder / str(job)) for job in arm.jobs["job"]]
            steps = list(range(1, len(own[0]) + 1))
            so_far = [mean_interval([float(r[i - 1, :i].mean()) for r in own]) for i in steps]
            first = [mean_interval([float(r[i - 1, 0]) for r in own]) for i in steps]
            for ax, values in zip(axes, (so_far, first), strict=True):
                draw_means(ax, steps, values, arm.label, style_of(place))
        for ax, what in zip(axes, ("mean test accuracy on the tasks so far", "test accuracy on task 1"), strict=True):
            ax.set(xlabel="tasks learned", ylabel=what)
            ax.set_xticks(steps)
    return len(steps)


def conclude(arms: Sequence[Arm], tasks: int) -> str:
    """Return the test results of the arm that validation ranks first; ``arms`` come in that order."""
    best, *others = arms
    text = (
        f"After {tasks} tasks, {best.label} has the lowest validation loss; its average test accuracy is "
        f"{show_interval(best.mean_of(AVERAGE))} and its forgetting {show_interval(best.mean_of('forgetting'))}"
    )
    found: dict[str, list[str]] = {"higher than that of": [], "lower than that of": [], "undecided against": []}
    for arm in others:
        gap = paired_difference(best.by_seed(AVERAGE), arm.by_seed(AVERAGE))
        word = (
            ("higher than that of" if gap.mean > 0 else "lower than that of")
            if gap.excludes_zero
            else "undecided against"
        )
        found[word].append(f"{arm.label} ({show_interval(gap, sign=True)})")
    parts = [f"{word} {', '.join(names)}" for word, names in found.items() if names]
    return f"{text}; the accuracy is {'; '.join(parts)}." if parts else f"{text}."
