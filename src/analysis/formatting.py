"""Numbers, names and tables as text, for the console, Markdown pages and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .statistics import ConfidenceInterval, mean_interval

Item = TypeVar("Item")
Columns = Mapping[str, Callable[[Item], str]]  # header of a column: function from a row's item to its cell
WORDS = {"val": "validation", "r2": "R²", "lr": "learning rate", "lr_fine": "fine-tuning learning rate"}


def in_words(name: str) -> str:
    """Write a column's name in words: ``val_loss`` is ``validation loss``."""
    return WORDS.get(name) or " ".join(WORDS.get(word, word) for word in name.split("_"))


def count_of(n: int, noun: str) -> str:
    """Write a number with its noun: ``2 seeds``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def too_few(n: int, noun: str) -> str:
    """Write the conclusion for fewer than two seeds."""
    return f"Undecided: {count_of(n, noun)} {'gives' if n == 1 else 'give'} no interval; run more seeds."


def show(value: Any) -> str:
    """Write a configuration value in at most 6 digits; a missing value is a dash."""
    if value != value:  # NaN marks missing values in tables
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_choice(chosen: Mapping[str, Any]) -> str:
    """Write tuned values, ``lr_fine=0.01``, without the settings that an arm does not have."""
    known = {name: value for name, value in chosen.items() if value == value}
    return ", ".join(f"{name}={show(value)}" for name, value in known.items()) or "its only point"


def show_interval(interval: ConfidenceInterval, sign: bool = False) -> str:
    """Write ``0.512 ± 0.034`` with two digits of the half-width, or the mean alone where there is no interval."""
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


def show_mean(values: Iterable[float]) -> str:
    """Write the mean of values with its interval."""
    return show_interval(mean_interval(values))


def show_difference(difference: ConfidenceInterval | None, missing: str = "-") -> str:
    """Write a paired difference: ``*`` marks an interval that excludes 0; identical values are reported as such."""
    if difference is None:
        return missing
    text = show_interval(difference, sign=True)
    if difference.identical:
        return f"{text} (identical)" if difference.mean == 0 else f"{text} (same at every seed)"
    return text + " *" * difference.excludes_zero


def show_number(value: float) -> str:
    """Write a number in at most 4 digits; NaN is a dash."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def show_count(value: float) -> str:
    """Write a large number in few characters: ``32.9k``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.3g}{unit}"
    return show_number(value)


def show_share(share: float) -> str:
    """Write a share in percent."""
    return "-" if math.isnan(share) else f"{100 * share:.3g} %"


def markdown_table(columns: Columns[Item], rows: Sequence[Item]) -> str:
    """Write a Markdown table with one line for each item."""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[cell(row).replace("|", "\\|").replace("*", "\\*") for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
