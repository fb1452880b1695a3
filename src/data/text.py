"""``data=text``: the user's own texts, or pairs of texts, with a label each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from ..config.hparams import hparam
from ..errors import UserError, did_you_mean, listed
from ..notices import warn_once
from .text_source import LabeledTexts, LabeledTextSource
from .tokenization import read_text

OnEmpty = Enum("OnEmpty", ["refuse", "skip"])
FORMATS = {".csv": "CSV", ".tsv": "TSV", ".txt": "TSV", ".jsonl": "JSONL"}


@dataclass(frozen=True, kw_only=True)
class Text(LabeledTextSource):
    """Files with one example a row: CSV, TSV (``.tsv`` or ``.txt``, without quoting) or JSONL, by file ending.

    ``path``: the training file; ``val_path`` and ``test_path``: separate files, ``null`` splits fractions off the
    first. ``text``, ``second_text`` (of pairs) and ``label``: columns by name, or by number from 0 if ``header`` is
    false. ``empty``: whether empty texts are refused, or counted and left out. Paths are relative to the folder that
    the command is run in.
    """

    path: str = hparam()
    val_path: str | None = hparam(None)
    test_path: str | None = hparam(None)
    text: str = hparam("text")
    second_text: str | None = hparam(None)
    label: str = hparam("label")
    header: bool = hparam(True)
    empty: OnEmpty = hparam(OnEmpty.refuse)

    def texts(self) -> dict[str, LabeledTexts]:
        """Read the files."""
        files = {
            "train": ("path", self.path),
            "val": ("val_path", self.val_path),
            "test": ("test_path", self.test_path),
        }
        return {name: self._read(f"data.{key}={path}", path) for name, (key, path) in files.items() if path is not None}

    def _read(self, origin: str, path: str) -> LabeledTexts:
        sheet = read_sheet(path, origin, self.header)
        first = sheet.column("data.text", self.text)
        second = None if self.second_text is None else sheet.column("data.second_text", self.second_text)
        labels = [label.strip() for label in sheet.column("data.label", self.label)]
        bare = next((line for line, label in zip(sheet.lines, labels, strict=True) if not label), None)
        if bare is not None:
            raise UserError(f"{origin}: column '{self.label}' has no value in line {bare}; allowed: a label in each")
        found = LabeledTexts(first, second, labels, origin)
        return drop_empty(found, self.empty, [f"line {line}" for line in sheet.lines])


def drop_empty(texts: LabeledTexts, empty: OnEmpty, places: Sequence[str]) -> LabeledTexts:
    """Return the rows whose texts are not blank; log how many others there are.

    Raises:
        UserError: there are blank texts and ``empty`` refuses them; ``places`` names their rows.
    """
    kept = [row for row in range(len(texts.first)) if texts.first[row].strip()]
    if texts.second is not None:
        kept = [row for row in kept if texts.second[row].strip()]
    count = len(texts.first) - len(kept)
    if count and empty is OnEmpty.refuse:
        first = next(row for row, other in enumerate([*kept, None]) if row != other)
        raise UserError(
            f"{texts.origin} has {count} empty texts, the first in {places[first]}; "
            "allowed: none, or data.empty=skip to leave them out"
        )
    if count:
        warn_once(f"{texts.origin}: {count} of {len(texts.first)} rows have an empty text and are left out")
    return texts.only(kept)


class Sheet(NamedTuple):
    """The cells of a file."""

    origin: str
    columns: list[str]
    cells: list[list[str]]  # row by row
    lines: list[int]  # line of the file, from 1, in which each row ends

    def column(self, key: str, name: str) -> list[str]:
        """Return the cells of a column by name."""
        if name not in self.columns:
            raise UserError(
                f"{key}: {self.origin} has no column '{name}'{did_you_mean(name, self.columns)}; "
                f"it has {listed(self.columns)}"
            )
        place = self.columns.index(name)
        return [row[place] for row in self.cells]


def read_sheet(path: str, origin: str, header: bool) -> Sheet:
    """Return the cells of a CSV, TSV or JSONL file; without a header, columns are called ``0``, ``1`` ...

    Raises:
        UserError: there is no such file, its ending is unknown, or a line cannot be read; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{origin}: there is no such file")
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{origin} ends in '{file.suffix}'; allowed: {listed(FORMATS)}")
    return parse_sheet(read_text(file, origin), FORMATS[file.suffix.lower()], origin, header)


def parse_sheet(content: str, form: str, origin: str, header: bool) -> Sheet:
    """Return the cells of text in one of :data:`FORMATS`."""
    if form == "JSONL":
        return parse_jsonl(content, origin)
    cells, lines = parse_csv(content, origin) if form == "CSV" else parse_tsv(content)
    if len(cells) <= header:
        raise UserError(f"{origin} has no rows" + (" below its header" if header else ""))
    columns = cells.pop(0) if header else [str(number) for number in range(len(cells[0]))]
    lines = lines[header:]
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(columns):
            raise UserError(f"{origin} has {len(row)} columns in line {line}; allowed: {len(columns)} as above it")
    columns = [name.strip() for name in columns]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"{origin} has the column '{twice}' twice; allowed: each name once")
    return Sheet(origin, columns, cells, lines)


def parse_tsv(content: str) -> tuple[list[list[str]], list[int]]:
    """Return the cells of tab-separated text, without quoting, and the line number of each row."""
    kept = [(line.split("\t"), number) for number, line in enumerate(content.split("\n"), 1) if line]
    return [cells for cells, _ in kept], [number for _, number in kept]


def parse_csv(content: str, origin: str) -> tuple[list[list[str]], list[int]]:
    """Return the cells of comma-separated values (RFC 4180), and the line in which each row ends."""
    before = csv.field_size_limit(len(content) + 1)  # the default limit is 128 kB a cell
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        kept = [(cells, reader.line_num) for cells in reader if cells]
    except csv.Error as error:
        raise UserError(f"{origin} cannot be read as CSV in line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)
    return [cells for cells, _ in kept], [number for _, number in kept]


def parse_jsonl(content: str, origin: str) -> Sheet:
    """Return the values of one JSON object a line; a missing key is an empty cell."""
    objects, lines = [], []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except ValueError as error:
            raise UserError(f"{origin} is no JSON in line {number}: {error}") from error
        if not isinstance(one, dict):
            raise UserError(f"{origin} holds {line[:20]} in line {number}; allowed: a JSON object in each line")
        objects.append(one)
        lines.append(number)
    if not objects:
        raise UserError(f"{origin} has no rows")
    columns = list(dict.fromkeys(key for one in objects for key in one))
    return Sheet(origin, columns, [to_cells(one, columns) for one in objects], lines)


def to_cells(values: dict, columns: Sequence[str]) -> list[str]:
    """Return an object's values as strings."""
    found = [values.get(column) for column in columns]
    return ["" if value is None else value if isinstance(value, str) else json.dumps(value) for value in found]
