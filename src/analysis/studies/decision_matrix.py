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
from ..comparison import Arm, Comparison
from ..factors import LABELS, STRATEGY, compare_factors
from ..formatting import markdown_table, show, show_interval
from ..pages import result_columns
from ..plots import COLOURS, picture
from ..reports import Report

SIMILARITY = "data.similarity"
PICTURE = "decision_matrix.png"
# The rule of thumb under test, by (is the similarity high, are the labels many): any of these strategies follows it.
RECOMMENDED = {
    (True, False): ("freeze_bottom", "top_k"),
    (True, True): ("full",),
    (False, False): ("freeze_middle", "lora"),
    (False, True): ("discriminative",),
}
VERDICTS = {1: "agrees", -1: "disagrees", 0: "undecided"}
HOW = (
    "The winner has the best mean validation loss of its cell. Its lead over the runner-up is decided if the paired "
    "interval of the test metric excludes 0. The rule of thumb agrees or disagrees if the best recommended strategy "
    "and the best other one, both by validation, differ on the test metric. Similarity is high from 0.5; labels are "
    "many above the geometric middle of the range ({middle:.3g})."
)


class MatrixCell(NamedTuple):
    """One combination of similarity and number of labels."""

    similarity: float
    labels: float
    winner: Arm  # the best mean validation loss
    runner_up: str  # the second best
    lead: str  # the winner's reported metric minus the runner-up's, positive if better
    decided: bool  # whether the interval of the lead excludes 0
    recommended: str  # what the rule of thumb recommends, as far as it was run
    verdict: str  # whether the test rows agree with the rule of thumb

    @property
    def where(self) -> str:
        """The combination in words."""
        return f"similarity {show(self.similarity)} and {show(self.labels)} labels"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Name the winner of each cell and test the rule of thumb."""
    found = compare_factors(table, [STRATEGY], [SIMILARITY, LABELS]).against()
    if not found.arms:
        raise UserError("report=decision_matrix needs a strategy that completed at every seed of a cell; there is none")
    middle = math.sqrt(math.prod(pick(n for _, n in found.levels) for pick in (min, max)))
    order = sorted(found.levels, key=lambda level: (-level[0], level[1]))
    cells = [make_cell(found, s, n, RECOMMENDED[s >= 0.5, n > middle]) for s, n in order]
    colours = {str(name): COLOURS[at % len(COLOURS)] for at, name in enumerate(dict.fromkeys(table[STRATEGY]))}
    height = 1.9 + 1.35 * max(2, len({cell.similarity for cell in cells}))
    with picture(folder / PICTURE, f"Winner by validation loss; {found.metric}; lead (paired, 95 %).", height) as (ax,):
        draw(ax, cells, colours)
    columns = {
        "similarity": lambda cell: show(cell.similarity),
        "labels": lambda cell: show(cell.labels),
        "winner": lambda cell: cell.winner.label,
        "choice": lambda cell: cell.winner.choice,
        found.spec.metric: lambda cell: show_interval(cell.winner.test),
        "runner-up": lambda cell: cell.runner_up,
        "lead": lambda cell: cell.lead,
        "rule of thumb": lambda cell: cell.recommended,
        "rule holds": lambda cell: cell.verdict,
    }
    every_arm = markdown_table(result_columns(found), [arm for level in order for arm in found.at(*level).values()])
    return Report(
        title="Which strategy for which task?",
        conclusion=conclude(cells),
        body=[markdown_table(columns, cells), HOW.format(middle=middle), found.how, "Every arm:", every_arm],
        pictures={PICTURE: "The winner of each cell"},
        notes=found.notes,
    )


def make_cell(found: Comparison, similarity: float, labels: float, rule: Sequence[str]) -> MatrixCell:
    """Compare the winner of a cell with the runner-up, and the best recommended arm with the best other one."""
    ranking = found.at(similarity, labels)
    winner, *rest = ranking.values()
    runner_up, lead, decided = "-", "no other arm", False
    if rest:
        better, worse = (winner, rest[0]) if found.spec.higher else (rest[0], winner)
        decided = found.verdict(winner.minus(rest[0])) > 0
        lead = f"{show_interval(better.minus(worse), sign=True)}, {'decided' if decided else 'undecided'}"
        runner_up = rest[0].label
    recommended = [arm for name, arm in ranking.items() if name in rule]
    others = [arm for name, arm in ranking.items() if name not in rule]
    tested = recommended and others
    verdict = VERDICTS[found.verdict(recommended[0].minus(others[0]))] if tested else "not run"
    named = " or ".join(name for name in rule if name in ranking) or "not run"
    return MatrixCell(similarity, labels, winner, runner_up, lead, decided, named, verdict)


def conclude(cells: Sequence[MatrixCell]) -> str:
    """Return the conclusion in one sentence."""
    decided = [f"{cell.winner.label} at {cell.where}" for cell in cells if cell.decided]
    agrees, disagrees, undecided = (sum(cell.verdict == word for cell in cells) for word in VERDICTS.values())
    rule = (
        f"the rule of thumb is confirmed in {agrees}, refuted in {disagrees} and undecided in {undecided} of "
        f"{len(cells)} cells"
    )
    if not decided:
        return f"Undecided: in no cell does the paired 95 % interval of the winner's lead exclude 0; {rule}."
    rest = f" (undecided in {len(cells) - len(decided)} of {len(cells)} cells)" if len(decided) < len(cells) else ""
    return f"The winner is {', '.join(decided)}{rest}; {rule}."


def draw(ax: Axes, cells: Sequence[MatrixCell], colours: Mapping[str, str]) -> None:
    """Draw each cell as a tile in its winner's colour, pale and hatched if the lead is undecided."""
    similarities, labels = sorted({cell.similarity for cell in cells}), sorted({cell.labels for cell in cells})
    stop, size = (" ", 9) if len(labels) < 3 else ("\n", 8)  # narrow tiles need more lines
    for cell in cells:
        x, y, colour = labels.index(cell.labels), similarities.index(cell.similarity), colours[cell.winner.label]
        tile = Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, linewidth=0, hatch=None if cell.decided else "//")
        tile.set(facecolor=to_rgba(colour, 0.45 if cell.decided else 0.13), edgecolor=to_rgba(colour, 0.3))
        ax.add_patch(tile)
        centre = {"ha": "center", "va": "center"}
        ax.text(x, y + 0.22, cell.winner.label, weight="bold", fontsize=13, **centre)
        lines = [show_interval(cell.winner.test)]
        lines += [f"lead over {cell.runner_up}:{stop}{cell.lead}"] if cell.runner_up != "-" else []
        lines += [f"rule: {cell.recommended}{stop}({cell.verdict})"]
        ax.text(x, y - 0.14, "\n".join(lines), fontsize=size, linespacing=1.3, **centre)
    ax.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.5, len(similarities) - 0.5))
    ax.set_xticks(range(len(labels)), [show(n) for n in labels])
    ax.set_yticks(range(len(similarities)), [show(s) for s in similarities])
    ax.set(xlabel="labelled rows to fine-tune on", ylabel="similarity of the tasks")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    winners = dict.fromkeys(cell.winner.label for cell in cells)
    handles = [Patch(facecolor=colours[name], alpha=0.45, label=name) for name in winners]
    handles.append(Patch(facecolor="#eeeeee", edgecolor="#aaaaaa", hatch="//", linewidth=0, label="lead undecided"))
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
