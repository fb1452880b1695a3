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
from ..statistics import ConfidenceInterval

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
    """One combination of similarity and number of labels.

    ``ranking`` holds the arms by strategy, the best mean validation loss first. ``lead`` is the winner's reported
    metric minus the runner-up's, positive if better; it is ``decided`` if its interval excludes 0. ``recommended`` is
    what the rule of thumb recommends, as far as it was run, and ``verdict`` whether the test rows agree.
    """

    similarity: float
    labels: float
    ranking: Mapping[str, Arm]
    lead: ConfidenceInterval | None
    decided: bool
    recommended: tuple[str, ...]
    verdict: str

    @property
    def winner(self) -> str:
        """The strategy with the best mean validation loss."""
        return next(iter(self.ranking))

    @property
    def runner_up(self) -> str:
        """The strategy with the second best mean validation loss."""
        return [*self.ranking, "-"][1] if self.lead is not None else "-"

    @property
    def lead_text(self) -> str:
        """The lead over the runner-up and whether it is decided."""
        if self.lead is None:
            return "no other arm"
        return f"{show_interval(self.lead, sign=True)}, {'decided' if self.decided else 'undecided'}"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Name the winner of each cell and test the rule of thumb.

    Raises:
        UserError: no cell has a result.
    """
    found = compare_factors(table, [STRATEGY], [SIMILARITY, LABELS]).against()
    if not found.arms:
        raise UserError("report=decision_matrix needs a strategy that completed at every seed of a cell; there is none")
    cells = make_cells(found)
    height = 1.9 + 1.35 * max(2, len({cell.similarity for cell in cells}))
    with picture(folder / PICTURE, f"Winner by validation loss; {found.metric}; lead (paired, 95 %).", height) as (ax,):
        draw(ax, cells, [str(name) for name in dict.fromkeys(table[STRATEGY])])
    columns = {
        "similarity": lambda cell: show(cell.similarity),
        "labels": lambda cell: show(cell.labels),
        "winner": lambda cell: cell.winner,
        "choice": lambda cell: cell.ranking[cell.winner].choice,
        found.spec.metric: lambda cell: show_interval(cell.ranking[cell.winner].test),
        "runner-up": lambda cell: cell.runner_up,
        "lead": lambda cell: cell.lead_text,
        "rule of thumb": lambda cell: " or ".join(cell.recommended) or "not run",
        "rule holds": lambda cell: cell.verdict,
    }
    arms = [arm for cell in cells for arm in found.at(cell.similarity, cell.labels).values()]
    how = HOW.format(middle=middle_of([cell.labels for cell in cells]))
    return Report(
        title="Which strategy for which task?",
        conclusion=conclude(cells),
        body=[
            markdown_table(columns, cells),
            how,
            found.how,
            "Every arm:",
            markdown_table(result_columns(found), arms),
        ],
        pictures={PICTURE: "The winner of each cell"},
        notes=found.notes,
    )


def middle_of(labels: Sequence[float]) -> float:
    """Return the geometric middle of a range of labels."""
    return math.sqrt(min(labels) * max(labels))


def make_cells(found: Comparison) -> list[MatrixCell]:
    """Return the cells in descending order of similarity, then ascending order of labels."""
    middle = middle_of([n for _, n in found.levels])
    order = sorted(found.levels, key=lambda level: (-level[0], level[1]))
    return [make_cell(found, s, n, RECOMMENDED[s >= 0.5, n > middle]) for s, n in order]


def make_cell(found: Comparison, similarity: float, labels: float, rule: Sequence[str]) -> MatrixCell:
    """Compare the winner of a cell with the runner-up, and the best recommended arm with the best other one."""
    ranking = found.at(similarity, labels)
    arms = list(ranking.values())
    lead = arms[0].minus(arms[1]) if len(arms) > 1 else None
    decided = found.verdict(lead) > 0
    if lead is not None and not found.spec.higher:
        lead = ConfidenceInterval(-lead.mean, -lead.high, -lead.low, lead.n)
    recommended = tuple(name for name in rule if name in ranking)
    others = [name for name in ranking if name not in recommended]
    verdict = "not run"
    if recommended and others:
        first = next(name for name in ranking if name in recommended)
        verdict = VERDICTS[found.verdict(ranking[first].minus(ranking[others[0]]))]
    return MatrixCell(similarity, labels, ranking, lead, decided, recommended, verdict)


def conclude(cells: Sequence[MatrixCell]) -> str:
    """Return the conclusion in one sentence."""
    decided = [
        f"{cell.winner} at similarity {show(cell.similarity)} and {show(cell.labels)} labels"
        for cell in cells
        if cell.decided
    ]
    agrees, disagrees, undecided = (sum(cell.verdict == word for cell in cells) for word in VERDICTS.values())
    rule = (
        f"the rule of thumb is confirmed in {agrees}, refuted in {disagrees} and undecided in {undecided} of "
        f"{len(cells)} cells"
    )
    if not decided:
        return f"Undecided: in no cell does the paired 95 % interval of the winner's lead exclude 0; {rule}."
    rest = f" (undecided in {len(cells) - len(decided)} of {len(cells)} cells)" if len(decided) < len(cells) else ""
    return f"The winner is {', '.join(decided)}{rest}; {rule}."


def draw(ax: Axes, cells: Sequence[MatrixCell], strategies: Sequence[str]) -> None:
    """Draw each cell as a tile in its winner's colour, pale and hatched if the lead is undecided."""
    similarities = sorted({cell.similarity for cell in cells})
    labels = sorted({cell.labels for cell in cells})
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(strategies)}
    stop, size = (" ", 9) if len(labels) < 3 else ("\n", 8)  # narrow tiles need more lines
    for cell in cells:
        x, y, colour = labels.index(cell.labels), similarities.index(cell.similarity), colours[cell.winner]
        tile = Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, linewidth=0)
        tile.set(facecolor=to_rgba(colour, 0.45 if cell.decided else 0.13), edgecolor=to_rgba(colour, 0.3))
        tile.set_hatch(None if cell.decided else "//")
        ax.add_patch(tile)
        ax.text(x, y + 0.22, cell.winner, ha="center", va="center", weight="bold", fontsize=13)
        lines = [show_interval(cell.ranking[cell.winner].test)]
        lines += [f"lead over {cell.runner_up}:{stop}{cell.lead_text}"] if cell.lead is not None else []
        lines += [f"rule: {' or '.join(cell.recommended) or 'not run'}{stop}({cell.verdict})"]
        ax.text(x, y - 0.14, "\n".join(lines), ha="center", va="center", fontsize=size, linespacing=1.3)
    ax.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.5, len(similarities) - 0.5))
    ax.set_xticks(range(len(labels)), [show(n) for n in labels])
    ax.set_yticks(range(len(similarities)), [show(s) for s in similarities])
    ax.set(xlabel="labelled rows to fine-tune on", ylabel="similarity of the tasks")
    ax.grid(visible=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    winners = dict.fromkeys(cell.winner for cell in cells)
    handles = [Patch(facecolor=colours[name], alpha=0.45, label=name) for name in winners]
    handles.append(Patch(facecolor="#eeeeee", edgecolor="#aaaaaa", hatch="//", linewidth=0, label="lead undecided"))
    ax.figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
