"""Learning from text: labels of which some are missing, spans, and the next or the missing word.

Rows of tokens do not all hold the same number of things to predict, so every loss here is a mean over the targets that
are there: -1 stands for none.
"""

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
from ..metrics.classification import at_least_float32, calibration_error, confusion, of_confusion
from .masking import SHARES, mask_tokens, word_numbers
from .supervised import Classification


def there(targets: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Return which targets there are."""
    return targets >= 0


def mean_over(values: Float[Array, "*n"], chosen: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Return the mean of the chosen values; 0 where none is."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)


def cross_entropy(outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Return each target's cross-entropy in nats; of a missing one, that of class 0."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(outputs), jnp.maximum(targets, 0))


@dataclass(frozen=True)
class Labels(Classification):
    """Cross-entropy over the labels that are there: of tokens, or of several examples in a row."""

    def count(self, targets: Int[Array, "N L"]) -> Float[Array, ""]:
        """Return how many labels there are."""
        return jnp.sum(there(targets)).astype(jnp.float32)

    def loss(self, outputs: Float[Array, "N L K"], targets: Int[Array, "N L"], smoothing: Any = None) -> Array:
        """Return the mean over the labels, smoothed as in :class:`Classification`."""
        losses = cross_entropy(outputs, targets)
        if smoothing is not None:
            uniform = -jnp.mean(jax.nn.log_softmax(at_least_float32(outputs)), axis=-1)
            losses = (1.0 - smoothing) * losses + smoothing * uniform
        return mean_over(losses, there(targets))

    def metrics(self, outputs: Float[Array, "N L K"], targets: Int[Array, "N L"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of labels with the highest output."""
        hits = (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)
        return {"loss": self.loss(outputs, targets), "accuracy": mean_over(hits, there(targets))}

    def report(self, outputs: Float[Array, "N L K"], targets: Int[Array, "N L"]) -> dict[str, Float[Array, ""]]:
        """Return what :class:`Classification` does, of the labels that are there."""
        found, chosen = self.metrics(outputs, targets), there(targets)
        probabilities = jax.nn.softmax(at_least_float32(outputs))
        happened = jax.nn.one_hot(targets, outputs.shape[-1], dtype=probabilities.dtype)
        confidence = jnp.max(probabilities, axis=-1)
        hits = jnp.argmax(outputs, axis=-1) == targets
        wrong = ((confidence > 0.9) & ~hits).astype(jnp.float32)
        return found | {
            "nll": found["loss"],
            "brier": mean_over(jnp.sum(jnp.square(probabilities - happened), axis=-1), chosen),
            "confidence": mean_over(confidence, chosen),
            "ece": calibration_error(confidence, hits, chosen=chosen),
            "confident_wrong": mean_over(wrong, chosen),
            **of_confusion(confusion(outputs, targets)),
        }


@dataclass(frozen=True)
class Spans(Classification):
    """Where an answer begins and ends: the mean of two cross-entropies over a row's tokens (arXiv 1810.04805, 4.2)."""

    def count(self, targets: Int[Array, "N 2"]) -> Float[Array, ""]:
        """Return how many ends of answers there are."""
        return jnp.sum(there(targets)).astype(jnp.float32)

    def loss(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N 2"], smoothing: Any = None) -> Array:
        """Return the mean over first and last tokens; a row without the answer has none."""
        return mean_over(cross_entropy(jnp.swapaxes(outputs, 1, 2), targets), there(targets))

    def metrics(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N 2"]) -> dict[str, Float[Array, ""]]:
        """Return the loss, and the share of answers of which both ends have the highest outputs."""
        both = jnp.all(jnp.argmax(outputs, axis=1) == targets, axis=-1).astype(jnp.float32)
        return {"loss": self.loss(outputs, targets), "accuracy": mean_over(both, jnp.all(there(targets), axis=-1))}

    def report(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N 2"]) -> dict[str, Float[Array, ""]]:
        """Return the same: what is worth more is computed from the words (``src/metrics/text.py``)."""
        return self.metrics(outputs, targets)


@dataclass(frozen=True)
class Causal(Labels):
    """The next word: cross-entropy over a vocabulary, with the perplexity ``exp(mean)`` over all tokens."""

    def reduce_outputs(self, outputs: Float[Array, "N L V"], targets: Int[Array, "N L"]) -> Float[Array, "N L 2"]:
        """Return each token's cross-entropy and whether it was right: outputs over a vocabulary are not kept."""
        hits = jnp.argmax(outputs, axis=-1) == targets
        return jnp.stack([cross_entropy(outputs, targets), hits.astype(jnp.float32)], axis=-1)

    def metrics(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N L"]) -> dict[str, Float[Array, ""]]:
        """Return the loss, the perplexity and the share of right words, of what :meth:`reduce_outputs` returned."""
        losses, hits = outputs[..., 0], outputs[..., 1]
        loss = mean_over(losses, there(targets))
        return {"loss": loss, "perplexity": jnp.exp(loss), "accuracy": mean_over(hits, there(targets))}

    def report(self, outputs: Float[Array, "N L 2"], targets: Int[Array, "N L"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics."""
        return self.metrics(outputs, targets)


@dataclass(frozen=True)
class Masked(Causal):
    """Missing words (Devlin et al., arXiv 1810.04805, section 3.1): masked anew in every update.

    A validation is masked in the same way each time, so that its losses can be compared.
    """

    mask_id: int = 0  # of the token that stands for a missing one
    words: int = 0  # of the vocabulary, from which replacements are drawn
    rate: float = hparam(0.15, FRACTION)  # share of the tokens that are predicted
    exact: bool = hparam(False)  # whether that share is of each row, as in BERT's code, or only on average
    most: int | None = hparam(None, COUNT)  # under exact, the most tokens of a row that are predicted
    shares: tuple[float, float, float] = hparam(SHARES, UNIT)  # of them: masked, replaced at random, kept
    continues: tuple[int, ...] = ()  # tokens that continue a word, to mask whole ones; none: each piece on its own

    corrupts = True

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise UserError(f"shares is {self.shares}; allowed: three numbers from 0 to 1 that add up to 1")

    def corrupt(self, key: Array, x: Int[Array, "N 3 L"], targets: Int[Array, "N L"]) -> tuple[Array, Array]:
        """Return the rows with words missing, and those words alone as targets."""
        special = ~there(targets)
        ids, chosen = mask_tokens(
            key,
            x[:, 0],
            special,
            mask_id=self.mask_id,
            vocab_size=self.words,
            rate=self.rate,
            shares=self.shares,
            exact=self.exact,
            lengths=jnp.sum(x[:, 2] > 0, axis=1),
            most=self.most,
            words=self.numbers(x[:, 0], special) if self.continues else None,
        )
        return jnp.asarray(x).at[:, 0].set(ids), jnp.where(chosen, targets, -1)

    def numbers(self, ids: Int[Array, "N L"], special: Bool[Array, "N L"]) -> Int[Array, "N L"]:
        """Return the number of each token's word."""
        table = np.zeros(self.words, bool)
        table[list(self.continues)] = True
        return word_numbers(ids, special, jnp.asarray(table))

    def loss_positions(self, targets: Int[Array, "N L"]) -> Int[Array, " P"] | None:
        """Return the places of the missing words of a batch: a vocabulary's outputs elsewhere would be for nothing.

        Where their number is drawn there is room for five standard deviations more than are expected of a batch without
        padding; a word beyond that, once in millions of batches, is missing and not asked for.
        """
        if self.exact:
            own = max(1, round(self.rate * targets.shape[1]))
            room = len(targets) * (own if self.most is None else min(own, self.most))
        else:
            expected = targets.size * self.rate
            # Pieces of a word come together: of words of k pieces each, their number varies k times as much.
            spread = expected * (1 - self.rate) * (4 if self.continues else 1)
            room = math.ceil(expected + 5 * math.sqrt(spread))
        (places,) = jnp.nonzero(targets.reshape(-1) >= 0, size=min(room, targets.size), fill_value=targets.size)
        return places
