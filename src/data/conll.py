"""``data=conll``: a tag for each word, from files of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..config.hparams import NATURAL, hparam
from ..errors import UserError, listed
from ..metrics.text import entity_scores
from .packing import IGNORE, Example, scatter_by_token
from .text_source import TextFileSource, TextTransfer
from .tokenization import Vocabulary, read_text

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"  # marks a line between documents


@dataclass(frozen=True, kw_only=True)
class Conll(TextFileSource):
    """Token classification, such as named entities: one word a line in columns, an empty line between sentences.

    ``token_column`` and ``tag_column``: column numbers from 0, ``null`` for the last. Tags are IOB1 or IOB2; IOB1 is
    converted to IOB2, in which each entity begins with ``B-``. A word's tag is predicted at its first token, as in
    Devlin et al. 2019 (section 5.3); its other tokens have the target -1. Words beyond ``max_seq_len`` are truncated
    and not scored.
    """

    token_column: int = hparam(0, NATURAL)
    tag_column: int | None = hparam(None, NATURAL)

    def load(self) -> TextTransfer:
        """Read, split, convert and encode."""
        origin = f"data.path={self.path}"
        given, rng = self.read_separate(self._read), np.random.default_rng(self.split_seed)
        parts = self.split(self._read(self.path, origin), given, rng, origin)
        classes = tags_of(parts, origin)
        vocabulary = self.vocabulary(lambda: [" ".join(one.words) for one in parts["train"]])
        encoded = {name: self._encoded(part, classes, vocabulary) for name, part in parts.items()}
        self.warn_truncated({name: [one.truncated for one in part] for name, part in encoded.items()}, origin)
        wide = self.row_width({name: [one.example for one in part] for name, part in encoded.items()})
        chosen = self.train_subset(np.arange(len(encoded["train"])), None, origin)
        encoded["train"] = [encoded["train"][row] for row in chosen]
        rows = self.rows(
            {name: [one.example for one in part] for name, part in encoded.items()}, wide, vocabulary, origin
        )
        targets = {name: scatter_by_token(rows[name], [one.labels for one in part]) for name, part in encoded.items()}
        return ConllTransfer.without_source(
            "labels", rows, targets, len(classes), vocabulary=vocabulary, labels=tuple(classes)
        )

    def _read(self, path: str, origin: str) -> list[Sentence]:
        return read_sentences(read_text(Path(path), origin), self.token_column, self.tag_column, origin)

    def _encoded(self, sentences: Sequence[Sentence], classes: Sequence[str], vocabulary: Vocabulary) -> list[Tagged]:
        number = {tag: i for i, tag in enumerate(classes)}
        pieces = vocabulary.encode_words([one.words for one in sentences])
        return [
            align_tags(words, [number[tag] for tag in one.tags], vocabulary, self.max_seq_len)
            for words, one in zip(pieces, sentences, strict=True)
        ]


@dataclass(frozen=True)
class ConllTransfer(TextTransfer):
    """Rows of sentences, scored by entities."""

    scored: ClassVar[bool] = True

    def scores(self, part: str, outputs: Float[np.ndarray, "N L K"]) -> dict[str, float]:
        """Return precision, recall and F1 of the entities of all types together, read as ``conlleval`` reads tags."""
        x, y = self.target[part]
        true, said = (group_by_sentence(x, y, numbers, self.labels) for numbers in (y, np.argmax(outputs, axis=-1)))
        found = entity_scores(true, said)["micro"]
        return {"entity_f1": found.f1, "entity_precision": found.precision, "entity_recall": found.recall}


def group_by_sentence(
    x: Int[np.ndarray, "N 3 L"], y: Int[np.ndarray, "N L"], numbers: Int[np.ndarray, "N L"], labels: Sequence[str]
) -> list[list[str]]:
    """Return the tags of each sentence: the labels of ``numbers`` at the positions where ``y`` has a target."""
    rows, columns = np.nonzero(y != IGNORE)
    sentence = np.stack([rows, x[rows, 2, columns]])  # packed rows hold several sentences
    begins = np.flatnonzero(np.any(np.diff(sentence, axis=1) != 0, axis=0)) + 1
    return [[labels[int(number)] for number in own] for own in np.split(numbers[rows, columns], begins)]


class Sentence(NamedTuple):
    """Words and their tags in IOB2."""

    words: list[str]
    tags: list[str]


class Tagged(NamedTuple):
    """A sentence as tokens."""

    example: Example
    labels: Int[np.ndarray, " T"]  # -1 except at the first token of each word
    truncated: bool


def align_tags(
    words: Sequence[Int[np.ndarray, " P"]], tags: Sequence[int], vocabulary: Vocabulary, length: int
) -> Tagged:
    """Return a sentence as at most ``length`` tokens; only whole words are kept."""
    front, back = vocabulary.cls_ids, vocabulary.sep_ids
    ends = np.cumsum([len(word) for word in words])
    fits = int(np.searchsorted(ends, length - len(front) - len(back), side="right"))
    ids, labels = list(front), [IGNORE] * len(front)
    for word, tag in zip(words[:fits], tags[:fits], strict=True):
        ids += word.tolist()
        labels += [tag, *[IGNORE] * (len(word) - 1)]
    ids, labels = np.array([*ids, *back], np.int32), np.array([*labels, *[IGNORE] * len(back)], np.int32)
    return Tagged(Example(ids, np.zeros_like(ids)), labels, fits < len(words))


def read_sentences(content: str, token_column: int, tag_column: int | None, origin: str) -> list[Sentence]:
    """Return the sentences of a file with columns separated by white space."""
    found, words, tags = [], [], []
    needed = max(token_column, tag_column if tag_column is not None else 1) + 1
    for line, cells in lines_of_columns(content, needed, origin):
        if not cells:
            if words:
                found.append(Sentence(words, to_iob2(tags)))
            words, tags = [], []
            continue
        tag = cells[-1 if tag_column is None else tag_column]
        if tag != OUTSIDE and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise UserError(f"{origin} has the tag '{tag}' in line {line}; allowed: O, B-... and I-...")
        words.append(cells[token_column])
        tags.append(tag)
    if not found:
        raise UserError(f"{origin} has no sentences")
    return found


def lines_of_columns(content: str, needed: int, origin: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line, at least ``needed``; none between sentences and after the last."""
    for line, text in enumerate([*content.split("\n"), ""], 1):
        cells = text.split()
        if not cells or cells[0] == DOCUMENT:
            yield line, []
        elif len(cells) < needed:
            raise UserError(f"{origin} has {len(cells)} columns in line {line}; allowed: at least {needed}")
        else:
            yield line, cells


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return a sentence's tags with ``B-`` at the beginning of each entity.

    IOB1 has ``B-`` only where an entity follows another one of its type (Tjong Kim Sang and Veenstra 1999,
    "Representing text chunks"). Tags in IOB2 do not change.
    """
    found, before = [], OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        found.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return found


def tags_of(parts: dict[str, list[Sentence]], origin: str) -> list[str]:
    """Return the classes: ``B-`` and ``I-`` of each type in the training sentences, sorted, then ``O``."""
    types = {name: {tag[2:] for one in part for tag in one.tags if tag != OUTSIDE} for name, part in parts.items()}
    if not types["train"]:
        raise UserError(f"{origin} has no entities to train on; allowed: at least one tag B-... or I-...")
    for name, own in types.items():
        if strange := sorted(own - types["train"]):
            raise UserError(
                f"{origin}: the {name} part has entities of type '{strange[0]}', which the sentences to train on do "
                f"not have; allowed: {listed(sorted(types['train']))}"
            )
    return [*(f"{mark}-{kind}" for mark in "BI" for kind in sorted(types["train"])), OUTSIDE]
