"""Pairs of sentences, over a million tokens: each token's number tells which document and sentence it is of."""

import itertools

import numpy as np
import pytest

from src.data.docstrings import collapse_whitespace, read_library, read_topics
from src.data.packing import build_example
from src.data.pairs import (
    LonePolicy,
    Pairing,
    PairRules,
    describe,
    encode_documents,
    pair_rows,
    sample_other,
    sentence_pairs,
    split_sentences,
    truncate_pair,
)
from src.data.tokenization import load_vocabulary
from src.errors import UserError
from tests.data.texts import word_level, write_word_list

DOCUMENT, SENTENCE = 10**6, 10**3  # a token's number: of its document, of its sentence, of its place there


def numbered(sizes):
    """Return documents of sentences of so many tokens."""
    return [
        [DOCUMENT * d + SENTENCE * s + np.arange(size) for s, size in enumerate(document)]
        for d, document in enumerate(sizes)
    ]


def corpus(documents, most=15, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return numbered([rng.integers(1, longest + 1, rng.integers(2, most + 1)).tolist() for _ in range(documents)])


def made(documents, pairing, seed=1, **rules):
    return sentence_pairs(documents, PairRules(pairing, **{"room": 61, **rules}), np.random.default_rng(seed), "here")


def noise(share, count):
    """Return five standard deviations of a share."""
    return 5 * np.sqrt(share * (1 - share) / count)


# --- what a pair is --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[400, pytest.param(6500, marks=pytest.mark.slow)])
def known(request):
    """Documents, and each token's place in its own: of the larger, more than a million."""
    documents = corpus(request.param)
    assert sum(len(sentence) for document in documents for sentence in document) > 154 * request.param
    place = {}  # of each token within its document
    for document in documents:
        place.update((number, i) for i, number in enumerate(np.concatenate(document).tolist()))
    return documents, place


@pytest.mark.parametrize(("pairing", "lone"), [*itertools.product(Pairing, LonePolicy)])
def test_a_pair_is_what_its_label_says(known, pairing, lone):
    documents, place = known
    found = made(documents, pairing, lone=lone)
    of_others = 0
    for first, second, label in found.pairs:
        whole = len(first) + len(second) < 61  # nothing was cut off
        assert 1 <= len(first) <= len(first) + len(second) <= 61
        where = [[place[number] for number in text.tolist()] for text in (first, second)]
        assert all(np.diff(part).tolist() == [1] * (len(part) - 1) for part in where)  # neither gaps nor repetitions
        one, two = first[0] // DOCUMENT, second[0] // DOCUMENT
        assert {one, two} == set((np.concatenate([first, second]) // DOCUMENT).tolist())
        if one != two:
            of_others += 1
            assert label == 1
            continue
        before, after = where[::-1] if label else where
        assert label == 0 or pairing is Pairing.order
        assert before[-1] + 1 == after[0] if whole else before[-1] < after[0]
    ones = sum(pair.label for pair in found.pairs)
    if lone is LonePolicy.random:
        assert found.lone == 0
        assert of_others == ones if pairing is Pairing.next else 0 < of_others < ones
    else:  # each pair is a fair coin's
        assert found.lone > 0
        assert of_others == (ones if pairing is Pairing.next else 0)
        assert found.false == pytest.approx(0.5, abs=noise(0.5, len(found.pairs)))
    assert found.false == pytest.approx(ones / len(found.pairs))


def test_what_a_random_sentence_took_the_place_of_is_put_back():
    """In rooms for whole documents: first texts, and second ones that follow, are the documents again."""
    documents = corpus(300)
    for seed in range(3):
        found = made(documents, Pairing.next, seed, room=10**4, short=0.0).pairs
        own = [text for pair in found for text in ((pair.first,) if pair.label else (pair.first, pair.second))]
        np.testing.assert_array_equal(
            np.concatenate(own), np.concatenate([sentence for document in documents for sentence in document])
        )
    swapped = made(documents, Pairing.order, room=10**4, short=0.0).pairs
    assert len(swapped) == len(documents)
    for pair, document in zip(swapped, documents, strict=True):
        whole = np.concatenate([pair.second, pair.first] if pair.label else [pair.first, pair.second])
        np.testing.assert_array_equal(whole, np.concatenate(document))


@pytest.mark.parametrize("sentences", [2, 3, 5])
def test_more_than_half_of_short_documents_pairs_are_random(sentences):
    """In closed form: expected true and false pairs of n sentences in one chunk; of two, 2 in 3 are false."""
    true, false = {1: 0.0}, {1: 1.0}
    for n in range(2, sentences + 1):
        rest = range(1, n)  # what is put back, each as likely
        true[n] = 0.5 + 0.5 * np.mean([true[k] for k in rest])
        false[n] = 0.5 * (1 + np.mean([false[k] for k in rest]))
    count = 10_000
    documents = numbered([[1] * sentences] * count)
    found = made(documents, Pairing.next, short=0.0)
    assert len(found.pairs) / count == pytest.approx(true[sentences] + false[sentences], abs=5 / np.sqrt(count))
    share = false[sentences] / (true[sentences] + false[sentences])
    assert found.false == pytest.approx(share, abs=noise(share, len(found.pairs)))
    assert share == pytest.approx(2 / 3) if sentences == 2 else 0.5 < share < 2 / 3


def test_a_tenth_of_the_documents_has_shorter_pairs():
    room, count = 61, 6000
    documents = numbered([[1] * 70] * count)  # one token a sentence: a pair is as long as its aim
    found = made(documents, Pairing.order).pairs
    first = {}
    for pair in found:
        first.setdefault(int(pair.first[0]) // DOCUMENT, len(pair.first) + len(pair.second))
    lengths = np.array(list(first.values()))
    short = lengths[lengths < room]
    share = 0.1 * (room - 2) / (room - 1)  # uniform from 2 to the room, which is the aim anyway
    assert len(short) / count == pytest.approx(share, abs=noise(share, count))
    aims = np.arange(2, room)
    assert short.mean() == pytest.approx(aims.mean(), abs=5 * aims.std() / np.sqrt(len(short)))
    assert (short.min(), short.max()) == (2, room - 1)
    assert {len(pair.first) + len(pair.second) for pair in made(documents[:50], Pairing.order, short=0.0).pairs} == {
        room,
        9,
    }


def test_the_cut_between_two_texts_is_anywhere():
    documents = numbered([[1] * 6] * 10_000)
    found = made(documents, Pairing.order, short=0.0).pairs
    sizes = np.bincount([len(pair.second if pair.label else pair.first) for pair in found], minlength=7)
    assert sizes[[0, 6]].tolist() == [0, 0]
    np.testing.assert_allclose(sizes[1:6] / len(found), 0.2, atol=noise(0.2, len(found)))


def test_the_longer_text_is_cut_at_either_end():
    rng = np.random.default_rng(0)

    def one_by_one(first, second, room):
        while first + second > room:
            if first > second:
                first -= 1
            else:
                second -= 1
        return first, second

    for sizes in rng.integers(1, 40, (300, 2)).tolist():
        pair = truncate_pair(*map(np.arange, sizes), 0, 30, rng)
        assert (len(pair.first), len(pair.second)) == one_by_one(*sizes, 30)
    fronts = np.array([truncate_pair(np.arange(50), np.arange(4), 1, 20, rng).first[0] for _ in range(5000)])
    assert fronts.mean() == pytest.approx(34 / 2, abs=5 * np.sqrt(34 / 4 / 5000))  # a fair coin for each of 34 tokens
    assert fronts.var() == pytest.approx(34 / 4, rel=0.15)


@pytest.mark.parametrize("count", [2, 5])
def test_another_document_is_never_the_own_one(count):
    documents = numbered([[1] * 4] * count)
    rng = np.random.default_rng(0)
    drawn = [sample_other(documents, 1, 2, rng) for _ in range(4000)]
    owners = np.bincount([sentences[0][0] // DOCUMENT for sentences in drawn], minlength=count)
    assert owners[1] == 0
    share = 1 / (count - 1)
    np.testing.assert_allclose(np.delete(owners, 1) / 4000, share, atol=noise(share, 4000))
    begins = np.bincount([sentences[0][0] % DOCUMENT // SENTENCE for sentences in drawn])
    np.testing.assert_allclose(begins / 4000, 0.25, atol=noise(0.25, 4000))
    assert {len(sentences) for sentences in drawn} == {1, 2}  # the last sentence has none after it
    assert {len(sample_other(documents, 1, 0, rng)) for _ in range(20)} == {1}  # never nothing


def test_the_same_seed_makes_the_same_pairs():
    documents = corpus(50)
    one, other, another = (made(documents, Pairing.next, seed).pairs for seed in (1, 1, 2))
    same = [all(np.array_equal(a, b) for a, b in zip(p, q, strict=True)) for p, q in zip(one, other, strict=True)]
    assert all(same)
    assert [pair.label for pair in one] != [pair.label for pair in another]


# --- what cannot be a pair -------------------------------------------------------------------------------------------


def test_documents_of_one_sentence_are_left_out_and_counted():
    whole = numbered([[3, 3], [4], [], [2, 2, 2], [0, 5, 0]])
    found = made(whole, Pairing.order)
    assert (len(found.pairs), found.lone, found.single) == (2, 0, 3)
    assert describe(found).endswith("of them false (left out: 3 documents of one sentence)")
    long = made(numbered([[70, 70, 3, 3]] * 4), Pairing.order, short=0.0)
    assert (len(long.pairs), long.lone) == (4, 8)
    assert "8 sentences without a neighbour" in describe(long)


def test_nothing_to_pair_is_refused():
    with pytest.raises(UserError, match="here has no document of two sentences or more among 2; allowed"):
        made(numbered([[3], [4]]), Pairing.order)
    with pytest.raises(UserError, match="here has one document of two sentences or more; allowed: at least 2"):
        made(numbered([[3, 3], [4]]), Pairing.next)
    with pytest.raises(UserError, match="false pairs need another"):
        made(numbered([[3, 3]]), Pairing.order, lone=LonePolicy.random)
    assert len(made(numbered([[3, 3]]), Pairing.order).pairs) == 1
    with pytest.raises(UserError, match=r"here has no two consecutive sentences within 61 tokens; allowed: a larger"):
        made(numbered([[70, 70]] * 3), Pairing.order, short=0.0)


# --- text and rows ---------------------------------------------------------------------------------------------------


def test_sentences_end_before_a_capital():
    assert split_sentences(' One, e.g. this. Two!  Is it\nthree? No:\n"four". ') == [
        "One, e.g. this.",
        "Two!",
        "Is it\nthree?",
        'No:\n"four".',
    ]
    assert split_sentences("version 3.14 is out") == ["version 3.14 is out"]


@pytest.fixture
def words(tmp_path):
    return load_vocabulary(write_word_list(tmp_path))


def test_rows_of_pairs(words):
    (document,) = encode_documents(["The cat saw. A dog playing."], words.encode)
    assert [len(sentence) for sentence in document] == [4, 5]
    examples = [build_example(words, *document, 16)[0], build_example(words, *document[::-1], 16)[0]]
    found = pair_rows(examples, [0, 1], 16, words)
    the, cat, saw, a, dog, play, ing, end = 5, 6, 8, 9, 7, 15, 16, 18
    one, two = [the, cat, saw, end], [a, dog, play, ing, end]
    np.testing.assert_array_equal(found.x[0, 0], [2, *one, 3, *two, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.x[0, 1], [0] * 6 + [1] * 6 + [0] * 4)
    np.testing.assert_array_equal(found.x[1, 2], [1] * 12 + [0] * 4)
    np.testing.assert_array_equal(found.y[0], [0, -1, *one, -1, *two, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(found.y[1], [1, -1, *two, -1, *one, -1, -1, -1, -1, -1])
    assert {part.dtype for part in found} == {np.dtype(np.int32)}


def test_tokens_that_continue_a_word(words):
    assert words.continuations == (16, 17)  # ##ing, ##s
    assert word_level(["a", "b"]).continuations == ()


@pytest.mark.slow
def test_python_s_own_words(tmp_path):
    """The documents that every installation has: labels, and how far they are from balance."""
    documents = [*read_topics(), *(one.text for one in read_library(str(tmp_path)))]
    ids = {}

    def encode(texts):
        return [
            np.array([ids.setdefault(word, len(ids)) for word in collapse_whitespace(text).split()]) for text in texts
        ]

    split = encode_documents(documents, encode)
    found = {
        (pairing, lone): made(split, pairing, lone=lone, room=125)
        for pairing, lone in itertools.product(Pairing, LonePolicy)
    }
    assert all(len(part.pairs) > 2000 for part in found.values())
    assert 0.55 < found[Pairing.next, LonePolicy.random].false < 2 / 3
    for pairing in Pairing:
        fair = found[pairing, LonePolicy.skip]
        assert fair.false == pytest.approx(0.5, abs=noise(0.5, len(fair.pairs)))
        assert fair.single == found[pairing, LonePolicy.random].single > 0
