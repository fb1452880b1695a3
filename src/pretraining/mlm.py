"""``pretrain=mlm``: say which words are missing (masked language modelling)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..config.hparams import COUNT, FRACTION, UNIT, hparam
from ..config.schema import option_name
from ..errors import UserError
from ..models.base import Model
from ..objectives.base import Objective
from ..objectives.text import Masked
from .base import Pretraining, PretrainTask, need_source
from .pairs import NEXT, need_pairs

if TYPE_CHECKING:
    from ..data.base import Transfer


@dataclass(frozen=True)
class Mlm(Pretraining):
    """Masked language modelling (Devlin et al., arXiv 1810.04805, section 3.1), masked anew in every update.

    ``rate``: share of the words that are to be said. Of these, ``mask`` are replaced by the mask and ``random`` by any
    word; the rest stays as it is. ``exact``: of each row as many as BERT's code takes, ``min(most, max(1, round(rate *
    length)))``, instead of each word on its own. ``whole_words``: all pieces of a word or none.
    """

    rate: float = hparam(0.15, FRACTION)
    mask: float = hparam(0.8, UNIT)
    random: float = hparam(0.1, UNIT)
    exact: bool = hparam(False)
    most: int | None = hparam(None, COUNT)
    whole_words: bool = hparam(False)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with its head for missing words, and what is masked."""
        self.need(data)
        lesson = super().pretrain_task(model, data)
        return lesson._replace(objective=self.masked(lesson.objective, data))

    def need(self, data: Transfer) -> None:
        """Refuse a source task without words that may be missing, or with more to it than these."""
        allowed = "data=docstrings with data.pairs=null, or data=plain_text with data.objective=masked"
        need_source("mlm", "masked", data, allowed)

    def masked(self, objective: Objective, data: Transfer) -> Objective:
        """Return the source task's objective with what is masked as the settings say."""
        if not isinstance(objective, Masked):
            raise TypeError(f"{type(objective).__name__} has no words that may be missing")
        return replace(
            objective,
            rate=self.rate,
            shares=(self.mask, self.random, 1.0 - self.mask - self.random),
            exact=self.exact,
            most=self.most,
            continues=continuations(data) if self.whole_words else (),
        )

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse shares that are more than all, a limit without a count, and whole words that cannot be told."""
        if self.mask + self.random > 1.0 + 1e-9:
            raise UserError(
                f"pretrain.mask + pretrain.random is {self.mask + self.random:g}; allowed: at most 1, the rest stays"
            )
        if self.most is not None and not self.exact:
            raise UserError(f"pretrain.most is {self.most}; allowed: null, or a number with pretrain.exact=true")
        super().check(model, data, batch)


@dataclass(frozen=True)
class WithPairs(Mlm):
    """Base of the options that learn pairs of sentences beside the words, both losses added.

    ``pairs``: what the data is asked for, as ``data.pairs``.
    """

    pairs: str = hparam("next", NEXT)

    def need(self, data: Transfer) -> None:
        """Refuse a source task without such pairs."""
        need_pairs(option_name(self), self.pairs, data)


def continuations(data: Transfer) -> tuple[int, ...]:
    """Return the tokens that continue a word, ascending.

    Raises:
        UserError: the tokenizer's do not tell.
    """
    vocabulary: Any = data.vocabulary  # Transfer allows None, which no task with masked tokens has
    if not (found := vocabulary.continuations):
        raise UserError(
            f"pretrain.whole_words is true, and {vocabulary.origin} has no token that begins with ##; allowed: false, "
            "or a WordPiece"
        )
    return found
