"""The objective of each kind of task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import Objective
from .pairs import MaskedPairs
from .supervised import Classification, Regression
from .text import Causal, MaskedLm, Spans, TokenClassification

CLASSES: dict[str, type[Objective]] = {
    "regression": Regression,
    "classification": Classification,
    "labels": TokenClassification,
    "spans": Spans,
    "causal": Causal,
    "masked": MaskedLm,
    "pretraining": MaskedPairs,
}


def for_kind(kind: str, vocabulary: Any = None) -> Objective:
    """Return what a task of a kind minimises; the vocabulary is for objectives that mask tokens."""
    objective = CLASSES[kind]()
    if isinstance(objective, MaskedLm) and vocabulary is not None:
        return replace(objective, mask_id=vocabulary.mask, vocab_size=vocabulary.size)
    return objective
