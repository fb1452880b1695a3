"""``report=sequence``: how much of earlier tasks is forgotten while learning one task after another?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    """Compare strategies, or retention methods, over a sequence of tasks.

    Raises:
        UserError: the jobs did not run ``recipe=sequence``.
    """
    if any(name not in table for name in COLUMNS):
        raise UserError("report=sequence needs jobs of recipe=sequence")
    table = table.dropna(subset=list(COLUMNS))
    found = compare_factors(table, varying_factors(table, "retention"))
    best = found.arms[0]
    matrices = {arm.label: [accuracy_matrix(folder / str(job)) for job in arm.jobs["job"]] for arm in found.arms}
    draw(matrices, folder / PICTURE)
    gaps = {arm.label: paired_difference(arm.by_seed(AVERAGE), best.by_seed(AVERAGE)) for arm in found.arms[1:]}
    columns = {"arm": lambda arm: arm.label, "chosen": lambda arm: arm.choice}
    columns |= {label: lambda arm, key=key: show_interval(arm.mean_of(key)) for key, label in COLUMNS.items()}
    columns |= {f"average minus {best.label}'s": lambda arm: show_difference(gaps.get(arm.label), "reference")}
    return Report(
        title="How much of earlier tasks is forgotten while learning one task after another?",
        conclusion=conclude(found.arms, len(next(iter(matrices.values()))[0])),
        body=[markdown_table(columns, found.arms), LEGEND, *([found.how] if found.spec.tune else [])],
        pictures={PICTURE: "Accuracy after each task"},
        notes=found.notes,
    )


def accuracy_matrix(job: Path) -> Float[np.ndarray, "T T"]:
    """Return the accuracy matrix of a job: row i holds the test accuracies on every task after training task i.

    Raises:
        UserError: the record has no such matrix.
    """
    try:
        return np.array(json.loads((job / "summary.json").read_text(encoding="utf-8"))["accuracy_matrix"], float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{job}' has no accuracy matrix in its summary.json") from error


def draw(matrices: Mapping[str, Sequence[Float[np.ndarray, "T T"]]], path: Path) -> None:
    """Draw, after each task, the mean accuracy on all tasks so far and the accuracy on the first task."""
    with picture(path, "Lines: means over seeds. Bands: 95 % intervals.", 4.0, panels=2) as axes:
        for place, (name, own) in enumerate(matrices.items()):
            steps = range(1, len(own[0]) + 1)
            so_far = [mean_interval([float(r[i - 1, :i].mean()) for r in own]) for i in steps]
            first = [mean_interval([float(r[i - 1, 0]) for r in own]) for i in steps]
            for ax, values in zip(axes, (so_far, first), strict=True):
                draw_means(ax, list(steps), values, name, style_of(place))
        for ax, what in zip(axes, ("mean test accuracy on the tasks so far", "test accuracy on task 1"), strict=True):
            ax.set(xlabel="tasks learned", ylabel=what)
            ax.set_xticks(range(1, 1 + max(len(own[0]) for own in matrices.values())))
        axes[0].legend()


def conclude(arms: Sequence[Arm], tasks: int) -> str:
    """Return the test results of the arm that validation ranks first; ``arms`` come in that order."""
    best, *others = arms
    text = (
        f"After {tasks} tasks, {best.label} has the lowest validation loss; its average test accuracy is "
        f"{show_interval(best.mean_of(AVERAGE))} and its forgetting {show_interval(best.mean_of('forgetting'))}"
    )
    gaps = {arm.label: paired_difference(best.by_seed(AVERAGE), arm.by_seed(AVERAGE)) for arm in others}
    parts = []
    for word, holds in (
        ("higher than that of", lambda gap: gap.excludes_zero and gap.mean > 0),
        ("lower than that of", lambda gap: gap.excludes_zero and gap.mean < 0),
        ("undecided against", lambda gap: not gap.excludes_zero),
    ):
        names = [f"{name} ({show_interval(gap, sign=True)})" for name, gap in gaps.items() if holds(gap)]
        parts += [f"{word} {', '.join(names)}"] if names else []
    return f"{text}; the accuracy is {'; '.join(parts)}." if parts else f"{text}."
