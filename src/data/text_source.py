"""Base classes of sources of text: tokenizer, row length, packing, and texts with a label.

Inputs are int32 of shape ``(N, 3, L)`` (see :mod:`src.data.packing`). Targets depend on the kind of task; -1 marks a
position without a target:

- ``classification``: int32 ``(N,)``; ``regression``: float32 ``(N,)``.
- ``labels``: int32, ``(N, S)`` for up to S examples in a row, or ``(N, L)`` for tokens.
- ``spans``: int32 ``(N, 2)``, the first and the last token of the answer; -1 if the row does not contain it.
- ``causal``: int32 ``(N, L)``, the id of the next token.
- ``masked``: int32 ``(N, L)``, the token's own id, and -1 at special tokens and padding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
from jaxtyping import Float, Int

from ..config.hparams import COUNT, FRACTION, NATURAL, Check, hparam
from ..errors import UserError, did_you_mean, listed
from ..notices import warn_once
from ..types import Split
from .base import LabelKind, Transfer, check_fractions, split_rows, subsample
from .packing import (
    Example,
    Rows,
    build_example,
    fill_rows,
    pack,
    padded_width,
    padding_share,
    scatter_by_example,
    unpacked,
)
from .tokenization import TOKENIZER, Subwords, Vocabulary, load_vocabulary, trained_vocabulary

T = TypeVar("T")
Padding = Enum("Padding", ["longest", "max_length"])
LENGTH = Check("a whole number >= 8", lambda v: v >= 8)
PACKING_STREAM = 2  # of split_seed: the order of packed rows is independent of the shuffle that splits them


@dataclass(frozen=True)
class TextTransfer(Transfer):
    """Two tasks as rows of tokens, with what turns predictions back into text."""

    vocabulary: Vocabulary = field(kw_only=True)
    labels: tuple[str, ...] = ()  # class names by number
    scale: tuple[float, float] = (0.0, 1.0)  # mean and deviation by which a regression's targets are standardised
    pairs: str | None = None  # of a source task with pairs of sentences: what its false pairs are (next, order)

    @classmethod
    def without_source(
        cls, kind: str, rows: Mapping[str, Rows], targets: Mapping[str, np.ndarray], outputs: int, **more: Any
    ) -> Self:
        """Return a target task with these targets of its rows and a new head."""
        target = {name: Split(part.x, targets[name]) for name, part in rows.items()}
        return cls(kind=kind, source={}, target=target, source_outputs=outputs, outputs=outputs, new_head=True, **more)

    def facts(self) -> dict[str, Any]:
        """Return the entries of the record under ``data``, with class names or the scale of a regression."""
        scale = [] if self.kind != "regression" else list(self.scale)
        named = {"labels": list(self.labels), "scale": scale}
        return super().facts() | {name: found for name, found in named.items() if found}

    def files(self) -> dict[str, str]:
        """Return the tokenizer in its library's file format."""
        return {TOKENIZER: self.vocabulary.backend.to_str()}


@dataclass(frozen=True)
class TextSource:
    """Base of every source of text.

    ``tokenizer``: a folder, a file or a model id of the Hub; ``null`` trains one on the training texts, with
    ``vocab_size`` tokens in ``subwords``, stored in ``tokenizer_cache``. ``max_seq_len``: the most tokens of a row,
    special ones included; longer examples are truncated. ``padding``: rows are as wide as the longest example, rounded
    up to a multiple of 8 (``longest``), or ``max_seq_len`` wide (``max_length``). ``examples``: the most examples in a
    row; more than 1 packs them into rows of ``max_seq_len``. ``val_fraction``, ``test_fraction``, ``split_seed`` and
    ``train_rows`` are as in :class:`src.data.base.DataSource`; ``train_rows`` counts examples and changes neither
    tokenizer nor row width.
    """

    is_sequence: ClassVar[bool] = False
    tokenizer: str | None = hparam(None)
    vocab_size: int | None = hparam(None, COUNT)
    subwords: Subwords = hparam(Subwords.wordpiece)
    tokenizer_cache: str | None = hparam("outputs/cache/tokenizers")
    max_seq_len: int = hparam(128, LENGTH)
    padding: Padding = hparam(Padding.longest)
    examples: int = hparam(1, COUNT)
    val_fraction: float = hparam(0.1, FRACTION)
    test_fraction: float = hparam(0.1, FRACTION)
    split_seed: int = hparam(0, NATURAL)
    train_rows: int | None = hparam(None, COUNT)

    def load(self) -> TextTransfer:
        """Read, check, split and encode.

        Raises:
            UserError: the files cannot be used; the message names the file or key and the reason.
        """
        raise TypeError(f"{type(self).__name__} does not define load()")

    def vocabulary(self, corpus: Callable[[], Sequence[str]]) -> Vocabulary:
        """Return the configured tokenizer, or one trained on the corpus."""
        if self.tokenizer is None:
            return trained_vocabulary(corpus(), self.subwords, self.vocab_size, self.tokenizer_cache)
        found = load_vocabulary(self.tokenizer)
        found.check_fits(self.vocab_size)
        return found

    def num_outputs(self, vocabulary: Vocabulary) -> int:
        """Return the outputs of a language model: the size of the model's embedding table if it is known."""
        return self.vocab_size or vocabulary.size

    def split(
        self, items: Sequence[T], given: Mapping[str, Sequence[T]], rng: np.random.Generator, origin: str
    ) -> dict[str, list[T]]:
        """Return ``train``, ``val`` and ``test``: parts that are not given are split off the shuffled items."""
        parts = split_rows(len(items), rng, self.missing_shares(given), origin)
        found = {name: [items[row] for row in rows] for name, rows in parts.items()}
        return {name: list(given.get(name, found.get(name, ()))) for name in ("train", "val", "test")}

    def missing_shares(self, given: Iterable[str]) -> dict[str, float]:
        """Return the fractions of the parts that are not given, of ``test`` and ``val``."""
        wanted = {name: getattr(self, f"{name}_fraction") for name in ("test", "val") if name not in given}
        check_fractions(**{f"{name}_fraction": share for name, share in wanted.items()})
        return wanted

    def train_subset(
        self, part: Int[np.ndarray, " n"], classes: np.ndarray | None, origin: str
    ) -> Int[np.ndarray, " n"]:
        """Return ``train_rows`` of the training rows' numbers, with classes as balanced as possible."""
        if classes is None:
            return subsample((part, part), self.train_rows, "regression", origin)[0]
        return subsample((part, classes), self.train_rows, "classification", origin)[0]

    def row_width(self, parts: Mapping[str, Sequence[Example]]) -> int:
        """Return the tokens of a row; all parts count, so ``train_rows`` does not change it."""
        if self.examples > 1 or self.padding is Padding.max_length:
            return self.max_seq_len
        return padded_width([len(one.ids) for part in parts.values() for one in part], self.max_seq_len)

    def rows(
        self, parts: Mapping[str, Sequence[Example]], wide: int, vocabulary: Vocabulary, origin: str
    ) -> dict[str, Rows]:
        """Return each part's examples in rows of ``wide`` tokens, and log the share of padding in ``train``."""
        found = {}
        for number, (name, part) in enumerate(parts.items()):
            lengths = [len(one.ids) for one in part]
            rng = np.random.default_rng((self.split_seed, PACKING_STREAM, number))
            groups = unpacked(len(part)) if self.examples == 1 else pack(lengths, wide, self.examples, rng)
            found[name] = fill_rows(part, groups, wide, vocabulary.pad)
            if name == "train":
                warn_once(f"{origin}: {self.padding_summary(lengths, found[name].x)}", logging.INFO)
        return found

    def padding_summary(self, lengths: Sequence[int], x: Int[np.ndarray, "N 3 L"]) -> str:
        """Return a sentence on the share of padding, with packing also on the share without it."""
        share = f"{padding_share(x):.1%} of them padding"
        if self.examples == 1:
            return f"{len(x)} rows of {x.shape[2]} tokens to train on, {share}"
        alone = padded_width(lengths, self.max_seq_len)
        return (
            f"{len(lengths)} examples to train on in {len(x)} rows of {x.shape[2]} tokens, {share}; one in a row they "
            f"would have {alone} tokens, {1 - np.mean(lengths) / alone:.1%} of them padding"
        )

    def tokenize(
        self, parts: Mapping[str, LabeledTexts], vocabulary: Vocabulary, origin: str
    ) -> dict[str, list[Example]]:
        """Return each part's texts or pairs as examples; log how many are truncated to ``max_seq_len`` tokens."""
        found = {}
        for name, part in parts.items():
            ids = vocabulary.encode(part.first)
            others = [None] * len(ids) if part.second is None else vocabulary.encode(part.second)
            found[name] = [build_example(vocabulary, a, b, self.max_seq_len) for a, b in zip(ids, others, strict=True)]
        self.warn_truncated({name: [cut for _, cut in part] for name, part in found.items()}, origin)
        return {name: [example for example, _ in part] for name, part in found.items()}

    def warn_truncated(self, parts: Mapping[str, Sequence[bool]], origin: str) -> None:
        """Log how many examples of each part are truncated, for instance "3 of 100 (train), 1 of 10 (val)"."""
        counts = [f"{sum(part)} of {len(part)} ({name})" for name, part in parts.items() if any(part)]
        if counts:
            warn_once(f"{origin}: data.max_seq_len={self.max_seq_len} truncated {', '.join(counts)}")

    def split_texts(self, given: Mapping[str, LabeledTexts], rng: np.random.Generator) -> dict[str, LabeledTexts]:
        """Return ``train``, ``val`` and ``test``: parts that are not given are split off ``train``."""
        whole = given["train"]
        for part in given.values():
            if not part.first:
                raise UserError(f"{part.origin} has no rows; allowed: at least one")
        rows = self.split(range(len(whole.first)), {name: () for name in given if name != "train"}, rng, whole.origin)
        return {name: whole.only(own) if own else given[name] for name, own in rows.items()}

    def labeled_transfer(
        self, parts: Mapping[str, LabeledTexts], vocabulary: Vocabulary, classes: Sequence[str]
    ) -> TextTransfer:
        """Return texts with labels as the target task, without a source task; ``classes`` is empty for a regression."""
        origin = parts["train"].origin
        targets, scale = encode_targets(parts, classes)
        examples = self.tokenize(parts, vocabulary, origin)
        wide = self.row_width(examples)
        chosen = self.train_subset(np.arange(len(targets["train"])), targets["train"] if classes else None, origin)
        examples["train"], targets["train"] = [examples["train"][row] for row in chosen], targets["train"][chosen]
        rows = self.rows(examples, wide, vocabulary, origin)
        kind = "classification" if classes else "regression"
        if self.examples > 1:
            kind = "labels"
            targets = {name: scatter_by_example(part, targets[name], self.examples) for name, part in rows.items()}
        return TextTransfer.without_source(
            kind, rows, targets, len(classes) or 1, vocabulary=vocabulary, labels=tuple(classes), scale=scale
        )


@dataclass(frozen=True, kw_only=True)
class TextFileSource(TextSource):
    """Base of sources that read a file, ``path``.

    ``val_path`` and ``test_path``: separate files; ``null`` splits a fraction off the first. Paths are relative to the
    folder that the command is run in.
    """

    path: str = hparam()
    val_path: str | None = hparam(None)
    test_path: str | None = hparam(None)

    def read_separate(self, read: Callable[[str, str], T]) -> dict[str, T]:
        """Read the files of ``val`` and ``test`` that are separate, given their paths and what errors call them."""
        paths = {"val": self.val_path, "test": self.test_path}
        return {name: read(path, f"data.{name}_path={path}") for name, path in paths.items() if path is not None}


class LabeledTexts(NamedTuple):
    """Texts with labels, before they are encoded."""

    first: list[str]
    second: list[str] | None  # the second texts of pairs
    labels: list[str]  # of a regression: numbers as written
    origin: str  # configuration key or file, for error messages

    def only(self, rows: Iterable[int]) -> LabeledTexts:
        """Return the rows with the given numbers."""
        rows = list(rows)
        second = None if self.second is None else [self.second[row] for row in rows]
        return LabeledTexts([self.first[row] for row in rows], second, [self.labels[row] for row in rows], self.origin)

    def all(self) -> list[str]:
        """Return all texts, for training a tokenizer."""
        return [*self.first, *(self.second or [])]


@dataclass(frozen=True)
class LabeledTextSource(TextSource):
    """Base of sources of texts, or pairs of texts, with one label each.

    ``kind``: what the label is. Classes are those of the training texts, numbered in sorted order (numerically if all
    are integers). A regression's targets are standardised with the mean and the deviation of the training rows, before
    ``train_rows`` selects from them.
    """

    kind: LabelKind = hparam(LabelKind.classification)

    def texts(self) -> dict[str, LabeledTexts]:
        """Return ``train``, and ``val`` and ``test`` if they have files of their own."""
        raise TypeError(f"{type(self).__name__} does not define texts()")

    def load(self) -> TextTransfer:
        """Read, check, split and encode."""
        if self.examples > 1 and self.kind is LabelKind.regression:
            raise UserError(f"data.examples is {self.examples}; allowed with a regression: 1, an example a row")
        given = self.texts()
        parts = self.split_texts(given, np.random.default_rng(self.split_seed))
        vocabulary = self.vocabulary(parts["train"].all)
        classes = class_names(given["train"]) if self.kind is LabelKind.classification else []
        return self.labeled_transfer(parts, vocabulary, classes)


def class_names(texts: LabeledTexts) -> list[str]:
    """Return the distinct labels, sorted numerically if all are integers, else alphabetically."""
    found = set(texts.labels)
    if len(found) < 2:
        raise UserError(f"{texts.origin} has one label only ({listed(sorted(found))}); allowed: at least two")
    whole = all(label.removeprefix("-").isdecimal() for label in found)
    return sorted(found, key=int) if whole else sorted(found)


def encode_targets(
    parts: Mapping[str, LabeledTexts], classes: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    """Return each part's targets, and the mean and the deviation by which a regression's are standardised."""
    if classes:
        return {name: encode_labels(part, classes) for name, part in parts.items()}, (0.0, 1.0)
    raw = {name: parse_numbers(part) for name, part in parts.items()}
    mean, deviation = float(raw["train"].mean()), float(raw["train"].std()) or 1.0
    return {name: ((y - mean) / deviation).astype(np.float32) for name, y in raw.items()}, (mean, deviation)


def encode_labels(texts: LabeledTexts, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Return the class number of each label; refuse one that does not occur in the training texts."""
    index = {label: number for number, label in enumerate(classes)}
    if (strange := next((label for label in texts.labels if label not in index), None)) is not None:
        raise UserError(
            f"{texts.origin} has the label '{strange}'{did_you_mean(strange, classes)}, which the rows to train on do "
            f"not have; allowed: {listed(classes)}"
        )
    return np.array([index[label] for label in texts.labels], np.int32)


def parse_numbers(texts: LabeledTexts) -> Float[np.ndarray, " N"]:
    """Return the labels of a regression as numbers; refuse one that is not a finite number."""

    def number(label: str) -> float:
        try:
            return float(label)
        except ValueError:
            return math.nan

    values = np.array([number(label) for label in texts.labels])
    if not np.isfinite(values).all():
        label = texts.labels[int(np.argmin(np.isfinite(values)))]
        raise UserError(f"{texts.origin} has the label '{label}'; allowed with a regression: finite numbers")
    return values
