"""What a finished job says of new texts, which it reads as it read those that it learned from.

Everything comes from the job's folder: its configuration, its parameters with the leaves that its strategy added, the
tokenizer, and the names of its classes. Its data is not needed any more; of a checkpoint, only the ``config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..checkpoints.adapter_files import read_tensors
from ..config.hparams import static_part
from ..config.schema import option_name
from ..data.base import Transfer
from ..data.conll import align_tags
from ..data.packing import IGNORE, Example, buckets, build_example, fill_rows, unpacked
from ..data.squad import Squad, SquadQuestion, answers_of, window_rows, windows
from ..data.tokenization import TOKENIZER, Vocabulary, load_vocabulary
from ..errors import UserError, listed
from ..models.transformer import Transformer
from ..optim.partition import split
from ..recipe.run import Recipe, finetuning_stage
from ..tracking.record import CHECKPOINT, SUMMARY
from ..training.feature_cache import chunks
from ..training.stage import Stage, frozen_paths, traced
from ..training.vectorize import programs
from ..types import Params
from .find import find_finished

TASKS = ("conll", "docstrings", "hub_text", "squad", "text")  # of `data`: texts with something to say of each


class Prediction(NamedTuple):
    """What is said of texts, an object each, in their order."""

    objects: list[dict[str, Any]]
    cut: int  # texts of which something was left out for want of room
    length: int  # tokens that there is room for


@dataclass(frozen=True, eq=False)
class Predictor:
    """A finished job, ready for new texts."""

    source: Any  # of the job's data: its settings say how texts are read
    stage: Stage
    params: Params
    vocabulary: Vocabulary
    labels: tuple[str, ...]  # the name of each class; none of numbers and answers
    scale: tuple[float, float]  # of a regression: mean and deviation of its targets
    length: int  # tokens of a row, at most

    def predict(self, first: Sequence[str], second: Sequence[str] | None) -> Prediction:
        """Return what the job says of texts, or pairs of texts: of answers, questions and their contexts.

        Objects have ``label`` and ``probabilities`` (by the class's name), ``value`` (in the units of the job's files),
        ``words`` and ``tags`` (``None`` where a word is beyond the row's end), or ``answer``.
        """
        if option_name(self.source) == "conll":
            return self.tags(first)
        if second is not None and option_name(self.source) == "squad":
            return self.answers(first, second)
        return self.classes_or_numbers(first, second)

    def classes_or_numbers(self, first: Sequence[str], second: Sequence[str] | None) -> Prediction:
        """Return a label with the probability of each class, or a number, of each text or pair."""
        ids = self.vocabulary.encode(first)
        others = [None] * len(ids) if second is None else self.vocabulary.encode(second)
        both = [build_example(self.vocabulary, a, b, self.length) for a, b in zip(ids, others, strict=True)]
        outputs = self.outputs([example for example, _ in both])
        one = self.classified if self.labels else self.measured
        return Prediction([one(own) for own in outputs], sum(cut for _, cut in both), self.length)

    def classified(self, outputs: Float[np.ndarray, " K"]) -> dict[str, Any]:
        """Return the label of the highest probability, and all of them; computed in float64, kept in float32."""
        powers = np.exp(outputs.astype(np.float64) - outputs.max())
        shares = (powers / powers.sum()).astype(np.float32)
        written = dict(zip(self.labels, (float(str(share)) for share in shares), strict=True))  # 0.1, not 0.10000000149
        return {"label": self.labels[int(np.argmax(shares))], "probabilities": written}

    def measured(self, outputs: Float[np.ndarray, " 1"]) -> dict[str, Any]:
        """Return a number in its own units."""
        mean, deviation = self.scale
        return {"value": float(outputs[0]) * deviation + mean}

    def tags(self, sentences: Sequence[str]) -> Prediction:
        """Return the tag of each word of sentences, whose words have white space between them."""
        words = [text.split() for text in sentences]
        pieces = self.vocabulary.encode_words(words)
        rows = [align_tags(own, [0] * len(own), self.vocabulary, self.length) for own in pieces]
        objects = []
        for own, row, outputs in zip(words, rows, self.outputs([row.example for row in rows]), strict=True):
            said: list[str | None] = [self.labels[int(i)] for i in np.argmax(outputs[row.labels != IGNORE], axis=-1)]
            objects.append({"words": own, "tags": [*said, *[None] * (len(own) - len(said))]})
        return Prediction(objects, sum(row.truncated for row in rows), self.length)

    def answers(self, asked: Sequence[str], contexts: Sequence[str]) -> Prediction:
        """Return the piece of a context that answers its question, over all windows of the context."""
        source: Squad = replace(self.source, max_seq_len=self.length)
        room = min(source.question_length, self.length // 2)
        settings = replace(source, question_length=room, stride=min(source.stride, self.length - room - 3))
        questions = [
            SquadQuestion("", text, context, (), IGNORE) for text, context in zip(asked, contexts, strict=True)
        ]
        cuts = windows(questions, self.vocabulary, settings)
        _, kept = window_rows(cuts, questions, self.length, self.vocabulary.pad)
        outputs = np.zeros((len(cuts), self.length, 2), np.float32)
        for row, own in enumerate(self.outputs([one.example for one in cuts])):
            outputs[row, : len(own)] = own
        cut = sum(len(ids) > room for ids in self.vocabulary.encode(asked))
        return Prediction([{"answer": answer} for answer in answers_of(outputs, kept)], cut, room)

    def outputs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Return the network's outputs of each example: ``(K,)``, or ``(tokens, K)`` where it has one a token.

        Rows of about one width are computed together, and as many at once as memory is meant for, so that few programs
        are compiled.
        """
        run = programs(static_part(self.stage)).predictions
        hyper = traced(self.stage)
        frozen, moving = jax.device_put(split(self.params, frozen_paths(self.stage, self.params)))
        lengths = [len(one.ids) for one in examples]
        found: list[Any] = [None] * len(examples)
        for bucket in buckets(lengths, self.length):
            rows = bucket.rows.tolist()
            x = fill_rows([examples[row] for row in rows], unpacked(len(rows)), bucket.width, self.vocabulary.pad).x
            said: list[np.ndarray] = []
            for piece, count in chunks(self.stage.model, x):
                said.extend(np.asarray(run(hyper, moving, frozen, {"new": piece})["new"])[:count])
            for row, own in zip(rows, said, strict=True):
                found[row] = own[: lengths[row]] if own.ndim == 2 else own
        return found


def load_predictor(folder: Path) -> Predictor:
    """Return a completed job of texts, ready for new ones.

    Raises:
        UserError: no completed job, one whose data is no labelled texts, or one that kept no tokenizer.
    """
    _, plan = find_finished(folder)
    name, model = option_name(plan.source), plan.recipe.model
    if name not in TASKS or not isinstance(model, Transformer):
        raise UserError(f"'{folder}' has data={name}; allowed: a job of a model of text on data={listed(TASKS)}")
    facts = json.loads((folder / SUMMARY).read_text("utf-8"))["data"]
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"'{folder}' keeps no {TOKENIZER}, so it is of another version; allowed: the job run again")
    vocabulary = load_vocabulary(str(folder / TOKENIZER))
    labels, (mean, deviation) = tuple(facts.get("labels", ())), facts.get("scale", (0.0, 1.0))
    params: Any = read_tensors(folder / CHECKPOINT)[0]
    outputs = 2 if name == "squad" else len(labels) or 1
    return Predictor(
        source=plan.source,
        stage=last_stage(replace(plan.recipe, model=replace(model, examples=1)), outputs),
        params=params,
        vocabulary=vocabulary,
        labels=labels,
        scale=(mean, deviation),
        length=min(plan.source.max_seq_len, model.sizes.positions),  # type: ignore[attr-defined]
    )


def last_stage(recipe: Recipe, outputs: int) -> Stage:
    """Return the stage that fine-tuning ended in; an evaluation needs no more of the data than the head's outputs."""
    stage = finetuning_stage(recipe, Transfer("classification", {}, {}, outputs, outputs, new_head=False))
    return replace(stage, phase=len(recipe.strategy.tables(recipe.model.groups())) - 1)
