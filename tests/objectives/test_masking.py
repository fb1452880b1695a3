"""Masking over a million tokens, against the shares of the paper, BERT's own counts, and a loop over words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.config.hparams import check_values
from src.errors import UserError
from src.objectives.text import SHARES, MaskedLm, mask_tokens, num_to_mask, word_ids

WORDS, MASK = 1000, 3
RNG = np.random.default_rng(0)


def rows(count, length, special=0.1, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, WORDS, (count, length)).astype(np.int32)
    return ids, rng.random((count, length)) < special


def masked(ids, special, seed=0, **settings):
    arrays = {name: value for name, value in settings.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in settings.items() if name not in arrays}

    @jax.jit
    def draw(key, ids, special, arrays):
        return mask_tokens(key, ids, special, mask_id=MASK, vocab_size=WORDS, **plain, **arrays)

    return tuple(np.asarray(part) for part in draw(jax.random.PRNGKey(seed), ids, special, arrays))


def noise(share, count):
    """Return five standard deviations of a share."""
    return 5 * np.sqrt(share * (1 - share) / count)


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shares", "exact"), [(SHARES, False), (SHARES, True), ((0.5, 0.3, 0.2), False)])
def test_shares_over_a_million_tokens(shares, exact):
    ids, special = rows(2500, 400, 0.0)
    assert ids.size == 10**6
    seen, chosen = masked(ids, special, shares=shares, fixed_count=exact)
    assert chosen.mean() == pytest.approx(0.15, abs=1e-12 if exact else noise(0.15, ids.size))
    now, before = seen[chosen], ids[chosen]
    mask, random, kept = shares
    count = chosen.sum()
    for found, share in (
        (now == MASK, mask + random / WORDS),
        (now == before, kept + random / WORDS),
        ((now != MASK) & (now != before), random * (WORDS - 2) / WORDS),
    ):
        assert found.mean() == pytest.approx(share, abs=noise(share, count) + 1e-12)
    assert (seen[~chosen] == ids[~chosen]).all()


# --- how many --------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_bert():
    """``min(most, max(1, round(rate * length)))`` in Python's own arithmetic, which rounds halves to even."""
    lengths = np.arange(1, 513)
    for rate, most in ((0.15, None), (0.15, 20), (0.4, 76), (0.05, None)):
        expected = [min(most or 10**9, max(1, round(rate * length))) for length in lengths.tolist()]
        np.testing.assert_array_equal(num_to_mask(jnp.asarray(lengths), 512, rate, most), expected)
    assert int(num_to_mask(jnp.array([30]), 512, 0.15, None)[0]) == 4  # 4.5; float32 says 4.5000001


def test_an_exact_number_of_each_row():
    lengths = RNG.integers(1, 65, 500)
    ids, special = rows(500, 64)
    special |= np.arange(64) >= lengths[:, None]
    special[:, 0] = True  # [CLS] counts as a token and is never chosen
    _, chosen = masked(ids, special, fixed_count=True, lengths=lengths, max_predictions=7)
    expected = [min(7, max(1, round(0.15 * length))) for length in lengths.tolist()]
    np.testing.assert_array_equal(chosen.sum(1), np.minimum(expected, (~special).sum(1)))
    assert not (chosen & special).any()
    _, without = masked(ids, np.zeros_like(special), fixed_count=True)
    assert (without.sum(1) == round(0.15 * 64)).all()


def test_each_token_is_as_likely_as_another():
    ids, special = rows(20_000, 20, 0.0)
    special[:, [0, 7]] = True
    _, chosen = masked(ids, special, fixed_count=True)
    np.testing.assert_allclose(chosen.mean(0)[[0, 7]], 0)
    np.testing.assert_allclose(np.delete(chosen.mean(0), [0, 7]), 3 / 18, atol=noise(3 / 18, 20_000))


@pytest.mark.parametrize("settings", [{}, {"fixed_count": True}, {"words": np.zeros((4, 6), np.int32)}])
def test_a_text_without_a_token_to_mask(settings):
    ids, _ = rows(4, 6)
    seen, chosen = masked(ids, np.ones((4, 6), bool), **settings)
    assert not chosen.any()
    np.testing.assert_array_equal(seen, ids)
    outputs = RNG.standard_normal((4, 6, 9)).astype(np.float32)
    loss, slope = jax.value_and_grad(lambda o: MaskedLm().loss(o, jnp.where(chosen, ids, -1)))(jnp.asarray(outputs))
    assert float(loss) == 0.0
    assert not np.asarray(slope).any()


# --- whole words -----------------------------------------------------------------------------------------------------


def pieces(count=4000, length=64, seed=1):
    """Return rows of words of 1 to 5 pieces, and the number of each token's word, made by a loop."""
    ids, special = rows(count, length, 0.08, seed)
    continues = np.arange(WORDS) >= WORDS // 2
    numbers = np.zeros((count, length), int)
    for row in range(count):
        number, inside = 0, False
        for column in range(length):
            if special[row, column]:
                inside = False
                continue
            if not (inside and continues[ids[row, column]]):
                number += 1
            numbers[row, column], inside = number, True
    return ids, special, continues, numbers


def test_numbers_of_words():
    ids, special, continues, numbers = pieces(200)
    np.testing.assert_array_equal(word_ids(ids, special, continues), numbers)


def test_all_pieces_of_a_word_or_none():
    ids, special, _, numbers = pieces()
    for settings in ({}, {"fixed_count": True}):
        seen, chosen = masked(ids, special, words=numbers, **settings)
        assert not (chosen & special).any()
        for row in range(300):
            taken = np.unique(numbers[row][chosen[row]])
            np.testing.assert_array_equal(chosen[row], np.isin(numbers[row], taken) & ~special[row])
        fate = seen[chosen] == MASK
        assert fate.mean() == pytest.approx(0.8, abs=noise(0.8, chosen.sum()) + 0.2 / WORDS)
        beside = chosen[:, 1:] & chosen[:, :-1] & (numbers[:, 1:] == numbers[:, :-1])  # two pieces of one word
        both = (seen[:, 1:] == MASK)[beside] & (seen[:, :-1] == MASK)[beside]
        assert both.mean() == pytest.approx(0.64, abs=noise(0.64, beside.sum()) + 0.002)  # each drawn for itself


def test_words_are_chosen_at_the_rate_of_tokens():
    ids, special, _, numbers = pieces()
    share = (chosen := masked(ids, special, words=numbers)[1]).sum() / (~special).sum()
    words = sum(len(np.unique(row[row > 0])) for row in numbers)
    assert share == pytest.approx(0.15, abs=3 * noise(0.15, words))  # pieces of one word are no independent draws
    begins = np.diff(numbers, axis=1, prepend=0) > 0
    assert chosen[begins & ~special].mean() == pytest.approx(0.15, abs=noise(0.15, words))


def test_words_fill_the_count_as_far_as_they_fit():
    """As in BERT's loop over shuffled words: none is left that would still have fitted."""
    ids, special, _, numbers = pieces(1000)
    _, chosen = masked(ids, special, words=numbers, fixed_count=True)
    count = round(0.15 * 64)
    assert (chosen.sum(1) <= count).all()
    for row in range(1000):
        words, sizes = np.unique(numbers[row][numbers[row] > 0], return_counts=True)
        left = ~np.isin(words, numbers[row][chosen[row]])
        assert (sizes[left] > count - chosen[row].sum()).all()
    assert (chosen.sum(1) == count).mean() > 0.95  # there are words of one piece nearly everywhere


def test_words_of_one_piece_are_tokens():
    ids, special = rows(20_000, 20, 0.0)
    special[:, 0] = True
    numbers = np.broadcast_to(np.arange(20), ids.shape)
    _, chosen = masked(ids, special, words=numbers, fixed_count=True)
    assert (chosen.sum(1) == 3).all()
    np.testing.assert_allclose(chosen.mean(0)[1:], 3 / 19, atol=noise(3 / 19, 20_000))


# --- as a program, and as settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_and_over_lanes(exact, whole):
    ids, special, _, numbers = pieces(6, 16)

    def draw(key):
        words = numbers if whole else None
        return mask_tokens(key, ids, special, mask_id=MASK, vocab_size=WORDS, fixed_count=exact, words=words)

    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    together = jax.jit(jax.vmap(draw))(keys)
    for lane, key in enumerate(keys):
        for found, alone in zip(together, draw(key), strict=True):
            np.testing.assert_array_equal(found[lane], alone)


def test_the_settings_reach_the_rows():
    ids, special, continues, numbers = pieces(50)
    x = np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1)
    inner = tuple(np.flatnonzero(continues).tolist())
    objective = MaskedLm(
        mask_id=MASK,
        vocab_size=WORDS,
        fixed_count=True,
        max_predictions_per_seq=6,
        shares=(1.0, 0.0, 0.0),
        continuations=inner,
    )
    seen, wanted = objective.corrupt(jax.random.PRNGKey(0), x, np.where(special, -1, ids))
    expected = masked(ids, special, fixed_count=True, max_predictions=6, shares=(1.0, 0.0, 0.0), words=numbers)
    np.testing.assert_array_equal(seen[:, 0], expected[0])
    np.testing.assert_array_equal(np.asarray(wanted) >= 0, expected[1])
    assert (np.asarray(seen)[:, 0][expected[1]] == MASK).all()
    assert expected[1].sum(1).max() == 6
    hash(objective)  # it is part of what a program is compiled for


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_rate_that_cannot_be(rate):
    with pytest.raises(UserError, match=r"objective\.mask_prob is .*; allowed: a number strictly between 0 and 1"):
        check_values(MaskedLm(mask_prob=rate), "objective")


def test_shares_that_cannot_be():
    with pytest.raises(UserError, match=r"shares is \(0\.8, 0\.1, 0\.2\); allowed: three numbers from 0 to 1 that add"):
        MaskedLm(shares=(0.8, 0.1, 0.2))
    with pytest.raises(UserError, match="max_predictions_per_seq is 0; allowed: a whole number >= 1"):
        check_values(MaskedLm(fixed_count=True, max_predictions_per_seq=0))
