"""``data=csv``: the user's own two tables."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config.hparams import hparam
from ..errors import UserError, first_line, listed
from .base import DataSource, LabelKind, Table, check_column

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 50  # more distinct labels than this are taken for a regression's


@dataclass(frozen=True, kw_only=True)
class Csv(DataSource):
    """Two files with a header line: ``source_path`` to pre-train on, ``target_path`` to fine-tune on.

    ``label``: the column to predict. ``features``: the columns to predict it from, by name; ``null`` takes all others,
    which must then be the same in both files and in the same order. ``kind``: what the label is. Paths are relative to
    the folder that the command is run in.
    """

    source_path: str = hparam()
    target_path: str = hparam()
    label: str = hparam()
    features: tuple[str, ...] | None = hparam(None)
    kind: LabelKind = hparam(LabelKind.regression)

    def tables(self) -> tuple[Table, Table, str]:
        """Read both files."""
        paths = {"data.source_path": self.source_path, "data.target_path": self.target_path}
        frames = {f"{key}={path}": read_frame(path, f"{key}={path}") for key, path in paths.items()}
        features = {origin: self._features(list(frame.columns), origin) for origin, frame in frames.items()}
        if self.features is None:
            check_same(features)
        source, target = (self._table(frame, features[origin], origin) for origin, frame in frames.items())
        return source, target, self.kind.name

    def _features(self, columns: list[str], origin: str) -> list[str]:
        """Return the names of the feature columns of a file."""
        wanted = [c for c in columns if c != self.label] if self.features is None else list(self.features)
        for name, column in (("data.label", self.label), *(("data.features", feature) for feature in wanted)):
            check_column(name, column, columns, origin)
        if self.label in wanted:
            raise UserError(f"data.features names the label '{self.label}'; allowed: the other columns")
        return wanted

    def _table(self, frame: pd.DataFrame, features: list[str], origin: str) -> Table:
        """Return the features and the labels of a file."""
        import pandas as pd

        for column in (*features, *([self.label] if self.kind is LabelKind.regression else [])):
            if not pd.api.types.is_numeric_dtype(frame[column]):
                texts = frame[column].dropna().astype(str).to_numpy()
                wrong = texts[np.isnan(np.asarray(pd.to_numeric(texts, errors="coerce"), float))]
                text = next(iter(wrong), "")
                raise UserError(f"{origin}: column '{column}' holds '{text}'; allowed: numbers")
        labels = frame[self.label].to_numpy()
        missing = np.asarray(frame[self.label].isna())
        if missing.any():
            raise UserError(f"{origin}: column '{self.label}' has no value in row {missing.argmax()}")
        if self.kind is LabelKind.classification:
            check_classes(labels, f"{origin}: column '{self.label}'")
        return Table(frame[features].to_numpy(np.float64), labels, origin)


def read_frame(path: str, origin: str) -> pd.DataFrame:
    """Return the rows of a CSV file; none has more cells than the header."""
    import pandas as pd  # slow to import, and only this source needs it

    if not Path(path).is_file():
        raise UserError(f"{origin}: there is no such file")
    try:
        names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna().tolist()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{origin} has the column '{twice}' twice; allowed: each name once")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # By default, pandas takes the first of more cells for the row's name and shifts the others by a column.
            frame = pd.read_csv(path, index_col=False, low_memory=False)
    except pd.errors.ParserWarning as error:
        raise UserError(f"{origin} has rows with more cells than its header; allowed: a name for each") from error
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{origin} cannot be read as CSV: {first_line(error)}") from error
    if frame.empty:
        raise UserError(f"{origin} has no rows below its header")
    return frame


def check_same(features: dict[str, list[str]]) -> None:
    """Refuse two files, by what errors call them, whose feature columns differ or come in another order."""
    (first, columns), (second, others) = features.items()
    allowed = "allowed: the same columns in the same order, or data.features with the names of those to use"
    for origin, own, rest in ((second, others, columns), (first, columns, others)):
        if lacking := [column for column in rest if column not in own]:
            raise UserError(f"{origin} has no column {listed(lacking)}, which the other file has; {allowed}")
    if columns != others:
        column, other = next((a, b) for a, b in zip(columns, others, strict=True) if a != b)
        raise UserError(f"{second} has the column '{other}' where {first} has '{column}': the order differs; {allowed}")


def check_classes(labels: np.ndarray, where: str) -> None:
    """Refuse labels of a classification that are measurements: fractions, or too many different values."""
    if np.issubdtype(labels.dtype, np.floating) and (fractions := labels[labels % 1 != 0]).size:
        raise UserError(
            f"{where} holds {fractions[0]:g}; allowed with data.kind=classification: whole numbers or words"
        )
    if (count := len(set(labels.tolist()))) > MAX_CLASSES:
        raise UserError(
            f"{where} holds {count} different values; allowed with data.kind=classification: at most {MAX_CLASSES}"
        )
