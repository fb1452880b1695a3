"""``data=digits``: pre-train on the digits 0 to 4, fine-tune on 5 to 9 with a new head."""

from __future__ import annotations

from dataclasses import dataclass

from src.data.base import Source, Table
from src.data.embedded import read_embedded


@dataclass(frozen=True)
class Digits(Source):
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), a classification of 5 and of 5 classes."""

    def tables(self) -> tuple[Table, Table, str]:
        """Return the low and the high digits."""
        rows = read_embedded("digits.csv.gz")
        x, y = rows[:, :-1] / 16.0, rows[:, -1].astype(int)
        low = y < 5
        return (
            Table(x[low], y[low], "the digits 0 to 4"),
            Table(x[~low], y[~low], "the digits 5 to 9"),
            "classification",
        )
