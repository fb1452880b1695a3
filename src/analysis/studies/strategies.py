"""``report=strategies``: which strategy is best at its own learning rate? The same as ``scripts/analyze_sweep.py``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..comparison import compare, make_spec
from ..formatting import markdown_table
from ..pages import cost_columns, draw_pictures, explain_results, result_columns, title_of
from ..reports import Report


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare everything that varies except the rate and the seed, see :mod:`src.analysis.comparison`."""
    found = compare(table, make_spec(table))
    body = [markdown_table(result_columns(found), found.arms), explain_results(found).replace("*", "\\*")]
    body += ["Cost:", markdown_table(cost_columns(found), found.arms)]
    return Report(title_of(found), found.recommendation, body, draw_pictures(found, history, folder), found.notes)
