"""Rows: every token of every example is in them once, in its place, and few of them are padding."""

import itertools

import numpy as np
import pytest

from src.data.packing import (
    Example,
    buckets,
    build_example,
    fill_rows,
    pack,
    padded_width,
    padding_share,
    scatter_by_example,
    scatter_by_token,
    special_tokens,
    truncate_longest_first,
)
from src.data.tokenization import load_vocabulary
from tests.data.texts import word_level, write_word_list


def token_by_token(first, second, room):
    """Truncate a pair as its definition says, one token at a time."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return [first, second]


def test_the_longer_text_is_cut_first():
    for first, second, room in itertools.product(range(13), range(13), range(14)):
        assert truncate_longest_first(first, second, room) == token_by_token(first, second, room), (first, second, room)


def test_frames(tmp_path):
    words = load_vocabulary(write_word_list(tmp_path))
    a, b = np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)
    alone, cut = build_example(words, a, None, 5)
    assert ([*map(list, alone)], cut) == ([[2, 5, 6, 7, 3], [0] * 5], False)
    pair, cut = build_example(words, a, b, 8)
    assert ([*map(list, pair)], cut) == ([[2, 5, 6, 7, 3, 8, 9, 3], [0, 0, 0, 0, 0, 1, 1, 1]], False)
    pair, cut = build_example(words, a, b, 7)
    assert ([*map(list, pair)], cut) == ([[2, 5, 6, 3, 8, 9, 3], [0, 0, 0, 0, 1, 1, 1]], True)
    alone, cut = build_example(words, a, None, 4)
    assert ([*map(list, alone)], cut) == ([[2, 5, 6, 3], [0] * 4], True)
    assert alone.ids.dtype == alone.types.dtype == np.int32
    assert [special_tokens(words, 1), special_tokens(words, 2)] == [2, 3]
    gpt = word_level(["x"])  # no [CLS], and one token that ends texts
    pair, _ = build_example(gpt, a, b, 8)
    assert [*map(list, pair)] == [[5, 6, 7, 0, 8, 9, 0], [0, 0, 0, 0, 1, 1, 1]]
    assert special_tokens(gpt, 2) == 2


def made_up(lengths):
    """Return examples whose tokens tell which one and which place they are of."""
    return [
        Example(np.arange(n, dtype=np.int32) + 1000 * (i + 1), np.full(n, i % 2, np.int32))
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("most", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_every_example_is_in_one_row_and_whole(most, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 33, 150).tolist()
    examples = made_up(lengths)
    groups = pack(lengths, 32, most, np.random.default_rng(7))
    assert sorted(itertools.chain(*groups)) == list(range(150))
    assert max(map(len, groups)) <= most
    rows = fill_rows(examples, groups, 32, pad=99)
    assert rows.x.shape == (len(groups), 3, 32)
    assert rows.x.dtype == np.int32
    for i, (row, number, column) in enumerate(rows.places):
        ids, types, numbers = rows.x[row]
        own = numbers == number + 1
        assert own[column : column + lengths[i]].all()
        assert own.sum() == lengths[i]
        np.testing.assert_array_equal(ids[own], examples[i].ids)
        np.testing.assert_array_equal(types[own], examples[i].types)
    padding = rows.x[:, 2] == 0
    assert (rows.x[:, 0][padding] == 99).all()
    assert not rows.x[:, 1][padding].any()
    assert padding_share(rows.x) == pytest.approx(1 - sum(lengths) / (32 * len(groups)))
    # The numbers of a row's examples rise from 1 without a gap, padding at its end only.
    for numbers in rows.x[:, 2]:
        real = numbers[numbers > 0]
        assert np.array_equal(numbers[: len(real)], real)
        assert set(np.diff(real).tolist()) <= {0, 1}
        assert real[0] == 1


def test_packing_is_tight():
    """No more rows than 11/9 of the fewest and one (Johnson 1973's bound of best-fit decreasing); here the fewest."""
    rng = np.random.default_rng(0)
    whole = [(31, 64 - 31), (50, 10, 4), (20, 20, 24), (64,)] * 20  # fills 80 rows without a gap
    lengths = rng.permutation([n for row in whole for n in row]).tolist()
    assert len(pack(lengths, 64, 8, rng)) <= 80 * 11 / 9 + 1
    halves = rng.integers(1, 64, 100)
    pairs = rng.permutation([*halves, *(64 - halves)]).tolist()
    assert len(pack(pairs, 64, 2, rng)) == 100  # of two a row, each finds its complement
    lengths = np.clip(rng.lognormal(3, 0.5, 2000).astype(int) + 2, 3, 128).tolist()
    groups = pack(lengths, 128, 16, rng)
    assert len(groups) * 128 < 1.01 * sum(lengths) + 128


def test_the_order_of_packed_rows_is_drawn_and_repeats():
    lengths = np.random.default_rng(1).integers(1, 33, 400).tolist()
    first, again, other = (pack(lengths, 32, 4, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
    longest = [max(lengths[i] for i in row) for row in first]
    assert abs(np.corrcoef(longest, np.arange(len(first)))[0, 1]) < 0.2


def test_values_stand_where_their_examples_do():
    lengths = [5, 3, 8, 2]
    groups = [[2], [0, 1], [3]]
    rows = fill_rows(made_up(lengths), groups, 8, pad=0)
    assert scatter_by_example(rows, [10, 11, 12, 13], 3).tolist() == [[12, -1, -1], [10, 11, -1], [13, -1, -1]]
    marked = scatter_by_token(rows, [np.full(n, i) for i, n in enumerate(lengths)])
    assert marked.tolist() == [[2] * 8, [0] * 5 + [1] * 3, [3, 3] + [-1] * 6]


def test_width_is_the_smallest_multiple_of_8():
    assert [padded_width([3, n], 64) for n in (3, 8, 9, 57, 63, 64, 65)] == [8, 8, 16, 64, 64, 64, 64]
    assert padded_width([30], 30) == 30


def fewest_tokens(needed, shapes):
    """Return the fewest computed tokens of any choice of widths, by trying all."""
    widths = sorted(set(needed))
    ways = (w for k in range(1, shapes + 1) for w in itertools.combinations(widths, k) if w[-1] == widths[-1])
    return min(sum(min(w for w in chosen if w >= n) for n in needed) for chosen in ways)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_compute_the_fewest_tokens(seed):
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.2, 0.7, 60).astype(int), 1, 100)
    for shapes in (1, 2, 4):
        found = buckets(lengths, 100, shapes)
        assert len(found) <= shapes
        assert sorted(np.concatenate([one.rows for one in found]).tolist()) == list(range(60))
        assert [one.width for one in found] == sorted({one.width for one in found})
        for one in found:
            assert lengths[one.rows].max() <= one.width
        needed = [min(100, -(-n // 8) * 8) for n in lengths.tolist()]
        assert sum(one.width * len(one.rows) for one in found) == fewest_tokens(needed, shapes)


def test_buckets_of_one_length():
    (only,) = buckets([5, 5, 5], 16)
    assert (only.width, only.rows.tolist()) == (8, [0, 1, 2])
