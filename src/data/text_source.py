"""What sources of text have in common: the tokenizer, the length of rows, packing, and rows with a label.

Inputs are int32 of shape ``(N, 3, L)`` (see :mod:`src.data.packing`). What targets are says the kind:

- ``classification``: int32 ``(N,)``; ``regression``: float32 ``(N,)``.
- ``labels``: int32, ``(N, S)`` of up to S examples in a row, or ``(N, L)`` of tokens; -1: nothing to predict.
- ``spans``: int32 ``(N, 2)``, the first and the last token of an answer; -1: not in this row.
- ``causal``: int32 ``(N, L)``, the id of the next token; -1 where there is none.
- ``masked``: int32 ``(N, L)``, the token's own id where it may be masked; -1 at special tokens and padding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..config.hparams import COUNT, FRACTION, NATURAL, Check, hparam
from ..errors import UserError, did_you_mean, listed
from ..objectives.base import Objective
from ..objectives.text import MaskedLm
from ..types import Split
from .base import Table, Transfer, check_shares, cut, fewer
from .packing import Example, Rows, by_example, frame, lay_out, one_a_row, packed, padding_share, width
from .tokenization import TOKENIZER, Subwords, Vocabulary, load_vocabulary, trained_vocabulary

log = logging.getLogger(__name__)

Padding = Enum("Padding", ["fit", "length"])
Labels = Enum("Labels", ["classification", "regression"])
LENGTH = Check("a whole number >= 8", lambda v: v >= 8)
PACKING_STREAM = 2  # of split_seed: the order of packed rows must not repeat the shuffle that splits them


@functools.cache
def tell(text: str) -> None:
    """Say something of the data; once, however many runs of a sweep load it."""
    log.info(text)


@dataclass(frozen=True)
class TextTransfer(Transfer):
    """Both tasks as rows of tokens, and what turns predictions back into words."""

    vocabulary: Vocabulary = field(kw_only=True)
    labels: tuple[str, ...] = ()  # the name of each class, by its number
    scale: tuple[float, float] = (0.0, 1.0)  # mean and deviation of a regression's targets before they were scaled
    pairs: str | None = None  # what a false pair of the source task is (next, order), where that has pairs of sentences

    def facts(self) -> dict[str, Any]:
        """Return what the record tells of the data: the names of its classes and the scale of its numbers too."""
        scale = [] if self.kind != "regression" else list(self.scale)
        named = {"labels": list(self.labels), "scale": scale}
        return super().facts() | {name: found for name, found in named.items() if found}

    def files(self) -> dict[str, str]:
        """Return the tokenizer, as its library writes it."""
        return {TOKENIZER: self.vocabulary.written}

    def objective(self, kind: str) -> Objective:
        """Return what is minimised; of masked words, with this vocabulary's numbers."""
        found = super().objective(kind)
        if isinstance(found, MaskedLm) and self.vocabulary is not None:
            return replace(found, mask_id=self.vocabulary.mask, words=self.vocabulary.size)
        return found


@dataclass(frozen=True)
class TextSource:
    """Base of every source of text.

    ``tokenizer``: a folder, a file or the id of a model on the Hub; ``null`` trains one on the texts to train on, of
    ``vocab_size`` tokens in ``subwords``, kept in ``tokenizer_cache``. ``length``: tokens of a row, special ones
    included; longer examples are cut. ``padding``: rows are as wide as the longest example needs (``fit``: a multiple
    of 8), or of ``length``. ``examples``: the most examples in a row; more than 1 packs them, to ``length``.
    ``val_fraction``, ``test_fraction``, ``split_seed`` and ``train_rows`` are as in :class:`src.data.base.Source`;
    ``train_rows`` counts examples, and changes neither the tokenizer nor the width of rows.
    """

    is_sequence: ClassVar[bool] = False
    tokenizer: str | None = hparam(None)
    vocab_size: int | None = hparam(None, COUNT)
    subwords: Subwords = hparam(Subwords.wordpiece)
    tokenizer_cache: str | None = hparam("outputs/cache/tokenizers")
    length: int = hparam(128, LENGTH)
    padding: Padding = hparam(Padding.fit)
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
        raise TypeError(f"{type(self).__name__} does not say where its texts come from")

    def vocabulary(self, corpus: Callable[[], Sequence[str]], subwords: Subwords | None = None) -> Vocabulary:
        """Return the tokenizer that is asked for, or one trained on the corpus."""
        if self.tokenizer is None:
            chosen = subwords or self.subwords
            return trained_vocabulary(corpus(), chosen, self.vocab_size, self.tokenizer_cache)
        found = load_vocabulary(self.tokenizer)
        found.check_fits(self.vocab_size)
        return found

    def words(self, vocabulary: Vocabulary) -> int:
        """Return the outputs of a language model: of the model's own table where its size is known."""
        return self.vocab_size or vocabulary.size

    def taken(self, part: Int[np.ndarray, " n"], labels: np.ndarray | None, origin: str) -> Int[np.ndarray, " n"]:
        """Return ``train_rows`` of the numbers of the rows to train on, of labels as many of each as possible."""
        balanced = "classification" if labels is not None else "regression"
        return fewer((part, part if labels is None else labels), self.train_rows, balanced, origin)[0]

    def wide(self, parts: Mapping[str, Sequence[Example]]) -> int:
        """Return how many tokens a row has: of examples of all parts, so that ``train_rows`` does not change it."""
        if self.examples > 1 or self.padding is Padding.length:
            return self.length
        return width([len(one.ids) for part in parts.values() for one in part], self.length)

    def rows(
        self, parts: Mapping[str, Sequence[Example]], wide: int, vocabulary: Vocabulary, origin: str
    ) -> dict[str, Rows]:
        """Return each part's examples in rows of ``wide`` tokens, and say how much of ``train`` is padding."""
        found = {}
        for number, (name, part) in enumerate(parts.items()):
            lengths = [len(one.ids) for one in part]
            rng = np.random.default_rng((self.split_seed, PACKING_STREAM, number))
            groups = one_a_row(len(part)) if self.examples == 1 else packed(lengths, wide, self.examples, rng)
            found[name] = lay_out(part, groups, wide, vocabulary.pad)
            if name == "train":
                tell(f"{origin}: {self.waste(lengths, found[name])}")
        return found

    def waste(self, lengths: Sequence[int], rows: Rows) -> str:
        """Say how much of rows is padding, and how much was before they were packed."""
        wide, share = rows.x.shape[2], padding_share(rows.x)
        if self.examples == 1:
            return f"{len(rows.x)} rows of {wide} tokens to train on, {share:.1%} of them padding"
        alone = width(lengths, self.length)
        return (
            f"{len(lengths)} examples to train on in {len(rows.x)} rows of {wide} tokens, {share:.1%} of them padding; "
            f"one a row they would be of {alone} tokens, {1 - np.mean(lengths) / alone:.1%} of them padding"
        )

    def framed(
        self,
        texts: Mapping[str, tuple[Sequence[str], Sequence[str] | None]],
        vocabulary: Vocabulary,
        origin: str,
    ) -> dict[str, list[Example]]:
        """Return each part's texts, or pairs, as examples of at most ``length`` tokens; say how many are cut."""
        found: dict[str, list[Example]] = {}
        cuts = {}
        for name, (first, second) in texts.items():
            ids = vocabulary.encode(first)
            others = [None] * len(ids) if second is None else vocabulary.encode(second)
            both = [frame(vocabulary, a, b, self.length) for a, b in zip(ids, others, strict=True)]
            found[name] = [example for example, _ in both]
            cuts[name] = sum(cut for _, cut in both)
        if any(cuts.values()):
            tell(f"{origin}: cut to data.length={self.length} were {counted(cuts, found)}")
        return found

    def encoded(self, parts: Mapping[str, Texts], vocabulary: Vocabulary, classes: Sequence[str]) -> TextTransfer:
        """Return texts with labels as the target task, without a source task of its own.

        Args:
            parts: ``train``, ``val`` and ``test``.
            vocabulary: that they are encoded with.
            classes: the labels in their order; none of a regression.
        """
        origin = parts["train"].origin
        targets, scale = numbered_or_scaled(parts, classes)
        examples = self.framed({name: (part.first, part.second) for name, part in parts.items()}, vocabulary, origin)
        wide = self.wide(examples)
        chosen = self.taken(np.arange(len(targets["train"])), targets["train"] if classes else None, origin)
        examples["train"], targets["train"] = [examples["train"][row] for row in chosen], targets["train"][chosen]
        rows = self.rows(examples, wide, vocabulary, origin)
        many = self.examples > 1
        placed = {
            name: by_example(part, targets[name], self.examples) if many else targets[name]
            for name, part in rows.items()
        }
        return TextTransfer(
            kind="labels" if many else "classification" if classes else "regression",
            source={},
            target={name: Split(part.x, placed[name]) for name, part in rows.items()},
            source_outputs=len(classes) or 1,
            outputs=len(classes) or 1,
            new_head=True,
            vocabulary=vocabulary,
            labels=tuple(classes),
            scale=scale,
        )


def counted(some: Mapping[str, int], of: Mapping[str, Sequence[object]]) -> str:
    """Return ``"3 of 100 (train), 1 of 10 (val)"``, parts with none left out."""
    return ", ".join(f"{count} of {len(of[name])} ({name})" for name, count in some.items() if count)


# --- rows with a label -----------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """Texts with labels, as they were found."""

    first: list[str]
    second: list[str] | None  # of pairs
    labels: list[str]  # of a regression: numbers as they were written
    origin: str  # the configuration key, or the file, that errors name

    def only(self, rows: Iterable[int]) -> Texts:
        """Return some of the rows."""
        rows = list(rows)
        second = None if self.second is None else [self.second[row] for row in rows]
        return Texts([self.first[row] for row in rows], second, [self.labels[row] for row in rows], self.origin)

    def all(self) -> list[str]:
        """Return every text."""
        return [*self.first, *(self.second or [])]


def divided(
    given: Mapping[str, Texts], val_fraction: float, test_fraction: float, rng: np.random.Generator
) -> dict[str, Texts]:
    """Return ``train``, ``val`` and ``test``: those that are given, the others cut off the shuffled first.

    Raises:
        UserError: a part would be empty.
    """
    whole = given["train"]
    shares = {"test": test_fraction, "val": val_fraction}
    wanted = {name: share for name, share in shares.items() if name not in given}
    check_shares(**{f"{name}_fraction": share for name, share in wanted.items()})
    numbers = np.arange(len(whole.first))
    parts = cut(Table(numbers, numbers, whole.origin), rng, wanted)
    found = {name: whole.only(rows.tolist()) for name, (rows, _) in parts.items()} | {
        name: part for name, part in given.items() if name != "train"
    }
    for part in found.values():
        if not part.first:
            raise UserError(f"{part.origin} has no rows; allowed: at least one")
    return {name: found[name] for name in ("train", "val", "test")}


@dataclass(frozen=True)
class LabelledText(TextSource):
    """Base of sources of texts, or pairs of texts, with one label each.

    ``kind``: what the label is. Classes are numbered in sorted order (as numbers where all of them are whole numbers);
    they are those of the texts to train on. A regression's targets are standardised with the mean and deviation of the
    rows to train on, before ``train_rows``.
    """

    kind: Labels = hparam(Labels.classification)

    def texts(self) -> dict[str, Texts]:
        """Return ``train``, and ``val`` and ``test`` where they are files of their own."""
        raise TypeError(f"{type(self).__name__} does not say where its texts come from")

    def load(self) -> TextTransfer:
        """Read, check, split, encode and lay out."""
        if self.examples > 1 and self.kind is Labels.regression:
            raise UserError(f"data.examples is {self.examples}; allowed with a regression: 1, an example a row")
        given = self.texts()
        rng = np.random.default_rng(self.split_seed)
        parts = divided(given, self.val_fraction, self.test_fraction, rng)
        vocabulary = self.vocabulary(parts["train"].all)
        classes = class_names(given["train"]) if self.kind is Labels.classification else []
        return self.encoded(parts, vocabulary, classes)


def class_names(texts: Texts) -> list[str]:
    """Return the labels in their order: as numbers where all are whole numbers, as words otherwise."""
    found = set(texts.labels)
    if len(found) < 2:
        raise UserError(f"{texts.origin} has one label only ({listed(sorted(found))}); allowed: at least two")
    whole = all(label.removeprefix("-").isdecimal() for label in found)
    return sorted(found, key=int) if whole else sorted(found)


def numbered_or_scaled(
    parts: Mapping[str, Texts], classes: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    """Return each part's targets, and the mean and deviation that a regression's were standardised with."""
    if classes:
        return {name: numbered(part, classes) for name, part in parts.items()}, (0.0, 1.0)
    raw = {name: as_numbers(part) for name, part in parts.items()}
    mean, deviation = float(raw["train"].mean()), float(raw["train"].std()) or 1.0
    return {name: ((y - mean) / deviation).astype(np.float32) for name, y in raw.items()}, (mean, deviation)


def numbered(texts: Texts, classes: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Return the number of each label.

    Raises:
        UserError: a label that the texts to train on do not have.
    """
    index = {label: number for number, label in enumerate(classes)}
    for label in texts.labels:
        if label not in index:
            raise UserError(
                f"{texts.origin} has the label '{label}'{did_you_mean(label, classes)}, which the rows to train on do "
                f"not have; allowed: {listed(classes)}"
            )
    return np.array([index[label] for label in texts.labels], np.int32)


def as_numbers(texts: Texts) -> Float[np.ndarray, " N"]:
    """Return the labels of a regression.

    Raises:
        UserError: one is no finite number.
    """
    values = np.empty(len(texts.labels))
    for row, label in enumerate(texts.labels):
        try:
            values[row] = float(label)
        except ValueError:
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise UserError(f"{texts.origin} has the label '{label}'; allowed with a regression: finite numbers")
    return values
