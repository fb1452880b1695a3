"""``report=fisher_estimators``: which Fisher information EWC uses, and what that does to its strength.

Libraries compute different things under one name (``src/retention/fisher.py``), so a strength that one of them reports
means something else in another. Two questions: are the estimates alike but for a factor, and does EWC choose strengths
that are apart by that factor?
"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import UserError, listed
from ..conditions import by_both_tasks, choose, notes_of, results, tuning
from ..plots import look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import mean_interval
from ..study import Report

PICTURE = "fisher_estimators.png"
ESTIMATOR, STRENGTH, REFERENCE = "retention.fisher", "retention.strength", "exact"
BOTH = "mean of both tasks"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the estimates with the exact one, and the strengths that they lead to.

    Raises:
        UserError: the sweep has no jobs of EWC by the exact Fisher information and another one, at several strengths.
    """
    table = check(table)
    analysis = choose(table, ESTIMATOR)
    chosen = {str(name): arm for (name,), arm in results(analysis).items()}
    strengths = {name: float(arm.chosen[STRENGTH]) for name, arm in chosen.items() if arm.chosen}
    seeds = {int(seed): str(jobs["job"].iloc[0]) for seed, jobs in table.groupby("seed")}
    found = [agreement(folder / job, list(strengths)) for job in seeds.values()]
    shared = {name: {key: mean_interval([one[name][key] for one in found]) for key in COLUMNS} for name in strengths}
    # Not the mean: a confident model's drawn labels are nearly always its own, and then one row decides everything.
    sizes = {name: [one[name]["size"] for one in found] for name in strengths}
    median = {name: float(np.median(own)) for name, own in sizes.items()}
    curves = {name: curve(table[table[ESTIMATOR] == name]) for name in strengths}
    draw(curves, median, folder / PICTURE)
    reference = strengths[REFERENCE]
    columns = {
        "estimate": str,
        "size, of the exact one's": lambda name: (
            f"{median[name]:.3g} ({min(sizes[name]):.3g} to {max(sizes[name]):.3g})" if name != REFERENCE else "1"
        ),
        "rank correlation": lambda name: show_interval(shared[name]["rank"]) if name != REFERENCE else "1",
        "common in the top tenth": lambda name: show_interval(shared[name]["top"]),
        "chosen strength": lambda name: f"{strengths[name]:g}",
        "shift": lambda name: f"{strengths[name] / reference:g}x",
        "shift that the size predicts": lambda name: f"{1 / median[name]:.3g}x",
        "target": lambda name: show_interval(mean_interval(chosen[name].jobs["test_accuracy"])),
        "source after": lambda name: show_interval(mean_interval(chosen[name].jobs["source_after_accuracy"])),
    }
    order = [REFERENCE, *(name for name in strengths if name != REFERENCE)]
    return Report(
        title="Which Fisher information, and what strength goes with it?",
        conclusion=conclude(strengths, median, {name: shared[name]["rank"].mean for name in strengths}),
        body="\n\n".join([markdown_table(columns, order), LEGEND, tuning(analysis)]),
        pictures={PICTURE: "Both tasks against the strength, as given and times the size of the estimate"},
        notes=notes_of(analysis, table),
    )


LEGEND = (
    "Size: the sum over all weights divided by the exact one's, the median over seeds (lowest to highest). Rank "
    "correlation: Spearman's, over all weights. Top tenth: the share of the exact one's most important tenth that is "
    "in the other's, where chance gives 0.1. Validation chooses the strength by the mean accuracy on both tasks."
)
COLUMNS = ("size", "rank", "top")


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs, with what they are chosen by; refuse a sweep that does not ask the question."""
    needed = [ESTIMATOR, STRENGTH, "source_val_after_accuracy", "val_accuracy"]
    missing = [name for name in needed if name not in table or table[name].isna().all()]
    if missing:
        raise UserError(f"report=fisher_estimators needs jobs of EWC that have {listed(missing)}")
    names = sorted(set(table[ESTIMATOR].dropna()))
    if REFERENCE not in names or len(names) < 2 or table[STRENGTH].nunique() < 2:
        raise UserError(
            f"report=fisher_estimators needs {ESTIMATOR}={REFERENCE} and another one at several strengths; "
            f"this sweep has {listed(names)} at {table[STRENGTH].nunique()}"
        )
    tested = (table["source_after_accuracy"] + table["test_accuracy"]) / 2
    return by_both_tasks(table).assign(**{BOTH: tested})


def agreement(job: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Return how the estimates at one seed's pre-trained weights compare with the exact one."""
    from dataclasses import replace

    from ...finished.finetuned import pretraining_of, read_finetuned_job
    from ...recipe.run import source_task
    from ...retention.ewc import Ewc
    from ...retention.fisher import Estimator

    finished = read_finetuned_job(job)
    recipe = finished.plan.recipe
    method: Any = recipe.retention
    if not isinstance(method, Ewc):
        raise UserError(f"'{job}' is no job of EWC")
    task = source_task(recipe, finished.data, pretraining_of(finished).params)
    flat = {}
    for name in names:
        diagonal = replace(method, fisher=Estimator[name]).importance(task)
        flat[name] = np.concatenate([np.asarray(diagonal[path], np.float64).ravel() for path in sorted(diagonal)])
    return {name: compared(flat[REFERENCE], values) for name, values in flat.items()}


def compared(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the numbers of :data:`COLUMNS` for two diagonals of the same weights."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (exact, other)]  # equal values share a rank
    tenth = max(1, len(exact) // 10)
    top = [set(np.argsort(-values, kind="stable")[:tenth].tolist()) for values in (exact, other)]
    return {
        "size": float(other.sum() / exact.sum()),
        "rank": float(np.corrcoef(*ranks)[0, 1]),
        "top": len(top[0] & top[1]) / tenth,
    }


def curve(jobs: pd.DataFrame) -> dict[float, float]:
    """Return the mean test accuracy on both tasks by strength, 0 left out: the axis is logarithmic."""
    means = {float(strength): float(own[BOTH].mean()) for strength, own in jobs.groupby(STRENGTH)}
    return {strength: mean for strength, mean in means.items() if strength > 0}


def draw(curves: Mapping[str, Mapping[float, float]], sizes: Mapping[str, float], path: Path) -> None:
    """Draw the curves as swept, and moved by the size of their estimate: where a factor is all, they meet."""
    caption = "Mean test accuracy on both tasks over seeds; right: strengths times the size of the estimate."
    with picture(path, caption, 4.2, panels=2) as axes:
        for ax, moved in zip(axes, (False, True), strict=True):
            for place, (name, points) in enumerate(curves.items()):
                x = [strength * (sizes[name] if moved else 1.0) for strength in points]
                ax.plot(x, list(points.values()), label=name, **look_of(place))
            ax.set_xscale("log")
        axes[0].set_ylabel("test accuracy, mean of both tasks")
        axes[0].set_xlabel("strength")
        axes[1].set_xlabel("strength x size of the estimate")
        axes[0].legend()


def conclude(strengths: Mapping[str, float], sizes: Mapping[str, float], ranks: Mapping[str, float]) -> str:
    """Say in one sentence what the numbers carry."""
    others = [name for name in strengths if name != REFERENCE]
    far = max(others, key=lambda name: abs(np.log(sizes[name])))
    words = (
        f"The {far} estimate is {sizes[far]:.3g} times the exact one and chooses a strength "
        f"{strengths[far] / strengths[REFERENCE]:g} times as high (its size alone predicts {1 / sizes[far]:.3g})"
    )
    like = [name for name in others if ranks[name] > 0.95]
    order = f"{listed(like) if like else 'none of the others'} agrees with it (rank correlation above 0.95)"
    return f"{words}; in the order of the weights, {order}."
