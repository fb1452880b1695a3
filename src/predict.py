"""What a finished job says of new texts: ``python -m src.predict checkpoint=JOB input=FILE output=FILE``.

The input has the columns of the job's data, without labels; the output has a row a text, in the input's order, and is
whole or absent.
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
from .finished.predictions import Prediction, load_predictor
from .training.compiled import prepare_jax

Format = Enum("Format", ["csv", "tsv", "jsonl", "lines", "columns", "squad"])
ENDINGS = {  # .txt is none of them: lines, tabs or columns, and each would read the others without a word
    ".csv": Format.csv,
    ".tsv": Format.tsv,
    ".jsonl": Format.jsonl,
    ".conll": Format.columns,
    ".json": Format.squad,
}
OUTPUTS = (".csv", ".jsonl")
USAGE = """python -m src.predict checkpoint=JOB_FOLDER input=FILE output=FILE.csv

  checkpoint=FOLDER  a completed job of texts
  input=FILE         .csv, .tsv, .jsonl, .conll (a word a line), .json (SQuAD's); others with format=...; - reads stdin
  output=FILE        .csv or .jsonl
  format=NAME        of the input: csv, tsv, jsonl, lines (a text each; stdin's default), columns, squad
  text=COLUMN        second_text=COLUMN header=false: where they differ from the job's data
  overwrite=true     take the place of an output that is there"""


@dataclass(frozen=True)
class Options:
    """The command line."""

    checkpoint: str = hparam()
    input: str = hparam()
    output: str = hparam()
    format: Format | None = hparam(None)
    text: str | None = hparam(None)
    second_text: str | None = hparam(None)
    header: bool | None = hparam(None)
    overwrite: bool = hparam(False)


class Asked(NamedTuple):
    """New texts, as they were found."""

    first: list[str]
    second: list[str] | None  # of pairs; of questions, their contexts
    names: list[str] | None = None  # the ids of questions, where their file has them


def options_of(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        UserError: an argument that is no ``key=value``, an unknown key, a key without its value, or a wrong value.
    """
    known = list(Options.__dataclass_fields__)
    values: dict[str, str] = {}
    for argument in arguments:
        key, mark, value = argument.partition("=")
        if not mark or key not in known:
            raise UserError(
                f"there is no argument '{key}'{did_you_mean(key, known)}; allowed: "
                f"{', '.join(f'{name}=...' for name in known)}"
            )
        values[key] = value
    return typed(Options, {key: value for key, value in values.items() if value}, "")


def check_output(options: Options) -> Path:
    """Return where the output goes.

    Raises:
        UserError: its ending is unknown, or it is there already.
    """
    output = Path(options.output).absolute()
    if output.suffix.lower() not in OUTPUTS:
        raise UserError(f"output={options.output} ends in '{output.suffix}'; allowed: {listed(OUTPUTS)}")
    if output.exists() and not (options.overwrite and output.is_file()):
        raise UserError(f"output={options.output} is there already; allowed: a new file, or overwrite=true")
    return output


# --- reading ---------------------------------------------------------------------------------------------------------


def read_asked(options: Options, source: Any) -> Asked:
    """Return the texts of the input, in the columns of a job's data.

    Args:
        options: the command line.
        source: the job's data, whose settings name the columns.

    Raises:
        UserError: the input cannot be read, has no such column, or has an empty text.
    """
    origin = f"input={options.input}"
    form = format_of(options, origin)
    takes = {Format.columns: "conll", Format.squad: "squad"}.get(form)
    if takes not in (None, option_name(source)):
        raise UserError(
            f"{origin} is taken as format={form.name}, and the job has data={option_name(source)}; "
            "allowed: format=csv, tsv, jsonl, lines"
        )
    first, second = columns_of(options, source)
    content = content_of(options, origin)
    if form is Format.squad:
        return of_squad(content, origin)
    if form is Format.columns:
        return of_columns(content, source.token_column, origin)
    if form is Format.lines:
        return of_lines(content, second is not None, origin)
    header = getattr(source, "header", True) if options.header is None else options.header
    sheet = parse_sheet(content, form.name.upper(), origin, header)
    others = None if second is None else sheet.column("second_text", second)
    return with_words(Asked(sheet.column("text", first), others), [f"line {line}" for line in sheet.lines], origin)


def format_of(options: Options, origin: str) -> Format:
    """Return the input's format: as told, or by its ending."""
    if options.format is not None:
        return options.format
    if options.input == "-":
        return Format.lines
    ending = Path(options.input).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(
            f"{origin} ends in '{ending}'; allowed: {listed(ENDINGS)}, or beside it "
            f"format={'|'.join(Format.__members__)}"
        )
    return ENDINGS[ending]


def content_of(options: Options, origin: str) -> str:
    """Return the input's text, from its file or from stdin."""
    if options.input == "-":
        return decode_utf8(sys.stdin.buffer.read(), "stdin", origin)
    if not Path(options.input).is_file():
        raise UserError(f"{origin}: there is no such file")
    return read_text(Path(options.input), origin)


def columns_of(options: Options, source: Any) -> tuple[str, str | None]:
    """Return the columns of the text and, of pairs, of the second one: as told, or those of the job's data."""
    if option_name(source) == "squad":
        first, second = "question", "context"
    elif option_name(source) == "docstrings":
        first, second = "text", "second_text" if source.task.name == "follows" else None
    else:
        first, second = getattr(source, "text", "text"), getattr(source, "second_text", None)
    if options.second_text is not None and second is None:
        raise UserError(f"second_text is {options.second_text}, and the job learned from single texts; allowed: none")
    return options.text or first, options.second_text or second


def of_lines(content: str, pairs: bool, origin: str) -> Asked:
    """Return a text a line; of pairs, the two with a tab between them."""
    lines = content.removesuffix("\n").split("\n") if content else []
    places = [f"line {number}" for number in range(1, len(lines) + 1)]
    if not pairs:
        return with_words(Asked(lines, None), places, origin)
    cells = [line.split("\t") for line in lines]
    for place, own in zip(places, cells, strict=True):
        if len(own) != 2:
            raise UserError(f"{origin} has {len(own)} texts in {place}; allowed: two, with a tab between them")
    return with_words(Asked([a for a, _ in cells], [b for _, b in cells]), places, origin)


def of_columns(content: str, column: int, origin: str) -> Asked:
    """Return sentences from columns: a word a line, an empty line between two sentences; tags are left aside."""
    sentences: list[list[str]] = [[]]
    for _, cells in lines_of_columns(content, column + 1, origin):
        if cells:
            sentences[-1].append(cells[column])
        else:
            sentences.append([])
    return with_words(Asked([" ".join(words) for words in sentences if words], None), [], origin)


def of_squad(content: str, origin: str) -> Asked:
    """Return the questions of a file in SQuAD's format; it needs no answers."""
    found = questions_in(content, origin, answered=False)
    asked = Asked([one.text for one in found], [one.context for one in found], [one.name for one in found])
    return with_words(asked, [f"question {one.name}" for one in found], origin)


def with_words(asked: Asked, places: Sequence[str], origin: str) -> Asked:
    """Return texts of which none is empty.

    Raises:
        UserError: one is, or there are none; ``places`` are where they stand.
    """
    if not asked.first:
        raise UserError(f"{origin} has no texts; allowed: at least one")
    pairs = zip(asked.first, asked.second or asked.first, strict=True)
    empty = [row for row, (a, b) in enumerate(pairs) if not a.strip() or not b.strip()]
    if empty:
        raise UserError(
            f"{origin} has {len(empty)} empty texts, the first in {places[empty[0]]}; allowed: a word in each"
        )
    return asked


# --- writing ---------------------------------------------------------------------------------------------------------


def joined(asked: Asked, said: Prediction) -> list[dict[str, Any]]:
    """Return each text with what is said of it; of contexts, which are long, only the questions."""
    found = []
    for row, own in enumerate(said.objects):
        one: dict[str, Any] = {} if asked.names is None else {"id": asked.names[row]}
        if "words" not in own:
            one["question" if "answer" in own else "text"] = asked.first[row]
        if asked.second is not None and "answer" not in own:
            one["second_text"] = asked.second[row]
        found.append(one | own)
    return found


def lines_of(objects: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield objects as lines of a table: a column a class, and of tags a line a word."""
    for number, one in enumerate(objects, 1):
        if "words" in one:
            for word, tag in zip(one["words"], one["tags"], strict=True):
                yield {"sentence": number, "word": word, "tag": tag}
        else:
            shares = {f"probability_{name}": share for name, share in one.get("probabilities", {}).items()}
            yield {key: value for key, value in one.items() if key != "probabilities"} | shares


def write(objects: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write objects as CSV or JSONL; the file appears whole or not at all."""
    page = io.StringIO(newline="")
    if output.suffix.lower() == ".jsonl":
        page.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
    else:
        lines = list(lines_of(objects))
        table = csv.DictWriter(page, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            file.write(page.getvalue().encode())
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from error


def summary(said: Prediction) -> str:
    """Return what was said, in a line: how many texts, how often each label, and how many were cut."""
    counts = Counter(one["label"] for one in said.objects if "label" in one)
    counts.update(tag for one in said.objects for tag in one.get("tags", ()) if tag is not None)
    often = [f"{name}: {count}" for name, count in sorted(counts.items())]
    parts = [f"{len(said.objects)} texts", *([listed(often)] if often else [])]
    if said.cut:
        parts.append(f"{said.cut} of them cut to {said.length} tokens")
    return ", ".join(parts)


def main() -> None:
    """Run the command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE)
        return
    options = options_of(sys.argv[1:])
    output = check_output(options)
    predictor = load_predictor(Path(options.checkpoint))
    asked = read_asked(options, predictor.source)
    prepare_jax()
    said = predictor.predict(asked.first, asked.second)
    write(joined(asked, said), output)
    print(f"{summary(said)}; written to {options.output}")


if __name__ == "__main__":
    run_script(main)
