"""``report=fisher_estimators``: which estimate of the Fisher information does EWC use, and which strength suits it?

Libraries compute different estimates under one name (``src/retention/fisher.py``), so a strength reported for one
estimate means something else for another. The report asks whether the estimates are equal up to a factor, and whether
validation chooses strengths that differ by that factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ...errors import UserError, listed
from ..factors import compare_factors, select_by_both_tasks
from ..formatting import markdown_table, show_interval
from ..plots import picture, style_of
from ..reports import Report
from ..statistics import mean_interval

PICTURE = "fisher_estimators.png"
ESTIMATOR, STRENGTH, REFERENCE = "retention.fisher", "retention.strength", "exact"
LEGEND = (
    "Size: the sum over all weights divided by that of the exact estimate; the median over seeds (lowest to highest). "
    "Rank correlation: Spearman's, over all weights. Top tenth: the share of the exact estimate's largest tenth that "
    "is also in the other's, 0.1 by chance. Validation chooses the strength by the mean accuracy of both tasks."
)


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the estimates with the exact one, and the strengths that validation chooses for them."""
    check(table)
    found = compare_factors(select_by_both_tasks(table), [ESTIMATOR])
    arms = found.at()
    strengths = {name: float(arm.chosen[STRENGTH]) for name, arm in arms.items() if arm.chosen}
    jobs = table.groupby("seed")["job"].first()
    agreements = [agreement(folder / str(job), list(strengths)) for job in jobs]
    ranks, tops = ({name: mean_interval(one[name][key] for one in agreements) for name in strengths}
                   for key in ("rank", "top"))  # fmt: skip
    # The median, because a few improbable draws can dominate the mean of the sampled estimate.
    sizes = {name: [one[name]["size"] for one in agreements] for name in strengths}
    median = {name: float(np.median(own)) for name, own in sizes.items()}
    draw(table, median, folder / PICTURE)
    columns = {
        "estimate": str,
        "size, relative to exact": lambda name: (
            f"{median[name]:.3g} ({min(sizes[name]):.3g} to {max(sizes[name]):.3g})" if name != REFERENCE else "1"
        ),
        "rank correlation": lambda name: show_interval(ranks[name]) if name != REFERENCE else "1",
        "shared in the top tenth": lambda name: show_interval(tops[name]),
        "chosen strength": lambda name: f"{strengths[name]:g}",
        "ratio to exact": lambda name: f"{strengths[name] / strengths[REFERENCE]:g}x",
        "ratio predicted by the size": lambda name: f"{1 / median[name]:.3g}x",
        "target": lambda name: show_interval(arms[name].mean_of("test_accuracy")),
        "source after": lambda name: show_interval(arms[name].mean_of("source_after_accuracy")),
    }
    order = [REFERENCE, *(name for name in strengths if name != REFERENCE)]
    return Report(
        title="Which estimate of the Fisher information, and which strength?",
        conclusion=conclude(strengths, median, [n for n in strengths if n != REFERENCE and ranks[n].mean > 0.95]),
        body=[markdown_table(columns, order), LEGEND, found.how],
        pictures={PICTURE: "Both tasks over the strength, and over the strength times the size of the estimate"},
        notes=found.notes,
    )


def check(table: pd.DataFrame) -> None:
    """Raise a :class:`UserError` unless the sweep has what the study compares."""
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


def agreement(job: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Return how the estimates at the pre-trained weights of a job compare with the exact one."""
    from dataclasses import replace

    from ...finished.average_jobs import pretraining_of, read_finetuned_job
    from ...recipe.finetune import source_task
    from ...recipe.resolve import resolve
    from ...retention.ewc import Ewc
    from ...retention.fisher import Estimator

    finished = read_finetuned_job(job)
    recipe = finished.plan.recipe
    method: Any = recipe.retention
    if not isinstance(method, Ewc):
        raise UserError(f"'{job}' is no job of EWC")
    task = source_task(resolve(recipe, finished.data), pretraining_of(finished).params)
    flat = {}
    for name in names:
        diagonal = replace(method, fisher=Estimator[name]).importance(task)
        flat[name] = np.concatenate([np.asarray(diagonal[path], np.float64).ravel() for path in sorted(diagonal)])
    return {name: compare_diagonals(flat[REFERENCE], values) for name, values in flat.items()}


def compare_diagonals(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the relative ``size``, the ``rank`` correlation and the shared ``top`` tenth of two diagonals."""
    tenth = max(1, len(exact) // 10)
    top = [np.argsort(-values, kind="stable")[:tenth] for values in (exact, other)]
    return {
        "size": float(other.sum() / exact.sum()),
        "rank": float(spearmanr(exact, other).statistic),
        "top": len(np.intersect1d(*top)) / tenth,
    }


def draw(table: pd.DataFrame, sizes: Mapping[str, float], path: Path) -> None:
    """Draw the mean test accuracy of both tasks over the strength, and over the strength times the estimate's size."""
    both = (table["source_after_accuracy"] + table["test_accuracy"]) / 2
    strengths = table[STRENGTH].where(table[STRENGTH] > 0)  # the axis is logarithmic
    means: Any = both.groupby([table[ESTIMATOR], strengths]).mean()
    caption = "Mean test accuracy of both tasks over seeds; right: strengths times the size of the estimate."
    with picture(path, caption, 4.2, panels=2) as (left, right):
        for ax, label, factor in (
            (left, "strength", dict.fromkeys(sizes, 1.0)),
            (right, "strength x size of the estimate", sizes),
        ):
            for place, name in enumerate(sizes):
                own: Any = means[name]
                ax.plot(own.index.to_numpy(float) * factor[name], own.to_numpy(), label=name, **style_of(place))
            ax.set_xscale("log")
            ax.set_xlabel(label)
        left.set_ylabel("test accuracy, mean of both tasks")


def conclude(strengths: Mapping[str, float], sizes: Mapping[str, float], alike: Sequence[str]) -> str:
    """Return the conclusion in one sentence; ``alike`` are the estimates with a high rank correlation."""
    far = max(strengths.keys() - {REFERENCE}, key=lambda name: (abs(np.log(sizes[name])), name))
    return (
        f"The {far} estimate is {sizes[far]:.3g} times the exact one, and validation chooses a strength for it that is "
        f"{strengths[far] / strengths[REFERENCE]:g} times as high (its size predicts {1 / sizes[far]:.3g}); a rank "
        f"correlation with the exact estimate above 0.95 has {listed(alike) if alike else 'no other estimate'}."
    )
