"""``data=csv``: the user's own two tables."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from ..config.hparams import hparam
from ..errors import UserError, did_you_mean, listed
from .base import Source, Table

Kind = Enum("Kind", ["regression", "classification"])


@dataclass(frozen=True, kw_only=True)
class Csv(Source):
    """Two files with a header line: ``source_path`` to pre-train on, ``target_path`` to fine-tune on.

    ``label``: the column to predict. ``features``: the columns to predict it from; ``null`` takes all others. ``kind``:
    what the label is. Paths are relative to the folder that the command is run in.
    """

    source_path: str = hparam()
    target_path: str = hparam()
    label: str = hparam()
    features: tuple[str, ...] | None = hparam(None)
    kind: Kind = hparam(Kind.regression)

    def tables(self) -> tuple[Table, Table, str]:
        """Read both files."""
        return (
            self._read("data.source_path", self.source_path),
            self._read("data.target_path", self.target_path),
            self.kind.name,
        )

    def _read(self, key: str, path: str) -> Table:
        import pandas as pd  # slow to import, and only this source needs it

        origin = f"{key}={path}"
        if not Path(path).is_file():
            raise UserError(f"{origin}: there is no such file")
        try:
            frame = pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
            raise UserError(f"{origin} cannot be read as CSV: {str(error).splitlines()[0]}") from error
        if frame.empty:
            raise UserError(f"{origin} has no rows below its header")
        columns = [str(column) for column in frame.columns]
        wanted = [c for c in columns if c != self.label] if self.features is None else list(self.features)
        for name, column in (("data.label", self.label), *(("data.features", feature) for feature in wanted)):
            if column not in columns:
                raise UserError(
                    f"{name}: {origin} has no column '{column}'{did_you_mean(column, columns)}; "
                    f"it has {listed(columns)}"
                )
        if self.label in wanted:
            raise UserError(f"data.features names the label '{self.label}'; allowed: the other columns")
        for column in (*wanted, *([self.label] if self.kind is Kind.regression else [])):
            if not pd.api.types.is_numeric_dtype(frame[column]):
                text = next((str(v) for v in frame[column] if not _is_number(v)), "")
                raise UserError(f"{origin}: column '{column}' holds '{text}'; allowed: numbers")
        missing = np.asarray(frame[self.label].isna())
        if missing.any():
            row = int(np.argmax(missing))
            raise UserError(f"{origin}: column '{self.label}' has no value in row {row}")
        return Table(frame[wanted].to_numpy(np.float64), frame[self.label].to_numpy(), origin)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
