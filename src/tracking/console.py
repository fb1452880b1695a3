"""What the terminal shows. Colours follow NO_COLOR; the progress bar exists in a terminal only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from ..errors import listed
from ..optim.partition import FROZEN, ParamLabels

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..recipe.resolve import TrainableSummary
    from ..recipe.run import RunResult
    from ..recipe.sequence import SequenceResult


@functools.cache
def console() -> Console:
    """Return the console; when the output is not a terminal, lines are not cut to a width nobody set."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def say(text: str, style: str | None = None) -> None:
    """Print one line."""
    console().print(text, style=style, markup=False)


def show_config(cfg: DictConfig) -> None:
    """Print the composed configuration as a tree, a branch a group."""
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
            tree.add(f"{key} = [cyan]{text.replace('[', chr(92) + '[')}[/]")


def show_movement(movement: TrainableSummary) -> None:
    """Print what each line of the strategy's table matched, phase by phase, and how many parameters move."""
    first = 0
    for placed, length in zip(movement.labels, movement.lengths, strict=True):
        phase = f" in updates {first + 1} to {first + length}" if len(movement.labels) > 1 else ""
        _show_placement(placed, movement.sizes, f"what moves in fine-tuning{phase}")
        first += length
    say(f"{movement.trainable:,} of {movement.total:,} parameters move ({movement.trainable / movement.total:.1%})")


def _show_placement(placed: ParamLabels, sizes: Mapping[str, int], title: str) -> None:
    table = Table("pattern", "learning rate", "parameters", "matched", title=title, title_justify="left")
    for pattern, value, paths in placed.matched:
        rate = "frozen" if value is FROZEN else f"{float(value):.4g} x lr_fine"
        names = listed(paths) if paths else "nothing that a line above had not taken"
        table.add_row(pattern.replace("[", "\\["), rate, f"{sum(sizes[p] for p in paths):,}", names)
    console().print(table)


def show_outcome(outcome: RunResult | SequenceResult, folder: Path, overrides: Sequence[str] | None) -> None:
    """Print how a run ended: a table for a single run, a line for a job of a sweep (when ``overrides`` are given)."""
    if overrides is not None:
        say(f"  {outcome.status}, val loss {outcome.objective:.4f}  ({' '.join(overrides)})")
        return
    if matrix := outcome.summary().get("accuracy_matrix"):  # empty where the first task diverged
        console().print(_matrix_table(matrix))
    if outcome.metrics:
        console().print(_result_table(outcome.metrics))
        for line in _worth(outcome.metrics):
            say(line)
    else:
        say(
            f"diverged: the loss stopped being finite after update {outcome.last_finite_step}; try a lower rate",
            "red",
        )
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in outcome.seconds.items())
    say(f"objective (validation loss) {outcome.objective:.4f}; {outcome.cost.flops:,.0f} FLOPs an update; {seconds}")
    for warning in outcome.summary().get("warnings", ()):
        say(f"warning: {warning}", "yellow")
    say(f"record: {near(folder)}")


WORTH = {"knn": "nearest neighbours", "probe": "a linear probe"}
FLOORS = {"random": "the untrained network's", "pixels": "pixels"}


def _worth(metrics: Mapping[str, float]) -> list[str]:
    """Say what pre-trained features are worth, beside their floors, where that was measured."""
    lines = []
    for name, words in WORTH.items():
        if (value := metrics.get(f"source_test_{name}")) is not None:
            found = {floor: metrics.get(f"source_test_{name}_{floor}") for floor in FLOORS}
            beside = ", ".join(f"{FLOORS[floor]} {v:.3f}" for floor, v in found.items() if v is not None)
            lines.append(f"features of the source's test rows by {words}: {value:.3f} ({beside})")
    return lines


def _matrix_table(matrix: Sequence[Sequence[float]]) -> Table:
    """Return the accuracy matrix of a sequence: a row a task that was learned, a column a task it was tested on."""
    columns = [f"on {j + 1}" for j in range(len(matrix[0]))]
    table = Table("after task", *columns, title="test accuracy", title_justify="left")
    for i, row in enumerate(matrix):
        cells = (f"{value:.3f}" if j <= i else f"[dim]{value:.3f}[/]" for j, value in enumerate(row))
        table.add_row(str(i + 1), *cells)
    return table


SPLITS = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "source_test": "source before",
    "source_after": "source after",
}
# The record holds more.
SHOWN = (
    "loss",
    "perplexity",
    "accuracy",
    "macro_f1",
    "entity_f1",
    "exact_match",
    "f1",
    "r2",
    "pearson",
    "ece",
    "brier",
)


def _result_table(metrics: Mapping[str, float]) -> Table:
    """Return a table of the metrics: a row a split, a column a metric; the source's rows are of its test part."""
    names = [name for name in SHOWN if {f"test_{name}", f"source_test_{name}"} & metrics.keys()]
    table = Table("", *names, title="result", title_justify="left")
    for split, label in SPLITS.items():
        if f"{split}_loss" in metrics:
            found = (metrics.get(f"{split}_{name}") for name in names)  # of a part, not all need be known
            table.add_row(label, *("" if value is None else f"{value:.4f}" for value in found))
    for name in ("average_accuracy", "backward_transfer", "forgetting"):
        if name in metrics:
            table.add_row(name.replace("_", " "), "", f"{metrics[name]:.4f}")
    return table


class Bar:
    """A progress bar over both stages; does nothing outside a terminal."""

    def __init__(self, stages: Mapping[str, int], enabled: bool) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if enabled and console().is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._progress = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=console(),
                transient=True,
            )
            for stage, steps in stages.items():
                self._tasks[stage] = self._progress.add_task(stage, total=steps, warn_once="", start=False)
            self._progress.start()

    def update(self, stage: str, row: Mapping[str, float]) -> None:
        """Move a stage's bar to a logged row."""
        if self._progress is None:
            return
        task = self._tasks[stage]
        self._progress.start_task(task)
        self._progress.update(task, completed=row["step"])
        elapsed = self._progress.tasks[task].elapsed or 0.0
        speed = f"{row['step'] / elapsed:,.0f} steps/s" if elapsed > 0 and row["step"] else ""
        self._progress.update(task, warn_once=f"loss {row['loss']:.4f}  {speed}" if "loss" in row else "")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def near(path: Path) -> str:
    """Return a path relative to the working folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
