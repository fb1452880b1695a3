"""``pretrain=mlm``, ``causal_lm``, ``nsp``, ``sop``, ``mlm_nsp`` and ``mlm_sop``: learn from the tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config.hparams import COUNT, FRACTION, UNIT, Check, hparam
from ..config.schema import option_name
from ..data.base import Transfer
from ..errors import UserError
from ..models.base import Model
from ..objectives.pairs import PairLabels
from .base import Pretraining, PretrainTask

# Each option allows one value of its `pairs`, which data.pairs follows.
NEXT = Check("next", lambda v: v == "next")
ORDER = Check("order", lambda v: v == "order")


@dataclass(frozen=True)
class CausalLm(Pretraining):
    """Causal language modelling (Radford et al. 2018, "Improving language understanding", eq. 1)."""

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with a language-modelling head."""
        need_source("causal_lm", "causal", data, "data=plain_text with data.objective=causal")
        return super().pretrain_task(model, data)


@dataclass(frozen=True)
class Mlm(Pretraining):
    """Masked language modelling (Devlin et al., arXiv 1810.04805, section 3.1), masked anew in every update.

    ``mask_prob``: share of the tokens that are predicted. Of these, shares of ``mask_replace_prob`` and
    ``random_replace_prob`` are replaced by [MASK] and by a random token; the rest is unchanged. ``fixed_count``:
    predict as many tokens of each row as BERT's code, ``min(max_predictions_per_seq, max(1, round(mask_prob *
    length)))``, instead of drawing for each token. ``whole_word_mask``: choose all pieces of a word or none.
    """

    mask_prob: float = hparam(0.15, FRACTION)
    mask_replace_prob: float = hparam(0.8, UNIT)
    random_replace_prob: float = hparam(0.1, UNIT)
    fixed_count: bool = hparam(False)
    max_predictions_per_seq: int | None = hparam(None, COUNT)
    whole_word_mask: bool = hparam(False)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with a language-modelling head, and the masking."""
        self.check_source(data)
        task = super().pretrain_task(model, data)
        replaced, random = self.mask_replace_prob, self.random_replace_prob
        objective: Any = task.objective  # of masked tokens, since the source task is
        masked = replace(
            objective,
            mask_prob=self.mask_prob,
            shares=(replaced, random, 1.0 - replaced - random),
            fixed_count=self.fixed_count,
            max_predictions_per_seq=self.max_predictions_per_seq,
            continuations=continuations(data) if self.whole_word_mask else (),
        )
        return task._replace(objective=masked)

    def check_source(self, data: Transfer) -> None:
        """Refuse a source task other than masked tokens."""
        allowed = "data=docstrings with data.pairs=null, or data=plain_text with data.objective=masked"
        need_source("mlm", "masked", data, allowed)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse shares above 1 together, a limit without a fixed count, and unsupported data."""
        total = self.mask_replace_prob + self.random_replace_prob
        if total > 1.0 + 1e-9:
            raise UserError(
                f"pretrain.mask_replace_prob + pretrain.random_replace_prob is {total:g}; allowed: at most 1, the rest "
                "of the tokens is unchanged"
            )
        if self.max_predictions_per_seq is not None and not self.fixed_count:
            raise UserError(
                f"pretrain.max_predictions_per_seq is {self.max_predictions_per_seq}; allowed: null, or a number with "
                "pretrain.fixed_count=true"
            )
        super().check(model, data, batch)


@dataclass(frozen=True)
class MlmWithPairs(Mlm):
    """Base of the options that add the loss of pairs of sentences. ``pairs``: the value of ``data.pairs``."""

    pairs: str = hparam("next", NEXT)

    def check_source(self, data: Transfer) -> None:
        """Refuse a source task without such pairs."""
        need_pairs(option_name(self), self.pairs, data)


@dataclass(frozen=True)
class MlmNsp(MlmWithPairs):
    """Masked tokens and next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1)."""


@dataclass(frozen=True)
class MlmSop(MlmWithPairs):
    """Masked tokens and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

    pairs: str = hparam("order", ORDER)


@dataclass(frozen=True)
class PairPretraining(Pretraining):
    """Base of the options that learn pairs only. ``pairs``: the value of ``data.pairs``."""

    pairs: str = hparam("next", NEXT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with BERT's pre-training head, of which only the pair's part is trained."""
        need_pairs(option_name(self), self.pairs, data)
        return super().pretrain_task(model, data)._replace(objective=PairLabels())


@dataclass(frozen=True)
class Nsp(PairPretraining):
    """Next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1) without masked tokens."""


@dataclass(frozen=True)
class Sop(PairPretraining):
    """Sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1) without masked tokens."""

    pairs: str = hparam("order", ORDER)


def need_source(option: str, kind: str, data: Transfer, allowed: str) -> None:
    """Refuse data whose source task is of another kind than an option of ``pretrain`` needs."""
    if data.source_kind != kind or not data.source:
        has = f"is {data.source_kind}" if data.source else "is none"
        raise UserError(f"pretrain={option} learns {kind} words, and the data's source task {has}; allowed: {allowed}")


def need_pairs(option: str, pairs: str, data: Transfer) -> None:
    """Refuse data whose source task has other pairs than an option of ``pretrain`` needs, or none."""
    found = getattr(data, "pairs", None)
    if not data.source or found != pairs:
        has = f"data.pairs is {found}" if found and data.source else "the data has none"
        raise UserError(
            f"pretrain={option} learns from pairs of sentences, and {has}; allowed: data=docstrings or data=plain_text "
            f"with data.pairs={pairs}, which follows from pretrain={option} where it is not set"
        )


def continuations(data: Transfer) -> tuple[int, ...]:
    """Return the tokens that continue a word, ascending. The tokenizer must mark them."""
    vocabulary: Any = data.vocabulary  # Transfer allows None, which no task with masked tokens has
    if not (found := vocabulary.continuations):
        raise UserError(
            f"pretrain.whole_word_mask is true, and {vocabulary.origin} has no token that begins with ##; allowed: "
            "false, or a WordPiece"
        )
    return found
