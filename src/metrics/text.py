"""What is reported of models of text: of classes, numbers, entities, answers, and of a language model's losses."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

# --- classes and numbers ---------------------------------------------------------------------------------------------


def accuracy(true: Shaped[np.ndarray, " N"], predicted: Shaped[np.ndarray, " N"]) -> float:
    """Return the share of predictions that are right; NaN of none."""
    return float(np.mean(np.asarray(true) == np.asarray(predicted))) if len(true) else math.nan


def confusion(
    true: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], classes: int | None = None
) -> Int[np.ndarray, "K K"]:
    """Return how often class i (row) was taken for class j (column)."""
    true, predicted = np.asarray(true, int), np.asarray(predicted, int)
    classes = classes or int(max(true.max(initial=0), predicted.max(initial=0))) + 1
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (true, predicted), 1)
    return counts


def macro_f1(true: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]) -> float:
    """Return the mean over the classes of ``2 tp / (2 tp + fp + fn)``, over those that occur in either."""
    counts = confusion(true, predicted)
    right, total = np.diag(counts), counts.sum(0) + counts.sum(1)
    return float(np.mean(2 * right[total > 0] / total[total > 0])) if total.any() else math.nan


def matthews(true: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"]) -> float:
    """Return Matthews' correlation, of any number of classes (Gorodkin 2004, equation 8); 0 where one is constant."""
    counts = confusion(true, predicted).astype(float)
    happened, said, rows = counts.sum(1), counts.sum(0), counts.sum()
    below = (rows**2 - said @ said) * (rows**2 - happened @ happened)
    return float((np.trace(counts) * rows - happened @ said) / math.sqrt(below)) if below > 0 else 0.0


def pearson(true: Float[np.ndarray, " N"], predicted: Float[np.ndarray, " N"]) -> float:
    """Return the correlation of two series; NaN where one of them is constant, as it is undefined."""
    a, b = np.asarray(true, float), np.asarray(predicted, float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))


# --- entities --------------------------------------------------------------------------------------------------------


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
    support: int  # true ones


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """Return the entities of a sentence.

    By default as the CoNLL-2000 scorer (``conlleval``) and seqeval's default mode read them: an ``I-`` that continues
    nothing begins an entity, so models that forget a ``B-`` are forgiven. ``strict`` is seqeval's ``mode="strict"``
    with IOB2: an entity begins with ``B-``, and an ``I-`` that continues nothing of its type belongs to none.
    """
    found: list[Entity] = []
    kind, first = "", 0  # of the entity that is open
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
    """Return the scores of each type, and ``micro``: of all entities together.

    An entity counts if its type, its first and its last word are right.

    Args:
        true: the tags of each sentence.
        predicted: of the same words.
        strict: see :func:`entities`; the same reading for both.
    """
    right, happened, said = Counter[str](), Counter[str](), Counter[str]()
    for a, b in zip(true, predicted, strict=True):
        if len(a) != len(b):
            raise ValueError(f"a sentence has {len(a)} tags and {len(b)} predictions")
        mine, theirs = set(entities(a, strict)), set(entities(b, strict))
        happened.update(one.kind for one in mine)
        said.update(one.kind for one in theirs)
        right.update(one.kind for one in mine & theirs)
    scores = {kind: _score(right[kind], happened[kind], said[kind]) for kind in sorted(happened | said)}
    return {**scores, "micro": _score(right.total(), happened.total(), said.total())}


def _score(right: int, happened: int, said: int) -> Score:
    return Score(
        right / said if said else 0.0,
        right / happened if happened else 0.0,
        2 * right / (said + happened) if said + happened else 0.0,
        happened,
    )


# --- answers ---------------------------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Return an answer as SQuAD 1.1 compares it: lower case, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, answers: Iterable[str]) -> float:
    """Return 1.0 if the answer is one of the right ones, normalised."""
    return _best(lambda one: float(normalised(answer) == normalised(one)), answers)


def answer_f1(answer: str, answers: Iterable[str]) -> float:
    """Return the F1 of the words in common, each as often as it occurs, with the right answer that fits best."""

    def one_f1(one: str) -> float:
        mine, theirs = normalised(answer).split(), normalised(one).split()
        common = (Counter(mine) & Counter(theirs)).total()
        return 2 * common / (len(mine) + len(theirs)) if common else 0.0

    return _best(one_f1, answers)


def _best(score: Callable[[str], float], answers: Iterable[str]) -> float:
    return max(map(score, answers))


def squad_scores(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return mean ``exact_match`` and ``f1`` over the questions, from 0 to 1."""
    pairs = list(zip(predicted, answers, strict=True))
    return {
        "exact_match": float(np.mean([exact_match(one, right) for one, right in pairs])),
        "f1": float(np.mean([answer_f1(one, right) for one, right in pairs])),
    }


def best_spans(
    starts: Float[np.ndarray, "N L"],
    ends: Float[np.ndarray, "N L"],
    offsets: Int[np.ndarray, "N L 2"],
    question: Int[np.ndarray, " N"],
    contexts: Sequence[str],
    n_best: int = 20,
    max_answer: int = 30,
) -> list[str]:
    """Return the best answer to each question, over all its windows (Devlin et al. 2019, section 4.2).

    A span's score is its start logit plus its end logit. Of each window the ``n_best`` highest starts and ends are
    tried, with the end not before the start and at most ``max_answer`` tokens; of equal scores the first wins. A
    question without any such span is answered by "".

    Args:
        starts: logits of each row.
        ends: logits of each row.
        offsets: characters of the context that each token is made of; -1 for tokens of none, which no answer has.
        question: that each row asks, by its number.
        contexts: of each question.
        n_best: starts and ends of a window that are tried.
        max_answer: tokens.
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


# --- language models -------------------------------------------------------------------------------------------------


def perplexity(losses: Float[np.ndarray, " B"], tokens: Int[np.ndarray, " B"]) -> float:
    """Return ``exp`` of the mean loss of a token.

    Args:
        losses: mean loss of each batch or row, in nats.
        tokens: that each is the mean of: a mean of means would weigh tokens of short rows more.
    """
    counts = np.asarray(tokens, float)
    return math.exp(float(np.asarray(losses, float) @ counts) / counts.sum()) if counts.sum() else math.nan
