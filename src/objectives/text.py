"""Objectives over tokens: each loss is a mean over the valid targets; -1 marks an entry without one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ..config.hparams import COUNT, FRACTION, UNIT, hparam
from ..errors import UserError
from ..metrics.classification import at_least_float32, masked_mean
from .base import Objective
from .supervised import Classification

SHARES = (0.8, 0.1, 0.1)  # of the chosen tokens: replaced by [MASK], replaced by a random token, unchanged


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
        """Return the number of each token's word (:func:`word_ids`)."""
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


def mask_tokens(
    key: Array,
    ids: Int[Array, "N L"],
    special_mask: Bool[Array, "N L"],
    *,
    mask_id: int,
    vocab_size: int,
    mask_prob: Any = 0.15,
    shares: tuple[float, float, float] = SHARES,
    fixed_count: bool = False,
    lengths: Int[Array, " N"] | None = None,
    max_predictions: int | None = None,
    words: Int[Array, "N L"] | None = None,
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Return the masked input and which tokens were chosen (Devlin et al., arXiv 1810.04805, section 3.1).

    Each token that is not special is chosen independently with probability ``mask_prob``; with ``fixed_count``, each
    row has the number that :func:`num_to_mask` returns. A random token may be any of the vocabulary, also the original
    one. In a row without eligible tokens none is chosen.

    Args:
        key: random key.
        ids: tokens.
        special_mask: true at special tokens and padding, which are never chosen.
        mask_id: id of [MASK].
        vocab_size: number of tokens that random ones are drawn from.
        mask_prob: share of the tokens that are chosen, 0 to 1; with ``fixed_count`` a Python number.
        shares: of the chosen tokens: replaced by [MASK], replaced by a random token, unchanged; they add up to 1.
        fixed_count: whether the number of chosen tokens of a row is fixed. A packed row counts as one.
        lengths: with ``fixed_count``, the tokens of each row, special ones included; ``None``: all of the row.
        max_predictions: with ``fixed_count``, the most chosen tokens of a row; ``None``: no limit.
        words: the number of each token's word (:func:`word_ids`), whose pieces are chosen together and replaced
            independently, as in BERT's whole-word masking; 0: no word. ``None``: each token is a word.
    """
    choice, fate, word = jax.random.split(key, 3)
    size = jnp.full(ids.shape[:1], ids.shape[1]) if lengths is None else lengths
    count = num_to_mask(size, ids.shape[1], mask_prob, max_predictions) if fixed_count else None
    if words is None:
        chosen = choose_tokens(choice, ~special_mask, mask_prob, count)
    else:
        chosen = choose_words(choice, ~special_mask, words, mask_prob, count)
    u = jax.random.uniform(fate, ids.shape)
    random = jax.random.randint(word, ids.shape, 0, vocab_size, ids.dtype)
    replaced = jnp.where(u < shares[0], mask_id, jnp.where(u < shares[0] + shares[1], random, ids))
    return jnp.where(chosen, replaced, ids).astype(ids.dtype), chosen


def num_to_mask(
    lengths: Int[Array, " N"], max_length: int, mask_prob: float, max_predictions: int | None
) -> Int[Array, " N"]:
    """Return ``min(max_predictions, max(1, round(mask_prob * length)))`` for each row, as in BERT's code."""
    # A table in float64, halves to even: in float32, 0.15 * 30 would be more than 4.5.
    table = np.maximum(1, np.rint(mask_prob * np.arange(max_length + 1))).astype(np.int32)
    return jnp.asarray(table if max_predictions is None else np.minimum(table, max_predictions))[lengths]


def choose_tokens(
    key: Array, allowed: Bool[Array, "N L"], mask_prob: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which allowed tokens are chosen: each with probability ``mask_prob``, or ``count`` of each row."""
    u = jax.random.uniform(key, allowed.shape)
    if count is None:
        return (u < mask_prob) & allowed
    rank = jnp.argsort(jnp.argsort(jnp.where(allowed, u, 2.0), axis=1), axis=1)
    return (rank < count[:, None]) & allowed


def choose_words(
    key: Array, allowed: Bool[Array, "N L"], words: Int[Array, "N L"], mask_prob: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which allowed tokens are chosen, all of a word or none of them.

    With ``count``, words are taken in a random order until a row has ``count`` tokens; longer ones are skipped.
    """
    u = jax.random.uniform(key, (*words.shape[:1], words.shape[1] + 1))  # one number for each word
    if count is None:
        taken = u < mask_prob
    else:
        rows = jnp.arange(len(words))[:, None]
        pieces = jnp.zeros(u.shape, jnp.int32).at[rows, jnp.where(allowed, words, 0)].add(1)
        taken = _fill(u, pieces, count)
    return jnp.take_along_axis(taken, words, axis=1) & allowed & (words > 0)


def _fill(u: Array, pieces: Int[Array, "N W"], count: Int[Array, " N"]) -> Bool[Array, "N W"]:
    """Return which words are taken, in the order of ``u``, until ``count`` pieces are."""
    order = jnp.argsort(u.at[:, 0].set(2.0), axis=1)  # entry 0, which is no word, comes last
    sizes = jnp.take_along_axis(pieces, order, axis=1)

    def take(total: Array, size: Array) -> tuple[Array, Array]:
        fits = total + size <= count
        return total + jnp.where(fits, size, 0), fits

    _, fits = jax.lax.scan(take, jnp.zeros_like(count), sizes.T)
    return jnp.take_along_axis(fits.T, jnp.argsort(order, axis=1), axis=1)


def word_ids(
    ids: Int[Array, "N L"], special_mask: Bool[Array, "N L"], continues: Bool[Array, " V"]
) -> Int[Array, "N L"]:
    """Return the number of each token's word within its row, from 1; 0 at special tokens and padding, which end a word.

    ``continues``: for each token of the vocabulary, whether it continues a word (``##ing``).
    """
    before = jnp.pad(special_mask[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begins = ~special_mask & (before | ~continues[ids])
    return jnp.where(special_mask, 0, jnp.cumsum(begins, axis=1))
