"""Rows for language modelling: documents as one stream, or packed side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from ..notices import warn_once
from ..types import Split
from .packing import IGNORE, Example, scatter_by_token
from .text_source import TextSource
from .tokenization import Vocabulary

LmObjective = Enum("LmObjective", ["causal", "masked"])


def language_rows(
    source: TextSource,
    parts: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
    modelling: LmObjective,
    origin: str,
) -> dict[str, Split]:
    """Return each part's documents as inputs and targets of a language model.

    With ``source.examples = 1``, a part is one stream of documents, each ended by [SEP] or the end-of-text token, and
    split into rows of ``source.max_seq_len``. Only the last row is padded, and a row may hold the end of one document
    and the start of the next ("full-sentences", Liu et al. 2019, arXiv 1907.11692, section 4.2). With more, documents
    are split into pieces that share rows and do not attend to each other.
    """
    if modelling is LmObjective.masked:
        vocabulary.needed("mask", "masked language modelling")
    found = {}
    for name, documents in parts.items():
        ids = vocabulary.encode(documents)
        if sum(map(len, ids)) < 2:
            raise UserError(f"{origin} has {sum(map(len, ids))} tokens in its {name} part; allowed: at least 2")
        if source.examples > 1:
            found[name] = side_by_side(source, ids, vocabulary, modelling=modelling, origin=origin, name=name)
        else:
            found[name] = one_stream(ids, source.max_seq_len, vocabulary, modelling)
    counts = (f"{np.sum(part.y != IGNORE):,} {name} tokens in {len(part.x)} rows" for name, part in found.items())
    warn_once(f"{origin}: {', '.join(counts)}", logging.INFO)
    return found


def one_stream(
    documents: Sequence[Int[np.ndarray, " T"]], length: int, vocabulary: Vocabulary, modelling: LmObjective
) -> Split:
    """Return documents as one stream in rows of ``length`` tokens, the last one padded.

    The last token of a causal row predicts the first one of the next row, so each token but the first of the stream is
    predicted once. A row for masking is ``[CLS] tokens [SEP]``.
    """
    front, end = vocabulary.cls_ids, vocabulary.sep_ids
    stream = np.array([number for ids in documents for number in (*ids.tolist(), *end)], np.int32)
    if modelling is LmObjective.causal:
        inputs, targets = stream[:-1], stream[1:]
    else:
        stream = stream[: len(stream) - len(end)]  # each row gets its own end token
        room = length - len(front) - len(end)
        pieces = [stream[begin : begin + room] for begin in range(0, len(stream), room)]
        inputs = np.concatenate([np.array([*front, *piece.tolist(), *end], np.int32) for piece in pieces])
        targets = predictable(inputs, vocabulary)

    def in_rows(values: Int[np.ndarray, " T"], rest: int) -> Int[np.ndarray, "N L"]:
        return np.pad(values, (0, -len(values) % length), constant_values=rest).reshape(-1, length)

    ids, filled = in_rows(inputs, vocabulary.pad), in_rows(np.ones_like(inputs), 0)
    return Split(np.stack([ids, np.zeros_like(ids), filled], axis=1), in_rows(targets, IGNORE))


def side_by_side(
    source: TextSource,
    documents: Sequence[Int[np.ndarray, " T"]],
    vocabulary: Vocabulary,
    *,
    modelling: LmObjective,
    origin: str,
    name: str,
) -> Split:
    """Return a part's documents split into pieces of at most ``max_seq_len`` tokens, up to ``examples`` in a row."""
    causal = modelling is LmObjective.causal
    front, end = [] if causal else vocabulary.cls_ids, vocabulary.sep_ids
    room = source.max_seq_len - len(front) - len(end)
    pieces = [ids[begin : begin + room] for ids in documents for begin in range(0, len(ids), room)]
    framed = [np.array([*front, *piece.tolist(), *end], np.int32) for piece in pieces]
    targets = [np.append(ids[1:], np.int32(IGNORE)) if causal else predictable(ids, vocabulary) for ids in framed]
    examples = [Example(ids, np.zeros_like(ids)) for ids in framed]
    rows = source.rows({name: examples}, source.max_seq_len, vocabulary, origin)[name]
    return Split(rows.x, scatter_by_token(rows, targets))


def predictable(ids: Int[np.ndarray, " T"], vocabulary: Vocabulary) -> Int[np.ndarray, " T"]:
    """Return each token's own id, and -1 at special tokens."""
    return np.where(np.isin(ids, vocabulary.special), np.int32(IGNORE), ids)
