"""Pairs of sentences for next-sentence prediction (BERT) and sentence-order prediction (ALBERT).

A document is a list of sentences, each a list of token ids. Pairs are made as for BERT (Devlin et al. 2018, arXiv
1810.04805, section 3.1 and appendix A.2) or ALBERT (Lan et al. 2019, arXiv 1909.11942, section 3.1); their published
code decides what the papers leave open. Consecutive sentences form a chunk, which is split between two sentences into
the two texts of a pair. The label is 0 if the second text follows the first, else 1.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from ..notices import warn_once
from ..types import Split
from .language import predictable
from .packing import (
    Example,
    build_example,
    fill_rows,
    scatter_by_token,
    special_tokens,
    truncate_longest_first,
    unpacked,
)
from .text_source import TextSource
from .tokenization import Vocabulary

Pairing = Enum("Pairing", ["next", "order"])
LonePolicy = Enum("LonePolicy", ["random", "skip"])

NEIGHBOURS, OTHER = 0, 1  # labels
SHORT = 0.1  # share of the documents with shorter pairs, which resemble the texts of fine-tuning
PAIRS_STREAM = 4  # of split_seed
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Tokens = Int[np.ndarray, " T"]
Document = Sequence[Tokens]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a document, which end with ``.``, ``!`` or ``?`` before white space and a capital."""
    return SENTENCE_END.split(text.strip())


class SentencePair(NamedTuple):
    """Two texts, and whether the second follows the first."""

    first: Tokens
    second: Tokens
    label: int  # 0: it does; 1: it is from another document, or the texts are swapped


@dataclass(frozen=True)
class PairRules:
    """How pairs are made of documents.

    ``pairing``: the second text of a false pair is from another document (``next``), or the two texts are swapped
    (``order``). ``room``: the most tokens of both texts together. ``lone``: what happens to a chunk of one sentence,
    which cannot be split: ``random`` pairs it with a text of another document, as BERT and ALBERT do (more than half of
    the pairs are then false under ``next``, and under ``order`` some can be recognised by their topics); ``skip``
    leaves it out; ``None`` is ``random`` under ``next`` and ``skip`` under ``order``. ``short``: the share of documents
    whose chunks have a shorter target length, uniform from 2 to ``room`` tokens.
    """

    pairing: Pairing
    room: int
    lone: LonePolicy | None = None
    short: float = SHORT

    @property
    def skips(self) -> bool:
        """Whether chunks of one sentence are left out."""
        return self.lone is LonePolicy.skip or (self.lone is None and self.pairing is Pairing.order)


class PairsMade(NamedTuple):
    """Pairs, and counts of what did not become a pair."""

    pairs: list[SentencePair]
    lone: int  # number of chunks of one sentence left out
    single: int  # number of documents of one sentence, which are left out

    @property
    def false(self) -> float:
        """The share of pairs with label 1."""
        return sum(pair.label for pair in self.pairs) / len(self.pairs)


def sentence_pairs(documents: Sequence[Document], rules: PairRules, rng: np.random.Generator, origin: str) -> PairsMade:
    """Return the pairs of all documents, in order.

    Sentences without tokens and documents with fewer than two sentences are left out. ``rng`` draws lengths, places and
    labels.
    """
    whole = [[sentence for sentence in document if len(sentence)] for document in documents]
    usable = [document for document in whole if len(document) > 1]
    if not usable:
        raise UserError(
            f"{origin} has no document of two sentences or more among {len(documents)}; allowed: at least one"
        )
    if len(usable) < 2 and (rules.pairing is Pairing.next or not rules.skips):
        raise UserError(
            f"{origin} has one document of two sentences or more; allowed: at least 2, as false pairs need another"
        )
    found = [pair for number in range(len(usable)) for pair in pairs_of(usable, number, rules, rng)]
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise UserError(
            f"{origin} has no two consecutive sentences within {rules.room} tokens; allowed: a larger data.max_seq_len"
        )
    return PairsMade(pairs, len(found) - len(pairs), len(documents) - len(usable))


def pairs_of(
    documents: Sequence[Document], number: int, rules: PairRules, rng: np.random.Generator
) -> Iterator[SentencePair | None]:
    """Yield the pairs of one document; ``None`` for a chunk that is left out.

    After a false pair whose second text is from another document, the next chunk begins behind the first text.
    """
    document, begin = documents[number], 0
    aim = rules.room if rng.random() >= rules.short else int(rng.integers(2, rules.room + 1))
    while begin < len(document):
        end = chunk_end(document, begin, aim)
        alone = end - begin == 1
        middle = end if alone else int(rng.integers(begin + 1, end))
        if alone and rules.skips:
            begin = end
            yield None
            continue
        first, second, label = document[begin:middle], document[middle:end], NEIGHBOURS
        if alone or (rules.pairing is Pairing.next and rng.random() < 0.5):
            second, label, end = sample_other(documents, number, aim - sum(map(len, first)), rng), OTHER, middle
        elif rules.pairing is Pairing.order and rng.random() < 0.5:
            first, second, label = second, first, OTHER
        begin = end
        yield truncate_pair(np.concatenate(first), np.concatenate(second), label, rules.room, rng)


def chunk_end(document: Document, begin: int, aim: int) -> int:
    """Return the end of a chunk: the first sentence with which it has at least ``aim`` tokens is its last one."""
    totals = itertools.accumulate(map(len, document[begin:]))
    return next((end for end, total in enumerate(totals, begin + 1) if total >= aim), len(document))


def sample_other(documents: Sequence[Document], number: int, aim: int, rng: np.random.Generator) -> Document:
    """Return consecutive sentences of another document, from a random one until ``aim`` tokens are reached."""
    other = int(rng.integers(len(documents) - 1))
    document = documents[other + (other >= number)]
    begin = int(rng.integers(len(document)))
    return document[begin : chunk_end(document, begin, aim)]


def truncate_pair(first: Tokens, second: Tokens, label: int, room: int, rng: np.random.Generator) -> SentencePair:
    """Return a pair of at most ``room`` tokens.

    Tokens are removed from the longer text one by one (from the second of equally long ones), each from the front or
    the back with equal probability, so the number removed at the front is binomial.
    """

    def kept(text: Tokens, size: int) -> Tokens:
        front = int(rng.binomial(len(text) - size, 0.5))
        return text[front : front + size]

    sizes = truncate_longest_first(len(first), len(second), room)
    return SentencePair(kept(first, sizes[0]), kept(second, sizes[1]), label)


def pair_rows(examples: Sequence[Example], labels: Sequence[int], wide: int, vocabulary: Vocabulary) -> Split:
    """Return encoded pairs as rows of ``wide`` tokens, one pair in a row.

    Targets are those of :class:`src.objectives.pairs.MaskedPairs`, ``(N, L + 1)``: the label, then each token's own id,
    and -1 at special tokens and padding.
    """
    rows = fill_rows(examples, unpacked(len(examples)), wide, vocabulary.pad)
    own = scatter_by_token(rows, [predictable(one.ids, vocabulary) for one in examples])
    return Split(rows.x, np.concatenate([np.array(labels, np.int32)[:, None], own], axis=1))


def pairing_rows(
    source: TextSource,
    parts: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
    *,
    pairing: Pairing,
    lone: LonePolicy | None,
    origin: str,
) -> dict[str, Split]:
    """Return each part's documents as rows of pairs (see :class:`PairRules`); log how many were made and left out."""
    for name in ("mask", "cls", "sep"):
        vocabulary.needed(name, "pretraining on pairs of sentences")
    rules = PairRules(pairing, source.max_seq_len - special_tokens(vocabulary, 2), lone)
    made = {}
    for number, (name, documents) in enumerate(parts.items()):
        rng = np.random.default_rng((source.split_seed, PAIRS_STREAM, number))
        encoded = encode_documents(documents, vocabulary.encode)
        made[name] = sentence_pairs(encoded, rules, rng, f"{origin}, its {name} part,")
        warn_once(f"{origin}: {name} part of {describe(made[name])}", logging.INFO)
    examples = {
        name: [build_example(vocabulary, pair.first, pair.second, source.max_seq_len)[0] for pair in part.pairs]
        for name, part in made.items()
    }
    wide = source.row_width(examples)
    labels = {name: [pair.label for pair in part.pairs] for name, part in made.items()}
    return {name: pair_rows(part, labels[name], wide, vocabulary) for name, part in examples.items()}


def encode_documents(documents: Sequence[str], encode: Callable[[list[str]], list[Tokens]]) -> list[list[Tokens]]:
    """Return documents as lists of sentences, each an array of token ids."""
    split = [split_sentences(text) for text in documents]
    found = iter(encode([sentence for sentences in split for sentence in sentences]))
    return [[next(found) for _ in sentences] for sentences in split]


def describe(made: PairsMade) -> str:
    """Return ``"120 pairs of sentences, 51.2% of them false"``, and what was left out."""
    left = [f"{made.lone} sentences without a neighbour"] * (made.lone > 0)
    left += [f"{made.single} documents of one sentence"] * (made.single > 0)
    counts = f"{len(made.pairs)} pairs of sentences, {made.false:.1%} of them false"
    return f"{counts} (left out: {', '.join(left)})" if left else counts
