"""Metrics of entities and of answers, in NumPy."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Entity(NamedTuple):
    """A run of words of one type."""

    kind: str
    first: int
    last: int


class Score(NamedTuple):
    """Precision, recall and their harmonic mean; 0 where undefined."""

    precision: float
    recall: float
    f1: float
    support: int  # number of true entities


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """Return the entities of a sentence.

    By default, an ``I-`` that continues no entity begins one, as in the CoNLL-2000 scorer (``conlleval``) and seqeval's
    default mode. With ``strict``, as in seqeval's ``mode="strict"`` with IOB2, it is outside of all.
    """
    found: list[Entity] = []
    kind, first = "", 0  # of the current entity
    for place, tag in enumerate([*tags, "O"]):
        mark, _, own = tag.partition("-")
        if mark == "I" and own == kind:
            continue
        if kind:
            found.append(Entity(kind, first, place - 1))
        begins = mark == "B" or (mark == "I" and not strict)
        kind, first = (own, place) if begins else ("", place)
    return found


def entity_scores(
    true: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], strict: bool = False
) -> dict[str, Score]:
    """Return the scores of each type, and of all entities as ``micro``, from the tags of each sentence.

    A predicted entity is correct if its type, its first and its last word are. ``strict``: see :func:`entities`.
    """
    correct, n_true, n_predicted = Counter[str](), Counter[str](), Counter[str]()
    for a, b in zip(true, predicted, strict=True):
        mine, theirs = set(entities(a, strict)), set(entities(b, strict))
        n_true.update(one.kind for one in mine)
        n_predicted.update(one.kind for one in theirs)
        correct.update(one.kind for one in mine & theirs)
    scores = {kind: _score(correct[kind], n_true[kind], n_predicted[kind]) for kind in sorted(n_true | n_predicted)}
    return {**scores, "micro": _score(correct.total(), n_true.total(), n_predicted.total())}


def _score(correct: int, n_true: int, n_predicted: int) -> Score:
    f1 = 2 * correct / max(n_predicted + n_true, 1)
    return Score(correct / max(n_predicted, 1), correct / max(n_true, 1), f1, n_true)


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Return an answer as SQuAD 1.1 compares it: lower case, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, answers: Iterable[str]) -> float:
    """Return 1.0 if the normalised answer equals one of the correct ones, else 0.0."""
    return float(normalised(answer) in map(normalised, answers))


def answer_f1(answer: str, answers: Iterable[str]) -> float:
    """Return the F1 of the common words, counted with multiplicity, with the best of the correct answers."""

    def one_f1(one: str) -> float:
        mine, theirs = normalised(answer).split(), normalised(one).split()
        common = (Counter(mine) & Counter(theirs)).total()
        return 2 * common / (len(mine) + len(theirs)) if common else 0.0

    return max(map(one_f1, answers))


def squad_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the means of ``exact_match`` and ``f1`` over the questions, from 0 to 1."""
    pairs = list(zip(predicted, answers, strict=True))
    return {
        "exact_match": float(np.mean([exact_match(one, accepted) for one, accepted in pairs])),
        "f1": float(np.mean([answer_f1(one, accepted) for one, accepted in pairs])),
    }


def best_spans(
    starts: Float[np.ndarray, "N L"],
    ends: Float[np.ndarray, "N L"],
    offsets: Int[np.ndarray, "N L 2"],
    question: Int[np.ndarray, " N"],
    contexts: Sequence[str],
    *,
    n_best: int = 20,
    max_answer: int = 30,
) -> list[str]:
    """Return the best answer to each question over all its windows (Devlin et al. 2019, section 4.2).

    A span's score is the sum of its start and end logits. The ``n_best`` highest starts and ends of each window are
    combined; spans have at most ``max_answer`` tokens, and the first of equal scores wins. A question without a span
    has the answer "". ``offsets``: the characters of the context that each token spans, -1 outside of it;
    ``question``: the index in ``contexts`` of each row's question.
    """
    best: dict[int, tuple[float, str]] = {}
    for row, number in enumerate(np.asarray(question).tolist()):
        inside = np.flatnonzero(offsets[row, :, 0] >= 0)
        first = inside[np.argsort(-starts[row, inside], kind="stable")[:n_best]]
        last = inside[np.argsort(-ends[row, inside], kind="stable")[:n_best]]
        sums = np.add.outer(starts[row, first], ends[row, last]).astype(float)
        size = np.subtract.outer(-first, -last) + 1  # last - first + 1
        sums[(size < 1) | (size > max_answer)] = -np.inf
        if sums.size == 0 or not np.isfinite(sums.max()):
            continue
        i, j = np.unravel_index(np.argmax(sums), sums.shape)
        if number not in best or sums[i, j] > best[number][0]:
            begin, end = int(offsets[row, first[i], 0]), int(offsets[row, last[j], 1])
            best[number] = (float(sums[i, j]), str(contexts[number])[begin:end])
    return [best[number][1] if number in best else "" for number in range(len(contexts))]
