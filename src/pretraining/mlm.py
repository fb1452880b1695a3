"""``pretrain=mlm``: predict masked tokens (masked language modelling)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config.hparams import COUNT, FRACTION, UNIT, hparam
from ..config.schema import option_name
from ..data.base import Transfer
from ..errors import UserError
from ..models.base import Model
from .base import Pretraining, PretrainTask
from .text import NEXT, need_pairs, need_source


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


def continuations(data: Transfer) -> tuple[int, ...]:
    """Return the tokens that continue a word, ascending. The tokenizer must mark them."""
    vocabulary: Any = data.vocabulary  # Transfer allows None, which no task with masked tokens has
    if not (found := vocabulary.continuations):
        raise UserError(
            f"pretrain.whole_word_mask is true, and {vocabulary.origin} has no token that begins with ##; allowed: "
            "false, or a WordPiece"
        )
    return found


@dataclass(frozen=True)
class MlmWithPairs(Mlm):
    """Base of the options that add the loss of pairs of sentences. ``pairs``: the value of ``data.pairs``."""

    pairs: str = hparam("next", NEXT)

    def check_source(self, data: Transfer) -> None:
        """Refuse a source task without such pairs."""
        need_pairs(option_name(self), self.pairs, data)
