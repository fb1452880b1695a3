"""``report=strategies``: which strategy is best, each at its own learning rate (what scripts/analyze_sweep.py says)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..analysis import analyze, make_question
from ..report import cost_columns, draw_pictures, legend, markdown_table, result_columns
from ..study import Report


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare everything that varies but the rate and the seed; see :func:`src.analysis.analysis.recommend`."""
    analysis = analyze(table, make_question(table))
    body = [markdown_table(result_columns(analysis), analysis.arms), legend(analysis).replace("*", "\\*")]
    body += ["What it costs:", markdown_table(cost_columns(), analysis.arms)]
    return Report(
        title=f"Which {' and '.join(analysis.question.arms) or 'job'} is best?",
        conclusion=analysis.recommendation,
        body="\n\n".join(body),
        pictures=draw_pictures(analysis, history, folder),
        notes=analysis.notes,
    )
