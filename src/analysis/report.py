"""Writes an analysis for people: tables on the console, and a Markdown page beside its pictures."""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from .analysis import Analysis, Arm, show
from .plots import plot_arms, plot_curves, plot_rates
from .statistics import Interval

Row = TypeVar("Row")


def show_interval(interval: Interval, sign: bool = False) -> str:
    """Write ``0.512 ± 0.034``, rounded to two digits of the half-width; only the mean where there is none."""
    plus = "+" if sign else ""
    half = interval.half
    if math.isnan(interval.mean):
        return "-"
    if interval.mean == half == 0:
        return "0"
    if not math.isfinite(half) or half == 0:
        return f"{interval.mean:{plus}.4g}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 6 or abs(interval.mean) >= 1e6:
        return f"{interval.mean:{plus}.3g} ± {half:.1g}"
    return f"{interval.mean:{plus}.{digits}f} ± {half:.{digits}f}"


def show_count(value: float) -> str:
    """Write a large number in few characters: ``32.9k``."""
    if math.isnan(value):
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def result_columns(analysis: Analysis) -> dict[str, Callable[[Arm], str]]:
    """Return the columns of the table of results: name, and what an arm's cell says."""
    question = analysis.question

    def difference(arm: Arm) -> str:
        if arm.difference is None:
            return "reference" if arm.label == question.reference else "-"
        return show_interval(arm.difference, sign=True) + (" *" if arm.difference.excludes_zero else "")

    tuned = {
        name: lambda arm, name=name: show(arm.chosen[name]) + " !" * (name in arm.edges) if arm.chosen else "none"
        for name in question.tune
    }
    return {
        "arm": lambda arm: arm.label,
        **tuned,
        question.select: lambda arm: show_interval(Interval(arm.validation.mean, math.nan, math.nan, 0)),
        question.metric: lambda arm: show_interval(arm.test),
        f"minus {question.reference}": difference,
        f"{question.pair or 'job'}s": lambda arm: str(arm.test.n),
    }


def cost_columns() -> dict[str, Callable[[Arm], str]]:
    """Return the columns of the table of costs."""
    return {
        "arm": lambda arm: arm.label,
        "trainable parameters": lambda arm: show_count(arm.cost("trainable_parameters")),
        "of all": lambda arm: show_share(arm.cost("trainable_parameters") / arm.cost("total_parameters")),
        "FLOPs a step": lambda arm: show_count(arm.cost("flops_per_step")),
        "seconds a job": lambda arm: show_interval(Interval(arm.cost("seconds"), math.nan, math.nan, 0)),
    }


def show_share(share: float) -> str:
    """Write a share in percent."""
    return "-" if math.isnan(share) else f"{100 * share:.3g} %"


def legend(analysis: Analysis) -> str:
    """Explain the table of results in a few sentences."""
    question = analysis.question
    direction = "higher" if question.higher else "lower"
    pair = question.pair or "job"
    how = f"Of {question.metric} {direction} is better. ± is the 95 % Student-t interval over {pair}s."
    if question.tune:
        chosen = f"{', '.join(question.tune)} chosen by the mean {question.select}"
        how = f"{chosen}; ! is at the edge of the grid. {how}"
    if question.pair and len(analysis.arms) > 1:
        how += f" Differences from {question.reference} are paired by {pair}; * excludes 0"
        how += " (not corrected for the number of arms)."
    return how


def print_analysis(analysis: Analysis, console: Console) -> None:
    """Print the recommendation, both tables and the notes; readable at 80 columns and through a pipe."""
    console.print(f"[bold]{analysis.recommendation}[/bold]", highlight=False)
    for columns in (result_columns(analysis), cost_columns()):
        table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
        for place, name in enumerate(columns):
            title = name if name in analysis.question.tune else name.replace("_", "\n")  # narrow
            table.add_column(title, justify="left" if place == 0 else "right", overflow="fold")
        for arm in analysis.arms:
            table.add_row(*(cell(arm) for cell in columns.values()))
        console.print(table)
    console.print(legend(analysis), highlight=False, style="dim")
    for note in analysis.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def markdown_table(columns: Mapping[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    """Write a Markdown table: what each column's function says of each row."""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[cell(row).replace("|", "\\|").replace("*", "\\*") for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_pictures(analysis: Analysis, history: pd.DataFrame | None, folder: Path) -> dict[str, str]:
    """Draw what there is to draw into a folder; return the pictures' titles by file name.

    Pictures of these names that an older analysis left and this one has not are removed: they would pass for its own.
    """
    pictures = {
        "strategies.png": ("The arms at their choice", lambda path: plot_arms(analysis, path)),
        "lr_sweep.png": ("The sweep of the tuned value", lambda path: plot_rates(analysis, path)),
        "curves.png": (
            "Both stages at each arm's choice",
            lambda path: history is not None and plot_curves(analysis, history, path),
        ),
    }
    drawn = {name: title for name, (title, draw) in pictures.items() if draw(folder / name)}
    for name in pictures.keys() - drawn.keys():
        (folder / name).unlink(missing_ok=True)
    return drawn


def write_report(analysis: Analysis, history: pd.DataFrame | None, folder: Path, source: Path) -> list[Path]:
    """Write ``analysis.md`` and its pictures.

    Args:
        analysis: what to report.
        history: for the curves; without it there are none.
        folder: where the files go; made if missing.
        source: the sweep's table, to be named on the page.

    Returns:
        The files written, the page first.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_pictures(analysis, history, folder)
        page = folder / "analysis.md"
        page.write_text(markdown(analysis, drawn, source), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the analysis to '{folder}': {error.strerror or error}") from error
    return [page, *(folder / name for name in drawn)]


def markdown(analysis: Analysis, pictures: dict[str, str], source: Path) -> str:
    """Return the page's text; `pictures` are titles by file name."""
    question = analysis.question
    parts = [
        f"# Which {' and '.join(question.arms) or 'job'} is best?",
        f"**{analysis.recommendation}**",
        markdown_table(result_columns(analysis), analysis.arms),
        legend(analysis).replace("*", "\\*"),
    ]
    if analysis.notes:
        parts += ["## What to know", "\n".join(f"- {note}" for note in analysis.notes)]
    for name, title in pictures.items():
        parts += [f"## {title}", f"![{title}]({name})"]
    parts += ["## What it costs", markdown_table(cost_columns(), analysis.arms)]
    parts += [f"From `{source.name}`: {int(analysis.points['jobs'].sum())} jobs at {len(analysis.points)} points."]
    return "\n\n".join(parts) + "\n"
