"""Present a comparison: tables on the console, and a Markdown page with pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from .comparison import Arm, Comparison
from .formatting import (
    Columns,
    markdown_table,
    show,
    show_count,
    show_difference,
    show_interval,
    show_number,
    show_share,
)
from .plots import plot_arms, plot_curves, plot_rates
from .reports import Report, write_report

LOSS = "test_loss"


def result_columns(comparison: Comparison, header: str = "arm") -> Columns[Arm]:
    """Return the columns of the table of results; a metric other than the loss has the test loss beside it."""
    spec = comparison.spec
    loss = spec.metric != LOSS and any(LOSS in arm.jobs for arm in comparison.arms)
    under = any(arm.under for arm in comparison.arms)

    def difference(arm: Arm) -> str:
        return show_difference(arm.difference, "reference" if spec.reference in (arm.label, None) else "-")

    tuned = {
        name: lambda arm, name=name: show(arm.chosen[name]) + " !" * (name in arm.edges) if arm.chosen else "none"
        for name in spec.tune
    }
    return {
        **({"level": lambda arm: arm.under} if under else {}),
        header: lambda arm: arm.label,
        **tuned,
        spec.select: lambda arm: show_number(arm.validation.mean),
        spec.metric: lambda arm: show_interval(arm.test),
        **({LOSS: lambda arm: show_number(arm.cost(LOSS))} if loss else {}),
        f"minus {spec.reference or 'the best by validation'}": difference,
        f"{spec.pair or 'job'}s": lambda arm: str(arm.test.n),
    }


def cost_columns(comparison: Comparison) -> Columns[Arm]:
    """Return the columns of the table of costs.

    Without recorded times of updates and compilation, it has the seconds of whole jobs, of which the first compiled.
    """
    steady = any(not math.isnan(arm.cost("seconds_per_update")) for arm in comparison.arms)
    seconds: Columns[Arm] = {"seconds per job, with compilation": lambda arm: show_number(arm.cost("seconds"))}
    if steady:
        seconds = {
            "seconds per update": lambda arm: show_number(arm.cost("seconds_per_update")),
            "compile seconds": lambda arm: show_number(arm.cost("compile_seconds", largest=True)),
        }
    return {
        "arm": lambda arm: arm.label,
        "trainable parameters": lambda arm: show_count(arm.cost("trainable_parameters")),
        "of all": lambda arm: show_share(arm.cost("trainable_parameters") / arm.cost("total_parameters")),
        "FLOPs per update": lambda arm: show_count(arm.cost("flops_per_step")),
        **seconds,
    }


def explain_results(comparison: Comparison) -> str:
    """Explain the table of results in a few sentences."""
    spec = comparison.spec
    direction = "higher" if spec.higher else "lower"
    how = f"For {spec.metric}, {direction} is better. ± is the 95 % Student-t interval over {spec.pair or 'job'}s."
    if spec.tune:
        how = f"{', '.join(spec.tune)} is chosen by the mean {spec.select}; ! marks the edge of the grid. {how}"
    if spec.pair and len(comparison.arms) > 1:
        how += f" Differences from {spec.reference} are paired by {spec.pair}; * marks an interval that excludes 0"
        how += " (not corrected for the number of arms); identical values have no interval."
    return how


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the recommendation, both tables and the notes; legible at 80 columns and through a pipe."""
    console.print(f"[bold]{comparison.recommendation}[/bold]", highlight=False)
    for columns in (result_columns(comparison), cost_columns(comparison)):
        table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
        for place, name in enumerate(columns):
            title = name if name in comparison.spec.tune else name.replace("_", "\n")  # keeps the column narrow
            table.add_column(title, justify="left" if place == 0 else "right", overflow="fold")
        for arm in comparison.arms:
            table.add_row(*(cell(arm) for cell in columns.values()))
        console.print(table)
    console.print(explain_results(comparison), highlight=False, style="dim")
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def comparison_report(comparison: Comparison, history: pd.DataFrame | None, folder: Path) -> Report:
    """Return the report of a comparison and draw its pictures into a folder; the curves need the history.

    Pictures of an older comparison that this one does not draw are removed.
    """
    results = markdown_table(result_columns(comparison), comparison.arms)
    costs = markdown_table(cost_columns(comparison), comparison.arms)
    jobs = f"{int(comparison.points['jobs'].sum())} jobs at {len(comparison.points)} points."
    arms, rates, curves = (folder / name for name in ("strategies.png", "lr_sweep.png", "curves.png"))
    drawn = {
        arms: ("The arms at their choice", plot_arms(comparison, arms)),
        rates: ("The sweep of the tuned value", plot_rates(comparison, rates)),
        curves: (
            "Both stages at the choice of each arm",
            history is not None and plot_curves(comparison, history, curves),
        ),
    }
    for path, (_, exists) in drawn.items():
        if not exists:
            path.unlink(missing_ok=True)
    return Report(
        title=f"Which {' and '.join(comparison.spec.factors) or 'job'} is best?",
        conclusion=comparison.recommendation,
        body=[results, explain_results(comparison).replace("*", "\\*"), "Cost:", costs, jobs],
        pictures={path.name: title for path, (title, exists) in drawn.items() if exists},
        notes=comparison.notes,
    )


def write_comparison(comparison: Comparison, history: pd.DataFrame | None, folder: Path) -> list[Path]:
    """Write ``analysis.md`` and its pictures into a folder, and return the written files, the page first."""
    report = write_report(lambda: comparison_report(comparison, history, folder), folder / "analysis.md")
    return [folder / "analysis.md", *(folder / name for name in report.pictures)]
