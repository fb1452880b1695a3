"""Examples to rows of tokens: framing and truncation, padding, and several examples in one row.

A row is three lines of whole numbers, ``x`` of shape ``(N, 3, L)``: token ids, token types (0: first text, 1: second)
and the number of the example within the row, from 1; 0 is padding. Tokens attend where the numbers are equal.
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .tokenization import Vocabulary

IGNORE = -1  # as a target: there is nothing to predict
MULTIPLE = 8  # of tokens: widths of rows are multiples of it, which matrix units like and which keeps shapes few


class Example(NamedTuple):
    """One example, special tokens included."""

    ids: Int[np.ndarray, " T"]
    types: Int[np.ndarray, " T"]


class Rows(NamedTuple):
    """Examples in rows."""

    x: Int[np.ndarray, "N 3 L"]
    places: Int[np.ndarray, "M 3"]  # of each example: its row, its number there less 1, the column of its first token


def build_example(
    vocabulary: Vocabulary,
    first: Int[np.ndarray, " A"],
    second: Int[np.ndarray, " B"] | None,
    length: int,
) -> tuple[Example, bool]:
    """Return ``[CLS] first [SEP]`` or ``[CLS] first [SEP] second [SEP]``, cut to ``length``, and whether it was cut.

    Special tokens that the vocabulary does not have are left out. Of a pair, the longer text is cut first
    (:func:`truncate_longest_first`).
    """
    front = [] if vocabulary.cls is None else [vocabulary.cls]
    back = [] if vocabulary.sep is None else [vocabulary.sep]
    texts = [first] if second is None else [first, second]
    room = length - len(front) - len(back) * len(texts)
    kept = [min(len(first), room)] if second is None else truncate_longest_first(len(first), len(second), room)
    cut = any(size < len(text) for size, text in zip(kept, texts, strict=True))
    parts = [
        [*front, *texts[0][: kept[0]], *back],
        *([*text[:size], *back] for text, size in zip(texts[1:], kept[1:], strict=True)),
    ]
    ids = np.array([number for part in parts for number in part], np.int32)
    return Example(ids, np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])), cut


def special_tokens(vocabulary: Vocabulary, texts: int) -> int:
    """Return how many tokens :func:`build_example` adds to an example of that many texts."""
    return (vocabulary.cls is not None) + texts * (vocabulary.sep is not None)


def truncate_longest_first(first: int, second: int, room: int) -> list[int]:
    """Return how many tokens are kept of two texts, together at most ``room``.

    What taking tokens one by one off the longer text comes to (Devlin et al. 2019; of equally long ones, off the
    second): a text that fits into its half stays whole.
    """
    if first + second <= room:
        return [first, second]
    second_kept = min(second, max(room // 2, room - first))
    return [room - second_kept, second_kept]


# --- rows ------------------------------------------------------------------------------------------------------------


def padded_width(lengths: Sequence[int], limit: int) -> int:
    """Return the smallest multiple of 8 that holds the longest example, and no more than ``limit``."""
    return min(limit, -(-max(lengths, default=1) // MULTIPLE) * MULTIPLE)


def unpacked(examples: int) -> list[list[int]]:
    """Return the rows of examples that are not packed."""
    return [[number] for number in range(examples)]


def pack(lengths: Sequence[int], length: int, most: int, rng: np.random.Generator) -> list[list[int]]:
    """Return which examples share a row: together at most ``length`` tokens and at most ``most`` examples.

    Best-fit decreasing: the longest example first, each into the fullest row that has room for it (the "longest pack
    first" of Krell et al. 2021, arXiv 2107.02027). Then the rows are shuffled, as they would otherwise come in the
    order of their longest example. The same for the same lengths and state of ``rng``.

    Args:
        lengths: tokens of each example, none more than ``length``.
        length: tokens of a row.
        most: examples in a row.
        rng: of the order of the rows.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # rows that are not full, by the room they have
    rooms: list[int] = []  # those rooms that there are, ascending
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[example]
        place = next((i for i, room in enumerate(rooms) if room >= size), None)
        if place is None:
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[place]
        rows[row].append(example)
        if len(rows[row]) < most and room > size:
            if room - size not in open_rows:
                open_rows[room - size] = []
                insort(rooms, room - size)
            open_rows[room - size].append(row)
    return [sorted(rows[number]) for number in rng.permutation(len(rows))]


def fill_rows(examples: Sequence[Example], rows: Sequence[Sequence[int]], length: int, pad: int) -> Rows:
    """Return examples as rows of ``length`` tokens.

    Args:
        examples: to lay out; each of them stands in one row.
        rows: which examples each row has, in their order.
        length: tokens of a row.
        pad: the id of padding.
    """
    x = np.zeros((len(rows), 3, length), np.int32)
    x[:, 0] = pad
    places = np.zeros((len(examples), 3), int)
    for row, members in enumerate(rows):
        column = 0
        for number, member in enumerate(members):
            one = examples[member]
            end = column + len(one.ids)
            x[row, 0, column:end], x[row, 1, column:end], x[row, 2, column:end] = one.ids, one.types, number + 1
            places[member] = row, number, column
            column = end
    return Rows(x, places)


def scatter_by_example(rows: Rows, values: Sequence[int] | np.ndarray, most: int) -> Int[np.ndarray, "N S"]:
    """Return a value of each example at its place, ``(N, most)``; -1 where a row has no more examples."""
    y = np.full((len(rows.x), most), IGNORE, np.int32)
    y[rows.places[:, 0], rows.places[:, 1]] = values
    return y


def scatter_by_token(rows: Rows, values: Sequence[Int[np.ndarray, " T"]]) -> Int[np.ndarray, "N L"]:
    """Return values of each example's tokens at their places, ``(N, L)``; -1 in padding."""
    y = np.full((len(rows.x), rows.x.shape[2]), IGNORE, np.int32)
    for (row, _, column), own in zip(rows.places, values, strict=True):
        y[row, column : column + len(own)] = own
    return y


def padding_share(x: Int[np.ndarray, "N 3 L"]) -> float:
    """Return the share of a part's tokens that are padding."""
    return float(np.mean(x[:, 2] == 0))


# --- prediction ------------------------------------------------------------------------------------------------------


class Bucket(NamedTuple):
    """Rows that are computed at one width."""

    width: int  # tokens
    rows: Int[np.ndarray, " n"]


def buckets(lengths: Sequence[int] | np.ndarray, limit: int, shapes: int = 4) -> list[Bucket]:
    """Return rows by the width that they are cut to for prediction, the narrowest first.

    Each width is a program to compile, so there are at most ``shapes``: those multiples of 8 with which the fewest
    tokens are computed, found by dynamic programming over the multiples that occur.

    Args:
        lengths: tokens of each row that are no padding.
        limit: tokens of the widest row.
        shapes: the most widths.
    """
    lengths = np.asarray(lengths, int)
    needed = np.minimum(np.maximum(-(-lengths // MULTIPLE), 1) * MULTIPLE, limit)
    counts = sorted(Counter(needed.tolist()).items())
    widths = [one for one, _ in counts]
    below = [0, *itertools.accumulate(count for _, count in counts)]
    # cost[k][j]: the fewest tokens of the j narrowest widths in k buckets; last[k][j]: where the last one begins.
    cost: list[list[float]] = [[0.0] + [math.inf] * len(widths)]
    last: list[list[int]] = [[0] * (len(widths) + 1)]
    for _ in range(shapes):
        above = cost[-1]
        best = [
            min((above[i] + (below[j] - below[i]) * widths[j - 1], i) for i in range(j))
            for j in range(1, len(widths) + 1)
        ]
        cost.append([0.0, *(tokens for tokens, _ in best)])
        last.append([0, *(begin for _, begin in best)])
    end, left = len(widths), min(range(1, shapes + 1), key=lambda k: cost[k][-1])
    found: list[Bucket] = []
    while end:
        begin = last[left][end]
        lowest = widths[begin - 1] if begin else 0
        found.append(Bucket(widths[end - 1], np.flatnonzero((needed > lowest) & (needed <= widths[end - 1]))))
        end, left = begin, left - 1
    return found[::-1]


def num_tokens(x: Int[np.ndarray, "N 3 L"]) -> Int[np.ndarray, " N"]:
    """Return how many tokens of each row are no padding."""
    return np.sum(x[:, 2] != 0, axis=1)
