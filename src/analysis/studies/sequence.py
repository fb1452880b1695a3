"""``report=sequence``: what is left of earlier tasks after learning one after the other?"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...errors import UserError
from ..conditions import choose, notes_of, rates, results, tuning, ways
from ..plots import draw_means, look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval
from ..study import Report

PICTURE = "sequence.png"
COLUMNS = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "learning_accuracy": "accuracy when learned",
    "backward_transfer": "backward transfer",
}


LEGEND = "± is the 95 % Student-t interval over seeds."


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare strategies, or methods of retention, over a sequence of tasks.

    Raises:
        UserError: the jobs learned no sequence.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError("report=sequence needs jobs of recipe=sequence")
    table = table.dropna(subset=list(COLUMNS))
    analysis = choose(table, *ways(table, "retention"))
    arms = {" ".join(map(str, key)): arm for key, arm in results(analysis).items()}
    order = sorted(arms, key=lambda name: -arms[name].jobs["average_accuracy"].mean())
    numbers = {name: {key: mean_interval(arms[name].jobs[key]) for key in COLUMNS} for name in order}
    matrices = {name: [matrix(folder / str(job)) for job in arms[name].jobs["job"]] for name in order}
    draw(matrices, folder / PICTURE)
    columns = {"arm": str, "chosen": lambda name: rates(arms[name])}
    columns |= {label: lambda name, key=key: show_interval(numbers[name][key]) for key, label in COLUMNS.items()}
    return Report(
        title="What is left of earlier tasks after learning one after the other?",
        conclusion=conclude(numbers, len(next(iter(matrices.values()))[0])),
        body="\n\n".join([markdown_table(columns, order), tuning(analysis) if analysis.question.tune else LEGEND]),
        pictures={PICTURE: "Accuracy after each task"},
        notes=notes_of(analysis, table),
    )


def matrix(job: Path) -> Float[np.ndarray, "T T"]:
    """Return a job's accuracy matrix: in row i, after training task i, the test accuracy on every task.

    Raises:
        UserError: its record has none.
    """
    try:
        return np.array(json.loads((job / "summary.json").read_text(encoding="utf-8"))["accuracy_matrix"], float)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{job}' has no accuracy matrix in its summary.json") from error


def draw(matrices: Mapping[str, Sequence[Float[np.ndarray, "T T"]]], path: Path) -> None:
    """Draw, after each task, the mean accuracy on all tasks so far, and the accuracy on the first one."""
    with picture(path, "Lines: means over seeds. Bands: 95 % intervals.", 4.0, panels=2) as axes:
        for place, (name, own) in enumerate(matrices.items()):
            steps = range(1, len(own[0]) + 1)
            so_far = [mean_interval([float(r[i - 1, :i].mean()) for r in own]) for i in steps]
            first = [mean_interval([float(r[i - 1, 0]) for r in own]) for i in steps]
            for ax, values in zip(axes, (so_far, first), strict=True):
                draw_means(ax, list(steps), values, name, look_of(place))
        for ax, what in zip(axes, ("mean test accuracy on the tasks so far", "test accuracy on task 1"), strict=True):
            ax.set_xlabel("tasks learned")
            ax.set_ylabel(what)
            ax.set_xticks(range(1, 1 + max(len(own[0]) for own in matrices.values())))
        axes[0].legend()


def conclude(numbers: Mapping[str, Mapping[str, Interval]], tasks: int) -> str:
    """Say in one sentence what the numbers carry."""
    best, *others = numbers
    found = numbers[best]["average_accuracy"]
    words = f"After {tasks} tasks {best} has the highest average accuracy ({show_interval(found)})"
    rival = next((name for name in others if numbers[name]["average_accuracy"].high > found.low), None)
    if rival is not None:
        words += f", undecided against {rival} ({show_interval(numbers[rival]['average_accuracy'])})"
    least = min(numbers, key=lambda name: numbers[name]["forgetting"].mean)
    return f"{words}; {least} forgets least ({show_interval(numbers[least]['forgetting'])})."
