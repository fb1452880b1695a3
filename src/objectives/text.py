"""Objectives over tokens: each loss is a mean over the valid targets; -1 marks an entry without one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ..config.hparams import COUNT, FRACTION, UNIT, hparam
from ..errors import UserError
from ..metrics.classification import at_least_float32, masked_mean
from .base import Objective
from .masking import SHARES, mask_tokens, word_ids
from .supervised import Classification


def cross_entropy(outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Return each target's cross-entropy in nats; for a target of -1, that of class 0."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(outputs), jnp.maximum(targets, 0))


@dataclass(frozen=True)
class TokenClassification(Classification):
    """Cross-entropy over the valid labels: of tokens, or of several examples in a row."""

    def valid(self, targets: Int[Array, "*n"]) -> Bool[Array, "*n"]:
        """Return which labels are valid."""
        return targets >= 0

    def count(self, targets: Int[Array, "*n"]) -> Float[Array, ""]:
        """Return the number of valid labels."""
        return jnp.sum(self.valid(targets)).astype(jnp.float32)


@dataclass(frozen=True)
class Spans(TokenClassification):
    """Where an answer begins and ends: the mean of two cross-entropies over a row's tokens (arXiv 1810.04805, 4.2)."""

    def loss(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N 2"], smoothing: Any = None) -> Array:
        """Return the mean over first and last tokens; a row without the answer has none."""
        return masked_mean(cross_entropy(jnp.swapaxes(outputs, 1, 2), targets), self.valid(targets))

    def metrics(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N 2"]) -> dict[str, Float[Array, ""]]:
        """Return the loss, and the share of answers of which both ends have the highest outputs."""
        both = jnp.all(jnp.argmax(outputs, axis=1) == targets, axis=-1).astype(jnp.float32)
        exact = masked_mean(both, jnp.all(self.valid(targets), axis=-1))
        return {"loss": self.loss(outputs, targets), "accuracy": exact}

    report = Objective.report


@dataclass(frozen=True)
class Causal(TokenClassification):
    """The next token: cross-entropy over a vocabulary, and the perplexity ``exp(mean)`` over all tokens."""

    def reduce_outputs(self, outputs: Float[Array, "N L V"], targets: Int[Array, "N L"]) -> Float[Array, "N L 2"]:
        """Return each token's cross-entropy and whether it was right, so that no outputs over a vocabulary are kept."""
        hits = jnp.argmax(outputs, axis=-1) == targets
        return jnp.stack([cross_entropy(outputs, targets), hits.astype(jnp.float32)], axis=-1)

    def metrics(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N L"]) -> dict[str, Float[Array, ""]]:
        """Return the loss, the perplexity and the share of right tokens, of what :meth:`reduce_outputs` returned."""
        losses, hits = outputs[..., 0], outputs[..., 1]
        loss = masked_mean(losses, self.valid(targets))
        return {"loss": loss, "perplexity": jnp.exp(loss), "accuracy": masked_mean(hits, self.valid(targets))}

    report = Objective.report


@dataclass(frozen=True)
class MaskedLm(Causal):
    """Masked tokens (Devlin et al., arXiv 1810.04805, section 3.1), masked anew in every update.

    Every validation masks the same tokens, so that its losses can be compared.
    """

    mask_id: int = 0  # of the [MASK] token
    vocab_size: int = 0  # random replacements are drawn from
    mask_prob: float = hparam(0.15, FRACTION)  # share of the tokens that are predicted
    fixed_count: bool = hparam(False)  # whether each row has that share of them, as in BERT's code, or only on average
    max_predictions_per_seq: int | None = hparam(None, COUNT)  # under fixed_count
    shares: tuple[float, float, float] = hparam(SHARES, UNIT)  # of them: masked, replaced at random, unchanged
    continuations: tuple[int, ...] = ()  # tokens that continue a word, for whole-word masking; none: no such masking

    corrupts = True

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise UserError(f"shares is {self.shares}; allowed: three numbers from 0 to 1 that add up to 1")

    def corrupt(self, key: Array, x: Int[Array, "N 3 L"], targets: Int[Array, "N L"]) -> tuple[Array, Array]:
        """Return the rows with masked tokens, and targets at these tokens only."""
        special = ~self.valid(targets)
        ids, chosen = mask_tokens(
            key,
            x[:, 0],
            special,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            mask_prob=self.mask_prob,
            shares=self.shares,
            fixed_count=self.fixed_count,
            lengths=jnp.sum(x[:, 2] > 0, axis=1),
            max_predictions=self.max_predictions_per_seq,
            words=self.word_ids(x[:, 0], special) if self.continuations else None,
        )
        return jnp.asarray(x).at[:, 0].set(ids), jnp.where(chosen, targets, -1)

    def word_ids(self, ids: Int[Array, "N L"], special: Bool[Array, "N L"]) -> Int[Array, "N L"]:
        """Return the number of each token's word (:func:`src.objectives.masking.word_ids`)."""
        table = np.zeros(self.vocab_size, bool)
        table[list(self.continuations)] = True
        return word_ids(ids, special, jnp.asarray(table))

    def loss_positions(self, targets: Int[Array, "N L"]) -> Int[Array, " P"] | None:
        """Return the positions of the masked tokens of a batch: outputs elsewhere would not be used.

        Where their number is random, there is room for the expected number plus five standard deviations; further
        masked tokens, once in millions of batches, do not enter the loss.
        """
        if self.fixed_count:
            row = max(1, round(self.mask_prob * targets.shape[1]))
            limit = self.max_predictions_per_seq
            room = len(targets) * (row if limit is None else min(row, limit))
        else:
            expected = targets.size * self.mask_prob
            # The pieces of a word are masked together: for words of k pieces the variance is k times as large.
            variance = expected * (1 - self.mask_prob) * (4 if self.continuations else 1)
            room = math.ceil(expected + 5 * math.sqrt(variance))
        (positions,) = jnp.nonzero(targets.reshape(-1) >= 0, size=min(room, targets.size), fill_value=targets.size)
        return positions
