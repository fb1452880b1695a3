"""The picture of averaged weights: the metric of the target's test rows against that of the source's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..finished.average_jobs import GREEDY, UNIFORM
from .formatting import in_words
from .plots import COLOURS, picture


def draw_averages(table: pd.DataFrame, path: Path, new_head: bool) -> None:
    """Draw a marker for each row of the table of an average, joined along an interpolation."""
    metric = "accuracy" if "test_accuracy" in table else "loss"
    x, y = table[f"source_test_{metric}"].to_numpy(float), table[f"test_{metric}"].to_numpy(float)
    best = int(table["chosen"].to_numpy().argmax())
    where = f" (alpha {table['alpha'].to_numpy()[best]:g})" if "alpha" in table else ""
    with picture(path, f"Test rows of both tasks. Ring: the lowest validation loss{where}.", height=4.8) as (ax,):
        if where:
            ax.plot(x, y, "o-", color=COLOURS[0], label="interpolated")
            start = "pre-trained" + (" below a fine-tuned head" if new_head else "")
            ax.plot(x[0], y[0], "s", ms=9, color=COLOURS[1], label=start)
            ax.plot(x[-1], y[-1], "D", ms=9, color=COLOURS[2], label="fine-tuned")
        else:
            _draw_members(ax, table, x, y)
        ax.plot(x[best], y[best], "o", ms=17, mfc="none", mec=COLOURS[-1], mew=1.8)
        ax.margins(0.15)
        better = "higher" if metric == "accuracy" else "lower"
        ax.set_xlabel(f"source task: {in_words(f'test_{metric}')} ({better} is better)")
        ax.set_ylabel(f"target task: {in_words(f'test_{metric}')}\n({better} is better)")


def _draw_members(ax: Any, table: pd.DataFrame, x: np.ndarray, y: np.ndarray) -> None:
    """Draw jobs, hollow where the greedy soup left them out, and soups."""
    weights, member = table["weights"].to_numpy(), table["member"].to_numpy()
    job = ~np.isin(weights, (UNIFORM, GREEDY))
    ax.plot(x[job & member], y[job & member], "o", color=COLOURS[0], label="job in the soup")
    if (job & ~member).any():
        ax.plot(x[job & ~member], y[job & ~member], "o", mfc="white", color=COLOURS[0], label="job left out")
    for name, marker, colour in ((UNIFORM, "^", COLOURS[2]), (GREEDY, "D", COLOURS[1])):
        if (weights == name).any():
            ax.plot(x[weights == name], y[weights == name], marker, ms=9, color=colour, label=name, linestyle="none")
