"""Rows of tokens: special tokens and truncation, padding, and packing of several examples into a row.

A row is three lines of integers, ``x`` of shape ``(N, 3, L)``: token ids, token types (0: first text, 1: second) and
the number of the example within the row, from 1; 0 is padding. Tokens attend to tokens with the same example number.
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

IGNORE = -1  # the target of a position without one
MULTIPLE = 8  # widths are multiples of this: fast on matrix units, and few shapes to compile


class Example(NamedTuple):
    """The tokens of one example, special ones included."""

    ids: Int[np.ndarray, " T"]
    types: Int[np.ndarray, " T"]


class Rows(NamedTuple):
    """Examples laid out in rows."""

    x: Int[np.ndarray, "N 3 L"]
    places: Int[np.ndarray, "M 3"]  # of each example: row, number in the row from 0, column of its first token


def build_example(
    vocabulary: Vocabulary,
    first: Int[np.ndarray, " A"],
    second: Int[np.ndarray, " B"] | None,
    length: int,
) -> tuple[Example, bool]:
    """Return ``[CLS] first [SEP]`` or ``[CLS] first [SEP] second [SEP]``, and whether it was truncated.

    Special tokens that the vocabulary lacks are left out. Examples longer than ``length`` tokens are truncated, pairs
    at the longer text first (:func:`truncate_longest_first`).
    """
    texts = [first] if second is None else [first, second]
    room = length - special_tokens(vocabulary, len(texts))
    kept = [min(len(first), room)] if second is None else truncate_longest_first(len(first), len(second), room)
    parts = [[*text[:size], *vocabulary.sep_ids] for text, size in zip(texts, kept, strict=True)]
    parts[0] = [*vocabulary.cls_ids, *parts[0]]
    types = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    return Example(np.array([*itertools.chain(*parts)], np.int32), types), sum(kept) < sum(map(len, texts))


def special_tokens(vocabulary: Vocabulary, texts: int) -> int:
    """Return how many special tokens :func:`build_example` adds to one or two texts."""
    return len(vocabulary.cls_ids) + texts * len(vocabulary.sep_ids)


def truncate_longest_first(first: int, second: int, room: int) -> list[int]:
    """Return how many tokens to keep of two texts so that they have at most ``room`` together.

    The result is that of removing tokens one by one from the longer text, or from the second of equally long ones
    (Devlin et al. 2019): a text of at most half the room stays whole.
    """
    if first + second <= room:
        return [first, second]
    second_kept = min(second, max(room // 2, room - first))
    return [room - second_kept, second_kept]


def padded_width(lengths: Sequence[int], limit: int) -> int:
    """Return the length of the longest example, rounded up to a multiple of 8, but at most ``limit``."""
    return min(limit, -(-max(lengths, default=1) // MULTIPLE) * MULTIPLE)


def unpacked(examples: int) -> list[list[int]]:
    """Return one row for each example."""
    return [[number] for number in range(examples)]


def pack(lengths: Sequence[int], length: int, most: int, rng: np.random.Generator) -> list[list[int]]:
    """Return which examples share a row, by best-fit decreasing bin packing.

    The longest example comes first, each into the fullest row that has room ("longest-pack-first", Krell et al. 2021,
    arXiv 2107.02027). The rows are then shuffled, because they would be ordered by length otherwise.

    Args:
        lengths: tokens of each example, at most ``length``.
        length: tokens of a row.
        most: the most examples in a row.
        rng: shuffles the rows.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # rows that are not full, by their free tokens
    rooms: list[int] = []  # the keys of open_rows, ascending
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
    """Return examples laid out in rows of ``length`` tokens; ``rows`` has the numbers of each row's examples."""
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
    """Return a value for each example at its place, ``(N, most)``; -1 where a row has fewer examples."""
    y = np.full((len(rows.x), most), IGNORE, np.int32)
    y[rows.places[:, 0], rows.places[:, 1]] = values
    return y


def scatter_by_token(rows: Rows, values: Sequence[Int[np.ndarray, " T"]]) -> Int[np.ndarray, "N L"]:
    """Return values for each example's tokens at their places, ``(N, L)``; -1 in padding."""
    y = np.full((len(rows.x), rows.x.shape[2]), IGNORE, np.int32)
    for (row, _, column), own in zip(rows.places, values, strict=True):
        y[row, column : column + len(own)] = own
    return y


def padding_share(x: Int[np.ndarray, "N 3 L"]) -> float:
    """Return the share of tokens that are padding."""
    return float(np.mean(x[:, 2] == 0))


class Bucket(NamedTuple):
    """Rows that are computed at one width."""

    width: int  # tokens
    rows: Int[np.ndarray, " n"]


def buckets(lengths: Sequence[int] | np.ndarray, limit: int, shapes: int = 4) -> list[Bucket]:
    """Return rows grouped by the width at which they are predicted, the narrowest first.

    Every width is compiled, so there are at most ``shapes`` of them: those multiples of 8 that minimise the number of
    computed tokens, found by dynamic programming over the multiples that occur. ``lengths`` are without padding, and
    ``limit`` is the largest width.
    """
    lengths = np.asarray(lengths, int)
    needed = np.minimum(np.maximum(-(-lengths // MULTIPLE), 1) * MULTIPLE, limit)
    counts = sorted(Counter(needed.tolist()).items())
    widths = [one for one, _ in counts]
    below = [0, *itertools.accumulate(count for _, count in counts)]
    # cost[k][j]: fewest tokens of the j narrowest widths in k buckets; last[k][j]: where the last bucket begins.
    cost: list[list[float]] = [[0.0] + [math.inf] * len(widths)]
    last: list[list[int]] = [[0] * (len(widths) + 1)]
    for _ in range(shapes):
        above = cost[-1]
        ends = range(1, len(widths) + 1)
        best = [min((above[i] + (below[j] - below[i]) * widths[j - 1], i) for i in range(j)) for j in ends]
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
