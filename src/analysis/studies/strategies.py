"""``report=strategies``: which strategy is best at its own learning rate? The same as ``scripts/analyze_sweep.py``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..comparison import compare, make_spec
from ..pages import comparison_report
from ..reports import Report


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare everything that varies except the rate and the seed, see :mod:`src.analysis.comparison`."""
    return comparison_report(compare(table, make_spec(table)), history, folder)
