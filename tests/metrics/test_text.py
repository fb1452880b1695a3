"""Metrics of text against closed forms, entities marked by hand, and SQuAD's published rules."""

import itertools

import numpy as np
import pytest

from src.metrics.text import (
    Entity,
    answer_f1,
    best_spans,
    entities,
    entity_scores,
    exact_match,
    normalised,
    squad_scores,
)

BY_HAND = [
    # tags, as conlleval and seqeval's default read them, as IOB2 read strictly
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)], None),
    ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)], None),
    ("O O", [], None),
    ("", [], None),
    ("I-PER I-PER O", [("PER", 0, 1)], []),
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)], [("PER", 0, 0)]),
    ("O I-LOC B-LOC I-LOC", [("LOC", 1, 1), ("LOC", 2, 3)], [("LOC", 2, 3)]),
    ("B-ORG O I-ORG", [("ORG", 0, 0), ("ORG", 2, 2)], [("ORG", 0, 0)]),
    ("B-ORG I-PER I-ORG", [("ORG", 0, 0), ("PER", 1, 1), ("ORG", 2, 2)], [("ORG", 0, 0)]),
    ("B-A-B I-A-B", [("A-B", 0, 1)], None),
]


@pytest.mark.parametrize(("tags", "lenient", "strict"), BY_HAND)
def test_entities_by_hand(tags, lenient, strict):
    assert entities(tags.split()) == [Entity(*one) for one in lenient]
    assert entities(tags.split(), strict=True) == [Entity(*one) for one in (lenient if strict is None else strict)]


def test_scores_of_entities():
    """The example of seqeval's documentation: one of two entities is right."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores = entity_scores(true, said)
    assert scores["micro"] == (0.5, 0.5, 0.5, 2)
    assert scores["MISC"] == (0, 0, 0, 1)
    assert scores["PER"] == (1, 1, 1, 1)
    scores = entity_scores([["B-A", "O", "B-A", "B-B"]], [["B-A", "O", "O", "I-C"]])
    assert scores["micro"] == (1 / 2, 1 / 3, 2 / 5, 3)
    assert scores["C"] == (0, 0, 0, 0)
    strict = entity_scores([["B-A", "O", "B-A", "B-B"]], [["B-A", "O", "O", "I-C"]], strict=True)
    assert strict["micro"] == (1, 1 / 3, 1 / 2, 3)
    assert entity_scores([["O"]], [["O"]])["micro"] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Denver Broncos.", "denver broncos"),
        ("  an   apple, a pear & THE plum", "apple pear plum"),
        ("anthem of theatre", "anthem of theatre"),  # articles as whole words only
        ("Levi's Stadium", "levis stadium"),
        ("$1,200.50", "120050"),
        ("a", ""),
    ],
)
def test_answers_as_squad_normalises_them(answer, plain):
    assert normalised(answer) == plain


def test_scores_of_answers():
    assert exact_match("the Denver Broncos!", ["Carolina Panthers", "Denver Broncos"]) == 1
    assert exact_match("Denver", ["Denver Broncos"]) == 0
    assert answer_f1("Denver", ["Denver Broncos"]) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert answer_f1("in Santa Clara, California", ["Santa Clara", "Levi's"]) == pytest.approx(2 / 3)  # 2/4 and 2/2
    assert answer_f1("to to be", ["to be to be"]) == pytest.approx(2 * 3 / 7)
    assert answer_f1("x", ["y"]) == answer_f1("", ["y"]) == 0
    scores = squad_scores(["Denver", "1982"], [["Denver Broncos"], ["1982", "in 1982"]])
    assert scores == {"exact_match": 0.5, "f1": pytest.approx((2 / 3 + 1) / 2)}


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_that_of_a_search_of_all(seed):
    rng = np.random.default_rng(seed)
    context = "abcdefghijklmnopqrstuvwxyz"
    starts, ends = rng.normal(size=(2, 6, 12))
    offsets = np.full((6, 12, 2), -1)
    for row in range(6):
        begin = rng.integers(0, 12)
        offsets[row, 3:11] = [(begin + i, begin + i + 1) for i in range(8)]
    question = np.array([0, 0, 1, 1, 1, 2])
    found = best_spans(starts, ends, offsets, question, [context] * 4, n_best=20, max_answer=4)
    for number in range(3):
        spans = {
            starts[row, i] + ends[row, j]: context[offsets[row, i, 0] : offsets[row, j, 1]]
            for row in np.flatnonzero(question == number)
            for i, j in itertools.product(range(3, 11), repeat=2)
            if 0 <= j - i < 4
        }
        assert found[number] == spans[max(spans)]
    assert found[3] == ""  # nobody asked


def test_what_the_search_leaves_out():
    starts = np.array([[9.0, 5, 0, 0, 0]])
    ends = np.array([[9.0, 0, 0, 4, 6]])
    offsets = np.array([[[-1, -1], [0, 1], [1, 2], [2, 3], [3, 4]]])
    ask = np.array([0])
    assert best_spans(starts, ends, offsets, ask, ["abcd"]) == ["abcd"]  # not the first token, which is no text
    assert best_spans(starts, ends, offsets, ask, ["abcd"], max_answer=3) == ["abc"]
    # The one best start and the one best end only: 4 tokens, which are too many.
    assert best_spans(starts, ends, offsets, ask, ["abcd"], n_best=1, max_answer=3) == [""]
