"""The predictions of a finished job for new texts, tokenized as its training texts were.

Everything is read from the job's folder: configuration, parameters, tokenizer and the names of classes. Its data is not
needed; of a checkpoint, only ``config.json``.
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

from ..config.hparams import static_part
from ..config.schema import option_name
from ..data.conll import align_tags
from ..data.packing import IGNORE, Example, buckets, build_example, fill_rows, unpacked
from ..data.squad import Squad, SquadQuestion, answers_of, window_index, windows
from ..data.tokenization import TOKENIZER, Vocabulary, load_vocabulary
from ..errors import UserError, listed
from ..models.transformer import Transformer
from ..objectives.supervised import Classification
from ..optim.partition import split
from ..recipe.resolve import finetune_stage
from ..tracking.record_writer import SUMMARY
from ..training.feature_cache import chunks
from ..training.stage import Stage, frozen_paths, traced
from ..training.vectorize import programs
from ..types import Params
from .jobs import read_job

TEXT_DATA = ("conll", "docstrings", "hub_text", "squad", "text")  # options of `data` with labelled texts


class Prediction(NamedTuple):
    """The predictions for texts, in their order."""

    rows: list[dict[str, Any]]
    truncated: int  # texts that were longer than max_length
    max_length: int  # in tokens


@dataclass(frozen=True, eq=False)
class Predictor:
    """A finished job, ready for new texts."""

    source: Any  # the job's data, whose settings say how texts are tokenized
    stage: Stage
    params: Params
    vocabulary: Vocabulary
    labels: tuple[str, ...]  # the names of classes; empty for numbers and answers
    scale: tuple[float, float]  # of a regression: mean and standard deviation of its targets
    max_length: int  # tokens of a row

    def predict(self, first: Sequence[str], second: Sequence[str] | None) -> Prediction:
        """Return the predictions for texts or pairs of texts; of question answering, for questions and contexts.

        Rows have ``label`` and ``probabilities`` (by class), ``value`` (in the units of the job's files), ``words`` and
        ``tags`` (``None`` beyond the row's end), or ``answer``.
        """
        if option_name(self.source) == "conll":
            return self.predict_tags(first)
        if second is not None and option_name(self.source) == "squad":
            return self.predict_answers(first, second)
        return self.predict_labels(first, second)

    def predict_labels(self, first: Sequence[str], second: Sequence[str] | None) -> Prediction:
        """Return a class with all probabilities, or a number, for each text or pair."""
        ids = self.vocabulary.encode(first)
        others = [None] * len(ids) if second is None else self.vocabulary.encode(second)
        framed = [build_example(self.vocabulary, a, b, self.max_length) for a, b in zip(ids, others, strict=True)]
        outputs = self.outputs([example for example, _ in framed])
        rows = [self._class_row(own) if self.labels else {"value": self._value(own)} for own in outputs]
        return Prediction(rows, sum(cut for _, cut in framed), self.max_length)

    def _class_row(self, outputs: Float[np.ndarray, " K"]) -> dict[str, Any]:
        powers = np.exp(outputs.astype(np.float64) - outputs.max())
        probabilities = (powers / powers.sum()).astype(np.float32)
        written = (float(str(value)) for value in probabilities)  # 0.1, not 0.10000000149
        label = self.labels[int(np.argmax(probabilities))]
        return {"label": label, "probabilities": dict(zip(self.labels, written, strict=True))}

    def _value(self, outputs: Float[np.ndarray, " 1"]) -> float:
        mean, deviation = self.scale
        return float(outputs[0]) * deviation + mean

    def predict_tags(self, sentences: Sequence[str]) -> Prediction:
        """Return the tag of each word of sentences, whose words are separated by white space."""
        words = [text.split() for text in sentences]
        pieces = self.vocabulary.encode_words(words)
        examples = [align_tags(own, [0] * len(own), self.vocabulary, self.max_length) for own in pieces]
        rows = []
        for own, row, outputs in zip(words, examples, self.outputs([row.example for row in examples]), strict=True):
            tags: list[str | None] = [self.labels[int(i)] for i in np.argmax(outputs[row.labels != IGNORE], axis=-1)]
            rows.append({"words": own, "tags": [*tags, *[None] * (len(own) - len(tags))]})
        return Prediction(rows, sum(row.truncated for row in examples), self.max_length)

    def predict_answers(self, questions: Sequence[str], contexts: Sequence[str]) -> Prediction:
        """Return the piece of each context that answers its question, over all windows of the context."""
        source: Squad = replace(self.source, max_seq_len=self.max_length)
        max_length = min(source.question_length, self.max_length // 2)
        stride = min(source.stride, self.max_length - max_length - 3)
        settings = replace(source, question_length=max_length, stride=stride)
        asked = [
            SquadQuestion("", text, context, (), IGNORE) for text, context in zip(questions, contexts, strict=True)
        ]
        examples = list(windows(asked, self.vocabulary, settings))
        kept = window_index(examples, asked, self.max_length)
        outputs = np.zeros((len(examples), self.max_length, 2), np.float32)
        for row, own in enumerate(self.outputs([one.example for one in examples])):
            outputs[row, : len(own)] = own
        truncated = sum(len(ids) > max_length for ids in self.vocabulary.encode(questions))
        return Prediction([{"answer": answer} for answer in answers_of(outputs, kept)], truncated, max_length)

    def outputs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Return the network's outputs for each example: ``(K,)``, or ``(tokens, K)`` where it has one a token.

        Rows of similar width are computed together, so that few programs are compiled.
        """
        run = programs(static_part(self.stage)).predictions
        hyper = traced(self.stage)
        frozen, trainable = jax.device_put(split(self.params, frozen_paths(self.stage, self.params)))
        lengths = [len(one.ids) for one in examples]
        found: list[Any] = [None] * len(examples)
        for bucket in buckets(lengths, self.max_length):
            rows = bucket.rows.tolist()
            x = fill_rows([examples[row] for row in rows], unpacked(len(rows)), bucket.width, self.vocabulary.pad).x
            outputs: list[np.ndarray] = []
            for piece, count in chunks(self.stage.model, x):
                outputs.extend(np.asarray(run(hyper, trainable, frozen, {"new": piece})["new"])[:count])
            for row, own in zip(rows, outputs, strict=True):
                found[row] = own[: lengths[row]] if own.ndim == 2 else own
        return found


def load_predictor(folder: Path) -> Predictor:
    """Return a completed job of texts, ready for new ones.

    Raises:
        UserError: no completed job, one whose data is not labelled texts, or one without its tokenizer.
    """
    job = read_job(folder)
    source, model = job.plan.source, job.plan.recipe.model
    name = option_name(source)
    if name not in TEXT_DATA or not isinstance(model, Transformer):
        raise UserError(f"'{folder}' has data={name}; allowed: a job of a model of text on data={listed(TEXT_DATA)}")
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"'{folder}' has no {TOKENIZER}, so it is of another version; allowed: the job run again")
    facts = json.loads((folder / SUMMARY).read_text("utf-8"))["data"]
    labels, (mean, deviation) = tuple(facts.get("labels", ())), facts.get("scale", (0.0, 1.0))
    recipe = replace(job.plan.recipe, model=replace(model, examples=1))
    # Of the data, evaluation needs only the number of outputs.
    stage = finetune_stage(recipe, 2 if name == "squad" else len(labels) or 1, Classification())
    return Predictor(
        source=source,
        stage=replace(stage, phase=len(recipe.strategy.tables(recipe.model.groups())) - 1),
        params=job.read_params(),
        vocabulary=load_vocabulary(str(folder / TOKENIZER)),
        labels=labels,
        scale=(mean, deviation),
        max_length=min(source.max_seq_len, model.sizes.positions),  # type: ignore[attr-defined]
    )
