"""``data=text``: the user's own texts, or pairs of texts, with a label each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from ..config.hparams import hparam
from ..errors import UserError, listed
from ..notices import warn_once
from .base import check_column
from .text_source import LabeledTexts, LabeledTextSource, TextFileSource
from .tokenization import read_text

OnEmpty = Enum("OnEmpty", ["refuse", "skip"])
FORMATS = {".csv": "CSV", ".tsv": "TSV", ".txt": "TSV", ".jsonl": "JSONL"}


@dataclass(frozen=True, kw_only=True)
class Text(LabeledTextSource, TextFileSource):
    """Files with one example a row: CSV, TSV (``.tsv`` or ``.txt``, without quoting) or JSONL, by file ending.

    ``text``, ``second_text`` (of pairs) and ``label``: columns by name, or by number from 0 if ``header`` is false.
    ``empty``: whether empty texts are refused, or counted and left out.
    """

    text: str = hparam("text")
    second_text: str | None = hparam(None)
    label: str = hparam("label")
    header: bool = hparam(True)
    empty: OnEmpty = hparam(OnEmpty.refuse)

    def texts(self) -> dict[str, LabeledTexts]:
        """Read the files."""
        return {"train": self._read(self.path, f"data.path={self.path}"), **self.read_separate(self._read)}

    def _read(self, path: str, origin: str) -> LabeledTexts:
        content, suffix = read_text(Path(path), origin), Path(path).suffix
        if suffix.lower() not in FORMATS:
            raise UserError(f"{origin} ends in '{suffix}'; allowed: {listed(FORMATS)}")
        sheet = parse_sheet(content, FORMATS[suffix.lower()], origin, self.header)
        first = sheet.column("data.text", self.text)
        second = None if self.second_text is None else sheet.column("data.second_text", self.second_text)
        labels = [label.strip() for label in sheet.column("data.label", self.label)]
        if "" in labels:
            line = sheet.lines[labels.index("")]
            raise UserError(f"{origin}: column '{self.label}' has no value in line {line}; allowed: a label in each")
        found = LabeledTexts(first, second, labels, origin)
        return drop_empty(found, self.empty, [f"line {line}" for line in sheet.lines])


def drop_empty(texts: LabeledTexts, empty: OnEmpty, places: Sequence[str]) -> LabeledTexts:
    """Return the rows whose texts are not blank; refuse or log the others, whose ``places`` errors name."""
    seconds = texts.first if texts.second is None else texts.second
    blank = [not (a.strip() and b.strip()) for a, b in zip(texts.first, seconds, strict=True)]
    if any(blank) and empty is OnEmpty.refuse:
        raise UserError(
            f"{texts.origin} has {sum(blank)} empty texts, the first in {places[blank.index(True)]}; "
            "allowed: none, or data.empty=skip to leave them out"
        )
    if any(blank):
        warn_once(f"{texts.origin}: {sum(blank)} of {len(blank)} rows have an empty text and are left out")
    return texts.only(row for row, missing in enumerate(blank) if not missing)


class Sheet(NamedTuple):
    """The cells of a file."""

    origin: str
    columns: list[str]
    cells: list[list[str]]  # row by row
    lines: list[int]  # line of the file, from 1, in which each row ends

    def column(self, key: str, name: str) -> list[str]:
        """Return the cells of a column by name."""
        check_column(key, name, self.columns, self.origin)
        place = self.columns.index(name)
        return [row[place] for row in self.cells]


def parse_sheet(content: str, form: str, origin: str, header: bool) -> Sheet:
    """Return the cells of CSV, TSV or JSONL; without a header, columns are called ``0``, ``1`` ..."""
    if form == "JSONL":
        return parse_jsonl(content, origin)
    cells, lines = parse_rows(content, form, origin)
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


def parse_rows(content: str, form: str, origin: str) -> tuple[list[list[str]], list[int]]:
    """Return the cells of CSV (RFC 4180) or of TSV without quoting, and the line in which each row ends."""
    before = csv.field_size_limit(len(content) + 1)  # the default limit is 128 kB a cell
    dialect: dict[str, Any] = {} if form == "CSV" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, **dialect)
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
    return Sheet(origin, columns, [[to_cell(one.get(column)) for column in columns] for one in objects], lines)


def to_cell(value: Any) -> str:
    """Return a JSON value as a string."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
