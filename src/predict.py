"""Predictions of a finished job for new texts: ``python -m src.predict checkpoint=JOB input=FILE output=FILE``.

The input has the columns of the job's data, without labels; the output has a row a text, in the input's order.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from .config.hparams import hparam
from .config.schema import option_name, typed
from .data.conll import lines_of_columns
from .data.squad import questions_in
from .data.text import parse_sheet
from .data.tokenization import decode_utf8, read_text
from .errors import UserError, did_you_mean, listed, run_script
from .files import atomic_write
from .finished.predictor import Prediction, load_predictor
from .training.compiled import prepare_jax

InputFormat = Enum("InputFormat", ["csv", "tsv", "jsonl", "lines", "columns", "squad"])
FORMAT_BY_SUFFIX = {  # without .txt, which may be lines, tabs or columns
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
    ".jsonl": InputFormat.jsonl,
    ".conll": InputFormat.columns,
    ".json": InputFormat.squad,
}
OUTPUT_SUFFIXES = (".csv", ".jsonl")
USAGE = """python -m src.predict checkpoint=JOB_FOLDER input=FILE output=FILE.csv

  checkpoint=FOLDER  a completed job of texts
  input=FILE         .csv, .tsv, .jsonl, .conll (a word a line), .json (SQuAD); others with format=...; - reads stdin
  output=FILE        .csv or .jsonl
  format=NAME        of the input: csv, tsv, jsonl, lines (a text each; stdin's default), columns, squad
  text=COLUMN        second_text=COLUMN header=false: where they differ from the job's data
  overwrite=true     replace an output that exists"""


@dataclass(frozen=True)
class PredictOptions:
    """The command line."""

    checkpoint: str = hparam()
    input: str = hparam()
    output: str = hparam()
    format: InputFormat | None = hparam(None)
    text: str | None = hparam(None)
    second_text: str | None = hparam(None)
    header: bool | None = hparam(None)
    overwrite: bool = hparam(False)


class InputTexts(NamedTuple):
    """The texts of the input."""

    first: list[str]
    second: list[str] | None  # of pairs; of questions, their contexts
    ids: list[str] | None = None  # of questions


def parse_options(arguments: Sequence[str]) -> PredictOptions:
    """Read the command line.

    Raises:
        UserError: an argument that is not ``key=value``, an unknown or missing key, or a wrong value.
    """
    known = list(PredictOptions.__dataclass_fields__)
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in known:
            raise UserError(
                f"there is no argument '{key}'{did_you_mean(key, known)}; allowed: "
                f"{', '.join(f'{name}=...' for name in known)}"
            )
        values[key] = value
    return typed(PredictOptions, {key: value for key, value in values.items() if value}, "")


def check_output(options: PredictOptions) -> Path:
    """Return the path of the output.

    Raises:
        UserError: its suffix is unknown, or it exists.
    """
    output = Path(options.output).absolute()
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"output={options.output} ends in '{output.suffix}'; allowed: {listed(OUTPUT_SUFFIXES)}")
    if output.exists() and not (options.overwrite and output.is_file()):
        raise UserError(f"output={options.output} exists already; allowed: a new file, or overwrite=true")
    return output


# --- reading ---------------------------------------------------------------------------------------------------------


def read_input(options: PredictOptions, source: Any) -> InputTexts:
    """Return the texts of the input.

    Args:
        options: the command line.
        source: the job's data, whose settings name the columns.

    Raises:
        UserError: the input cannot be read, lacks a column, or has an empty text.
    """
    origin = f"input={options.input}"
    form = input_format(options, origin)
    data = {InputFormat.columns: "conll", InputFormat.squad: "squad"}.get(form)
    if data not in (None, option_name(source)):
        raise UserError(
            f"{origin} has format={form.name}, and the job has data={option_name(source)}; "
            "allowed: format=csv, tsv, jsonl, lines"
        )
    first, second = text_columns(options, source)
    content = read_content(options, origin)
    if form is InputFormat.squad:
        return parse_squad(content, origin)
    if form is InputFormat.columns:
        return parse_columns(content, source.token_column, origin)
    if form is InputFormat.lines:
        return parse_lines(content, second is not None, origin)
    header = getattr(source, "header", True) if options.header is None else options.header
    sheet = parse_sheet(content, form.name.upper(), origin, header)
    others = None if second is None else sheet.column("second_text", second)
    texts = InputTexts(sheet.column("text", first), others)
    return check_texts(texts, [f"line {line}" for line in sheet.lines], origin)


def input_format(options: PredictOptions, origin: str) -> InputFormat:
    """Return the input's format: as set, else by its suffix."""
    if options.format is not None:
        return options.format
    if options.input == "-":
        return InputFormat.lines
    suffix = Path(options.input).suffix.lower()
    if suffix not in FORMAT_BY_SUFFIX:
        raise UserError(
            f"{origin} ends in '{suffix}'; allowed: {listed(FORMAT_BY_SUFFIX)}, or with it "
            f"format={'|'.join(InputFormat.__members__)}"
        )
    return FORMAT_BY_SUFFIX[suffix]


def read_content(options: PredictOptions, origin: str) -> str:
    """Return the text in the input file, or on stdin."""
    if options.input == "-":
        return decode_utf8(sys.stdin.buffer.read(), "stdin", origin)
    return read_text(Path(options.input), origin)


def text_columns(options: PredictOptions, source: Any) -> tuple[str, str | None]:
    """Return the columns of the text and, of pairs, of the second one: as set, else those of the job's data."""
    if option_name(source) == "squad":
        first, second = "question", "context"
    elif option_name(source) == "docstrings":
        first, second = "text", "second_text" if source.task.name == "follows" else None
    else:
        first, second = getattr(source, "text", "text"), getattr(source, "second_text", None)
    if options.second_text is not None and second is None:
        raise UserError(f"second_text is {options.second_text}, and the job was trained on single texts; allowed: none")
    return options.text or first, options.second_text or second


def parse_lines(content: str, pairs: bool, origin: str) -> InputTexts:
    """Return a text a line; of pairs, two with a tab between them."""
    lines = content.removesuffix("\n").split("\n") if content else []
    places = [f"line {number}" for number in range(1, len(lines) + 1)]
    if not pairs:
        return check_texts(InputTexts(lines, None), places, origin)
    cells = [line.split("\t") for line in lines]
    for place, own in zip(places, cells, strict=True):
        if len(own) != 2:
            raise UserError(f"{origin} has {len(own)} texts in {place}; allowed: two, with a tab between them")
    return check_texts(InputTexts([a for a, _ in cells], [b for _, b in cells]), places, origin)


def parse_columns(content: str, column: int, origin: str) -> InputTexts:
    """Return sentences of a word a line, with an empty line between two sentences; other columns are ignored."""
    sentences: list[list[str]] = [[]]
    for _, cells in lines_of_columns(content, column + 1, origin):
        if cells:
            sentences[-1].append(cells[column])
        else:
            sentences.append([])
    return check_texts(InputTexts([" ".join(words) for words in sentences if words], None), [], origin)


def parse_squad(content: str, origin: str) -> InputTexts:
    """Return the questions of a file in SQuAD's format; answers are not needed."""
    found = questions_in(content, origin, answered=False)
    texts = InputTexts([one.text for one in found], [one.context for one in found], [one.name for one in found])
    return check_texts(texts, [f"question {one.name}" for one in found], origin)


def check_texts(texts: InputTexts, places: Sequence[str], origin: str) -> InputTexts:
    """Return the texts.

    Raises:
        UserError: there are none, or one is empty; ``places`` says where they are.
    """
    if not texts.first:
        raise UserError(f"{origin} has no texts; allowed: at least one")
    pairs = zip(texts.first, texts.second or texts.first, strict=True)
    empty = [row for row, (a, b) in enumerate(pairs) if not a.strip() or not b.strip()]
    if empty:
        raise UserError(
            f"{origin} has {len(empty)} empty texts, the first in {places[empty[0]]}; allowed: a word in each"
        )
    return texts


# --- writing ---------------------------------------------------------------------------------------------------------


def output_rows(texts: InputTexts, prediction: Prediction) -> list[dict[str, Any]]:
    """Return the texts with their predictions; contexts, which are long, are left out."""
    rows = []
    for i, predicted in enumerate(prediction.rows):
        row: dict[str, Any] = {} if texts.ids is None else {"id": texts.ids[i]}
        if "words" not in predicted:
            row["question" if "answer" in predicted else "text"] = texts.first[i]
        if texts.second is not None and "answer" not in predicted:
            row["second_text"] = texts.second[i]
        rows.append(row | predicted)
    return rows


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table: a column for each class, and a row for each tagged word."""
    for number, row in enumerate(rows, 1):
        if "words" in row:
            for word, tag in zip(row["words"], row["tags"], strict=True):
                yield {"sentence": number, "word": word, "tag": tag}
        else:
            probabilities = {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}
            yield {key: value for key, value in row.items() if key != "probabilities"} | probabilities


def write(rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write rows as CSV or JSONL, whole or not at all."""
    page = io.StringIO(newline="")
    if output.suffix.lower() == ".jsonl":
        page.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        lines = list(flat_rows(rows))
        table = csv.DictWriter(page, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            file.write(page.getvalue().encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error


def summary(prediction: Prediction) -> str:
    """Return one line: the number of texts, the count of each label, and the number of truncated texts."""
    counts = Counter(row["label"] for row in prediction.rows if "label" in row)
    counts.update(tag for row in prediction.rows for tag in row.get("tags", ()) if tag is not None)
    labels = [f"{name}: {count}" for name, count in sorted(counts.items())]
    parts = [f"{len(prediction.rows)} texts", *([listed(labels)] if labels else [])]
    if prediction.truncated:
        parts.append(f"{prediction.truncated} of them truncated to {prediction.max_length} tokens")
    return ", ".join(parts)


def main() -> None:
    """Run the command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    options = parse_options(sys.argv[1:])
    output = check_output(options)
    predictor = load_predictor(Path(options.checkpoint))
    texts = read_input(options, predictor.source)
    prepare_jax()
    prediction = predictor.predict(texts.first, texts.second)
    write(output_rows(texts, prediction), output)
    print(f"{summary(prediction)}; written to {options.output}")


if __name__ == "__main__":
    run_script(main)
