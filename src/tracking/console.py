"""Terminal output. Colours follow NO_COLOR; the progress bar is shown in a terminal only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from ..errors import listed
from ..optim.partition import FROZEN, ParamLabels

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@functools.cache
def console() -> Console:
    """Return the console; outside a terminal, lines are not wrapped."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def echo(text: str, style: str | None = None) -> None:
    """Print one line."""
    console().print(text, style=style, markup=False)


def show_config(cfg: DictConfig) -> None:
    """Print the composed configuration as a tree with one branch per group."""
    tree = Tree("[bold]configuration")
    _grow(tree, OmegaConf.to_container(cfg, resolve=True))
    console().print(tree)


def _grow(tree: Tree, node: Any) -> None:
    for key, value in node.items():
        if isinstance(value, Mapping):
            name = value.get("name")
            branch = tree.add(f"[bold]{key}[/]" + (f" = [cyan]{name}[/]" if name else ""))
            _grow(branch, {k: v for k, v in value.items() if k != "name"})
        else:
            text = "null" if value is None else value.name if isinstance(value, Enum) else str(value)
            tree.add(f"{key} = [cyan]{escape(text)}[/]")


def show_trainable(
    phases: Sequence[ParamLabels], updates: Sequence[int], sizes: Mapping[str, int], trainable: int
) -> None:
    """Print which parameters each pattern of the strategy matched, phase by phase, and how many are trainable.

    ``sizes`` are the parameters' numbers of values; ``trainable`` is the number that are trainable in some phase.
    """
    first = 0
    for labels, count in zip(phases, updates, strict=True):
        phase = f" in updates {first + 1} to {first + count}" if len(phases) > 1 else ""
        table = Table("pattern", "learning rate", "parameters", "matched", title_justify="left")
        table.title = f"trainable parameters in fine-tuning{phase}"
        for pattern, multiplier, paths in labels.matched:
            rate = "frozen" if multiplier is FROZEN else f"{float(multiplier):.4g} x lr_fine"
            matched = listed(paths) if paths else "nothing that an earlier pattern had not matched"
            table.add_row(escape(pattern), rate, f"{sum(sizes[path] for path in paths):,}", matched)
        console().print(table)
        first += count
    total = sum(sizes.values())
    echo(f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.1%})")


def show_summary(summary: Mapping[str, Any], seconds: Mapping[str, float], folder: Path) -> None:
    """Print how a single run ended, from the fields of its ``summary.json`` and the seconds of each stage."""
    metrics = summary["metrics"]
    if matrix := summary.get("accuracy_matrix"):  # empty where the first task diverged
        console().print(_matrix_table(matrix))
    if metrics:
        console().print(_result_table(metrics))
        for line in _feature_lines(metrics):
            echo(line)
    else:
        last = summary["last_finite_step"]
        echo(f"diverged: the loss was not finite after update {last}; try a lower learning rate", "red")
    times = ", ".join(f"{stage} {value:.2f} s" for stage, value in seconds.items())
    flops = summary["flops_per_step"]
    echo(f"objective (validation loss) {summary['objective']:.4f}; {flops:,.0f} FLOPs per update; {times}")
    for warning in summary.get("warnings", ()):
        echo(f"warning: {warning}", "yellow")
    echo(f"record: {relative_path(folder)}")


FEATURE_EVALS = {"knn": "k-nearest neighbours", "probe": "a linear probe"}
BASELINES = {"random": "untrained network", "pixels": "pixels"}


def _feature_lines(metrics: Mapping[str, float]) -> list[str]:
    """Return the evaluations of the pre-trained features beside their baselines, where they were measured."""
    lines = []
    for name, method in FEATURE_EVALS.items():
        if (value := metrics.get(f"source_test_{name}")) is not None:
            found = {baseline: metrics.get(f"source_test_{name}_{baseline}") for baseline in BASELINES}
            beside = ", ".join(f"{BASELINES[baseline]} {v:.3f}" for baseline, v in found.items() if v is not None)
            lines.append(f"features of the source task's test split by {method}: {value:.3f} ({beside})")
    return lines


def _matrix_table(matrix: Sequence[Sequence[float]]) -> Table:
    """Return the accuracy matrix of a sequence: one row per task learned, one column per task tested."""
    columns = [f"on {j + 1}" for j in range(len(matrix[0]))]
    table = Table("after task", *columns, title="test accuracy", title_justify="left")
    for i, row in enumerate(matrix):
        cells = (f"{value:.3f}" if j <= i else f"[dim]{value:.3f}[/]" for j, value in enumerate(row))
        table.add_row(str(i + 1), *cells)
    return table


SPLITS = {"train": "train", "val": "validation", "test": "test"}
SPLITS |= {"source_test": "source before", "source_after": "source after"}
SHOWN = ("loss", "perplexity", "accuracy", "macro_f1", "entity_f1", "exact_match")
SHOWN += ("f1", "r2", "pearson", "ece", "brier")


def _result_table(metrics: Mapping[str, float]) -> Table:
    """Return a table of the metrics: one row per split, one column per metric; source rows are of its test split."""
    names = [name for name in SHOWN if {f"test_{name}", f"source_test_{name}"} & metrics.keys()]
    table = Table("", *names, title="result", title_justify="left")
    for split, label in SPLITS.items():
        if f"{split}_loss" in metrics:
            found = (metrics.get(f"{split}_{name}") for name in names)  # a split may lack some
            table.add_row(label, *("" if value is None else f"{value:.4f}" for value in found))
    for name in ("average_accuracy", "backward_transfer", "forgetting"):
        if name in metrics:
            table.add_row(name.replace("_", " "), "", f"{metrics[name]:.4f}")
    return table


class ProgressBar:
    """A progress bar with one line per stage; does nothing outside a terminal."""

    def __init__(self, stages: Mapping[str, int], enabled: bool) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if enabled and console().is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            name, note = TextColumn("{task.description:>9}"), TextColumn("{task.fields[note]}")
            columns = (name, BarColumn(), MofNCompleteColumn(), note)
            self._progress = Progress(*columns, console=console(), transient=True)
            for stage, steps in stages.items():
                self._tasks[stage] = self._progress.add_task(stage, total=steps, note="", start=False)
            self._progress.start()

    def update(self, stage: str, row: Mapping[str, float]) -> None:
        """Advance a stage's line to a logged row."""
        if self._progress is None:
            return
        task = self._tasks[stage]
        self._progress.start_task(task)
        self._progress.update(task, completed=row["step"])
        elapsed = self._progress.tasks[task].elapsed or 0.0
        speed = f"{row['step'] / elapsed:,.0f} steps/s" if elapsed > 0 and row["step"] else ""
        self._progress.update(task, note=f"loss {row['loss']:.4f}  {speed}" if "loss" in row else "")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def relative_path(path: Path) -> str:
    """Return a path relative to the current folder if it is inside it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
