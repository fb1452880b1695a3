"""``report=decision_matrix``: which strategy for which similarity of the tasks and how many labels?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch, Rectangle

from ...errors import UserError
from ..analysis import Arm, show
from ..conditions import better, choose, lead, notes_of, rates, results, tuning
from ..plots import COLOURS, in_words, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval
from ..study import Report

SIMILARITY, LABELS = "data.similarity", "data.train_rows"
PICTURE = "decision_matrix.png"
# The rule of thumb that is put to the test; any of a cell's strategies follows it. Keys: is the similarity high, are
# the labels many.
RECOMMENDED = {
    (True, False): ("freeze_bottom", "top_k"),
    (True, True): ("full",),
    (False, False): ("freeze_middle", "lora"),
    (False, True): ("discriminative",),
}


class Cell(NamedTuple):
    """One combination of similarity and labels.

    Attributes:
        similarity: of the two tasks.
        labels: rows to fine-tune on.
        ranking: the arms with a result by their strategy, the best mean validation loss first.
        leads: the winner's reported metric minus each other arm's, paired by seed.
        recommended: what the rule of thumb says, as far as it was run.
        verdict: ``agrees``, ``disagrees``, ``undecided`` or ``not run``: the best recommended strategy against the best
            of the others.
    """

    similarity: float
    labels: float
    ranking: Mapping[str, Arm]
    leads: Mapping[str, Interval]
    recommended: tuple[str, ...]
    verdict: str

    @property
    def winner(self) -> str:
        """The strategy with the best mean validation loss."""
        return next(iter(self.ranking))

    @property
    def runner_up(self) -> str | None:
        """The second of the ranking."""
        return next(iter(self.leads), None)

    def decided(self, higher: bool) -> bool:
        """Tell whether the test metric confirms the winner's lead over the runner-up."""
        return self.runner_up is not None and better(self.leads[self.runner_up], higher) > 0


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Name the winner of each cell and hold it against the rule of thumb.

    Raises:
        UserError: no cell has a result.
    """
    analysis = choose(table, "strategy", SIMILARITY, LABELS)
    higher = analysis.question.higher
    found = results(analysis)
    if not found:
        raise UserError("report=decision_matrix needs a strategy that completed at every seed of a cell; there is none")
    similarities = sorted({key[1] for key in found})
    labels = sorted({key[2] for key in found})
    cells = [
        make_cell(found, s, n, (s >= 0.5, is_many(n, labels)), higher)
        for s in reversed(similarities)
        for n in labels
        if any(key[1:] == (s, n) for key in found)
    ]
    strategies = [str(name) for name in dict.fromkeys(table["strategy"])]
    caption = f"Winner by validation loss, its {in_words(analysis.question.metric)}, and its lead (paired, 95 %)."
    with picture(folder / PICTURE, caption, 1.9 + 1.35 * max(2, len(similarities))) as (ax,):
        draw(ax, cells, strategies, higher)
    columns = {
        "similarity": lambda cell: show(cell.similarity),
        "labels": lambda cell: show(cell.labels),
        "winner": lambda cell: cell.winner,
        "its choice": lambda cell: rates(cell.ranking[cell.winner]),
        analysis.question.metric: lambda cell: show_interval(cell.ranking[cell.winner].test),
        "runner-up": lambda cell: cell.runner_up or "-",
        "lead": lambda cell: show_lead(cell, higher),
        "rule of thumb": lambda cell: " or ".join(cell.recommended) or "not run",
        "holds": lambda cell: cell.verdict,
    }
    how = (
        "A winner has the best mean validation loss of its cell; its lead is decided where the paired interval of the "
        "test metric over the runner-up excludes 0. The rule of thumb agrees or disagrees where the best strategy that "
        "it recommends and the best other one can be told apart on the test metric. Similarity is called high from 0.5 "
        f"on, labels many above the middle of the range by its logarithm ({middle(labels):.3g})."
    )
    every = {
        "strategy": lambda key: str(key[0]),
        "similarity": lambda key: show(key[1]),
        "labels": lambda key: show(key[2]),
    }
    every |= {
        "choice": lambda key: rates(found[key]),
        "val_loss": lambda key: f"{found[key].validation.mean:.4g}",
        analysis.question.metric: lambda key: show_interval(found[key].test),
    }
    order = sorted(found, key=lambda key: (-key[1], key[2]))  # within a cell the ranking stays
    parts = [markdown_table(columns, cells), how, tuning(analysis), "Every arm:", markdown_table(every, order)]
    return Report(
        title="Which strategy for which task?",
        conclusion=conclude(cells, higher),
        body="\n\n".join(parts),
        pictures={PICTURE: "The winner of each cell"},
        notes=notes_of(analysis, table),
    )


def middle(labels: Sequence[float]) -> float:
    """Return the geometric middle of a range of labels."""
    return math.sqrt(min(labels) * max(labels))


def is_many(n: float, labels: Sequence[float]) -> bool:
    """Tell whether a number of labels lies in the upper half of the range, by its logarithm."""
    return n > middle(labels)


def make_cell(
    found: Mapping[tuple, Arm], similarity: float, labels: float, corner: tuple[bool, bool], higher: bool
) -> Cell:
    """Compare the arms of one cell."""
    ranking = {str(key[0]): arm for key, arm in found.items() if key[1:] == (similarity, labels)}
    winner = next(iter(ranking.values()))
    leads = {name: lead(winner, arm) for name, arm in ranking.items() if arm is not winner}
    recommended = tuple(name for name in RECOMMENDED[corner] if name in ranking)
    return Cell(similarity, labels, ranking, leads, recommended, judge(ranking, recommended, higher))


def judge(ranking: Mapping[str, Arm], recommended: Sequence[str], higher: bool) -> str:
    """Hold the best recommended arm against the best of the others; ``ranking`` has the best first."""
    others = [name for name in ranking if name not in recommended]
    if not recommended or not others:
        return "not run"
    first = next(name for name in ranking if name in recommended)
    verdict = better(lead(ranking[first], ranking[others[0]]), higher)
    return {1: "agrees", -1: "disagrees", 0: "undecided"}[verdict]


def show_lead(cell: Cell, higher: bool) -> str:
    """Write by how much the winner is better than the runner-up, and whether that is decided."""
    if cell.runner_up is None:
        return "no other arm"
    mean, low, high, n = cell.leads[cell.runner_up]
    ahead = Interval(mean, low, high, n) if higher else Interval(-mean, -high, -low, n)  # a lead is positive
    return f"{show_interval(ahead, sign=True)}, {'decided' if cell.decided(higher) else 'undecided'}"


def conclude(cells: Sequence[Cell], higher: bool) -> str:
    """Say in one sentence what the numbers carry."""

    def place(cell: Cell) -> str:
        return f"similarity {show(cell.similarity)} and {show(cell.labels)} labels"

    decided = [f"{cell.winner} at {place(cell)}" for cell in cells if cell.decided(higher)]
    count = {
        verdict: sum(cell.verdict == verdict for cell in cells) for verdict in ("agrees", "disagrees", "undecided")
    }
    rule = (
        f"the rule of thumb agrees in {count['agrees']}, disagrees in {count['disagrees']} and is undecided in "
        f"{count['undecided']} of {len(cells)} cells"
    )
    if not decided:
        return f"Undecided: in no cell is the winner's lead over the runner-up beyond its paired 95 % interval; {rule}."
    open_cells = len(cells) - len(decided)
    rest = f" (undecided in {open_cells} of {len(cells)} cells)" if open_cells else ""
    return f"The winner is {', '.join(decided)}{rest}; {rule}."


def draw(ax: Axes, cells: Sequence[Cell], strategies: Sequence[str], higher: bool) -> None:
    """Draw a tile a cell in its winner's colour: strong where the lead is decided, pale and hatched where not."""
    similarities = sorted({cell.similarity for cell in cells})
    labels = sorted({cell.labels for cell in cells})
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(strategies)}
    for cell in cells:
        x, y = labels.index(cell.labels), similarities.index(cell.similarity)
        draw_tile(ax, x, y, colours[cell.winner], cell.decided(higher))
        ax.text(x, y + 0.22, cell.winner, ha="center", va="center", weight="bold", fontsize=13)
        stop = " " if len(labels) < 3 else "\n"  # narrow tiles
        lines = [show_interval(cell.ranking[cell.winner].test)]
        if cell.runner_up is not None:
            lines.append(f"lead over {cell.runner_up}:{stop}{show_lead(cell, higher)}")
        lines.append(f"rule: {' or '.join(cell.recommended) or 'not run'}{stop}({cell.verdict})")
        ax.text(
            x, y - 0.14, "\n".join(lines), ha="center", va="center", fontsize=9 if stop == " " else 8, linespacing=1.3
        )
    ax.set_xlim(-0.5, len(labels) - 0.5)
    ax.set_ylim(-0.5, len(similarities) - 0.5)
    ax.set_xticks(range(len(labels)), [show(n) for n in labels])
    ax.set_yticks(range(len(similarities)), [show(s) for s in similarities])
    ax.set_xlabel("labelled rows to fine-tune on")
    ax.set_ylabel("similarity of the tasks")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    winners = list(dict.fromkeys(cell.winner for cell in cells))
    handles = [Patch(facecolor=colours[name], alpha=0.45, label=name) for name in winners]
    handles.append(Patch(facecolor="#eeeeee", edgecolor="#aaaaaa", hatch="//", linewidth=0, label="lead undecided"))
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))


def draw_tile(ax: Axes, x: int, y: int, colour: str, decided: bool) -> None:
    """Draw one cell's background."""
    tile = Rectangle(
        (x - 0.48, y - 0.48), 0.96, 0.96, linewidth=0, facecolor=to_rgba(colour, 0.45 if decided else 0.13)
    )
    tile.set(edgecolor=to_rgba(colour, 0.3), hatch=None if decided else "//")
    ax.add_patch(tile)
