"""What is minimised, by the kind of a task."""

from __future__ import annotations

from .base import Objective
from .pairs import MaskedPairs
from .supervised import Classification, Regression
from .text import Causal, Spans
from .text import MaskedLm as Masked
from .text import TokenClassification as Labels

OBJECTIVES: dict[str, Objective] = {
    "regression": Regression(),
    "classification": Classification(),
    "labels": Labels(),
    "spans": Spans(),
    "causal": Causal(),
    "masked": Masked(),  # its numbers of tokens are the data's
    "pretraining": MaskedPairs(),  # and this one's
}
