"""``data=squad``: extractive question answering on files in SQuAD's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..config.hparams import COUNT, hparam
from ..errors import UserError
from ..metrics.text import best_spans, squad_scores
from ..notices import warn_once
from .packing import IGNORE, Example, build_example, special_tokens
from .text_source import LENGTH, TextFileSource, TextTransfer
from .tokenization import Vocabulary, read_text


class SquadQuestion(NamedTuple):
    """A question, with what its score needs."""

    name: str  # id in the file
    text: str
    context: str
    answers: tuple[str, ...]  # any of them counts as right
    start: int  # character at which the first answer begins in the context; -1: not found


class WindowIndex(NamedTuple):
    """What maps predicted tokens of a part's rows back to text."""

    questions: list[SquadQuestion]
    question: Int[np.ndarray, " N"]  # of each row, as an index of ``questions``
    offsets: Int[np.ndarray, "N L 2"]  # characters of the context that a token spans; -1 outside of the context


@dataclass(frozen=True)
class SquadTransfer(TextTransfer):
    """Rows of questions, scored by the text of their answers."""

    scored: ClassVar[bool] = True
    questions: Mapping[str, WindowIndex] = field(default_factory=dict)  # by part

    def scores(self, part: str, outputs: Float[np.ndarray, "N L 2"]) -> dict[str, float]:
        """Return exact match and F1 over the questions; each has one answer from all its windows."""
        index = self.questions[part]
        return squad_scores(answers_of(outputs, index), [one.answers for one in index.questions])


def answers_of(outputs: Float[np.ndarray, "N L 2"], index: WindowIndex) -> list[str]:
    """Return the best answer to each question, as text."""
    contexts = [one.context for one in index.questions]
    return best_spans(outputs[..., 0], outputs[..., 1], index.offsets, index.question, contexts)


@dataclass(frozen=True, kw_only=True)
class Squad(TextFileSource):
    """Extractive question answering (Rajpurkar et al. 2016, arXiv 1606.05250) on SQuAD 1.1's JSON.

    A row is ``[CLS] question [SEP] context [SEP]``. Questions are truncated to ``question_length`` tokens. A context
    that does not fit is split into overlapping windows that start ``stride`` tokens apart, as in Devlin et al. 2019.
    Windows that contain the whole answer are trained on; all windows are predicted. Parts that have no file consist of
    random contexts. ``train_rows`` counts questions.
    """

    stride: int = hparam(128, COUNT)
    question_length: int = hparam(64, COUNT)
    max_seq_len: int = hparam(384, LENGTH)

    def load(self) -> TextTransfer:
        """Read, split, encode and locate the answers."""
        origin = f"data.path={self.path}"
        if self.examples > 1:
            raise UserError(f"data.examples is {self.examples}; allowed with data=squad: 1, an example a row")
        if (room := self.max_seq_len - self.question_length - 3) < self.stride:
            raise UserError(
                f"data.stride is {self.stride}; allowed: at most {room}, what "
                "data.max_seq_len leaves beside a question of data.question_length and 3 special tokens"
            )
        parts = self._parts(origin)
        vocabulary = self.vocabulary(lambda: [text for one in parts["train"] for text in (one.context, one.text)])
        cuts = {name: list(windows(part, vocabulary, self)) for name, part in parts.items()}
        wide = self.row_width({name: [one.example for one in part] for name, part in cuts.items()})
        chosen = set(self.train_subset(np.arange(len(parts["train"])), None, origin).tolist())
        cuts["train"] = [one for one in cuts["train"] if one.question in chosen and one.span[0] != IGNORE]
        if not cuts["train"]:
            raise UserError(f"{origin}: no window contains a whole answer; allowed: at least one")
        rows = self.rows({name: [one.example for one in part] for name, part in cuts.items()}, wide, vocabulary, origin)
        spans = {name: np.array([one.span for one in part], np.int32) for name, part in cuts.items()}
        index = {name: window_index(part, parts[name], wide) for name, part in cuts.items()}
        return SquadTransfer.without_source("spans", rows, spans, 2, vocabulary=vocabulary, questions=index)

    def _parts(self, origin: str) -> dict[str, list[SquadQuestion]]:
        given = {name: [part] for name, part in self.read_separate(read_questions).items()}
        by_context: dict[str, list[SquadQuestion]] = {}
        for one in read_questions(self.path, origin):
            by_context.setdefault(one.context, []).append(one)
        rng = np.random.default_rng(self.split_seed)
        contexts = self.split(list(by_context.values()), given, rng, origin)
        found = {name: [one for questions in part for one in questions] for name, part in contexts.items()}
        return found | {"train": [found["train"][row] for row in rng.permutation(len(found["train"]))]}


def read_questions(path: str, origin: str) -> list[SquadQuestion]:
    """Return the questions of a file; questions without an answer (in SQuAD 2.0) are counted and left out."""
    whole = questions_in(read_text(Path(path), origin), origin)
    found = [one for one in whole if one.answers]
    if not found:
        raise UserError(f"{origin} has no questions with an answer; allowed: at least one")
    if silent := len(whole) - len(found):
        warn_once(f"{origin}: {silent} of {len(whole)} questions have no answer and are left out")
    if lost := sum(one.start == IGNORE for one in found):
        warn_once(f"{origin}: {lost} of {len(whole)} questions have an answer that is not in their context")
    return found


def questions_in(content: str, origin: str, answered: bool = True) -> list[SquadQuestion]:
    """Return the questions of a JSON text in SQuAD's format, in order; with no answers unless ``answered``."""
    try:
        known: Any = json.loads(content)
    except ValueError as error:
        raise UserError(f"{origin} is no JSON: {error}") from error
    found: list[SquadQuestion] = []
    try:
        for paragraph in (one for article in known["data"] for one in article["paragraphs"]):
            context = str(paragraph["context"])
            for item in paragraph["qas"]:
                given = item["answers"] if answered else ()
                answers = [(str(answer["text"]), int(answer["answer_start"])) for answer in given]
                words = tuple(text for text, _ in answers)
                start = find_answer(context, *answers[0]) if answers else IGNORE
                found.append(SquadQuestion(str(item["id"]), str(item["question"]), context, words, start))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{origin} is not in SQuAD's format: {reason}") from error
    return found


def find_answer(context: str, answer: str, start: int) -> int:
    """Return the start of the answer's occurrence nearest to ``start``; -1 if there is none."""
    if answer and context.startswith(answer, start):
        return start
    start = max(start, 0)
    before = context.rfind(answer, 0, start + len(answer) - 1)
    places = [place for place in (before, context.find(answer, start)) if answer and place >= 0]
    return min(places, key=lambda place: abs(place - start), default=IGNORE)


class Window(NamedTuple):
    """A question with a piece of its context."""

    example: Example
    question: int  # its index
    span: tuple[int, int]  # first and last token of the answer in the row; -1: not whole in this window
    offsets: Int[np.ndarray, "T 2"]


def windows(questions: Sequence[SquadQuestion], vocabulary: Vocabulary, settings: Squad) -> Iterator[Window]:
    """Yield the windows of each question, in the order of the questions."""
    contexts = sorted({one.context for one in questions})
    pieces = dict(zip(contexts, vocabulary.encode_with_offsets(contexts), strict=True))
    encoded = [ids[: settings.question_length] for ids in vocabulary.encode([one.text for one in questions])]
    for number, (question, ids) in enumerate(zip(questions, encoded, strict=True)):
        context = pieces[question.context]
        room = settings.max_seq_len - len(ids) - special_tokens(vocabulary, 2)
        front = len(vocabulary.cls_ids) + len(ids) + len(vocabulary.sep_ids)
        first, last = token_span(context.offsets, question.start, question.start + len("".join(question.answers[:1])))
        for begin in range(0, len(context.ids), settings.stride):
            end = min(begin + room, len(context.ids))
            example, _ = build_example(vocabulary, ids, context.ids[begin:end], settings.max_seq_len)
            offsets = np.full((len(example.ids), 2), IGNORE)
            offsets[front : front + end - begin] = context.offsets[begin:end]
            inside = question.start != IGNORE and begin <= first <= last < end
            span = (front + first - begin, front + last - begin) if inside else (IGNORE, IGNORE)
            yield Window(example, number, span, offsets)
            if end == len(context.ids):  # this window contains the end of the context
                break


def token_span(offsets: Int[np.ndarray, "T 2"], start: int, end: int) -> tuple[int, int]:
    """Return the first and the last token that overlap ``text[start:end]``; last < first if none does."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    return first, int(np.searchsorted(offsets[:, 0], end, side="left")) - 1


def window_index(cuts: Sequence[Window], questions: list[SquadQuestion], wide: int) -> WindowIndex:
    """Return what maps predictions of windows in rows of ``wide`` tokens back to text."""
    offsets = np.full((len(cuts), wide, 2), IGNORE)
    for row, one in enumerate(cuts):
        offsets[row, : len(one.offsets)] = one.offsets
    return WindowIndex(questions, np.array([one.question for one in cuts]), offsets)
