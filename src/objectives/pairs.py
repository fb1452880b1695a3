"""Pairs of sentences (:mod:`src.data.pairs`), learned alone or with missing words at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import Network, StepAux, StepContext
from .supervised import Classification
from .text import Labels, Masked, cross_entropy, mean_over, there


@dataclass(frozen=True)
class MaskedPairs(Masked):
    """The mean loss of missing words plus the mean loss of pairs (Devlin et al., arXiv 1810.04805, appendix A.2).

    Targets begin with the pair's label, 0 or 1 (-1: there is none), before those of the tokens. Outputs begin with
    the pair's: two logits, the rest of the row at -1e9, so that what holds of a row over the vocabulary holds of it.
    """

    def corrupt(self, key: Array, x: Int[Array, "N 3 L"], targets: Int[Array, "N L+1"]) -> tuple[Array, Array]:
        """Return the rows with words missing, and the labels and those words alone as targets."""
        x, words = super().corrupt(key, x, targets[:, 1:])
        return x, jnp.concatenate([targets[:, :1], words], axis=1)

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the mean :meth:`loss`, of the pairs' outputs and those of the missing words alone."""
        x, y = self.corrupt(draw.key, *batch)
        places = self.loss_positions(y[:, 1:])
        words = y[:, 1:].reshape(-1).at[places].get(mode="fill", fill_value=-1)
        outputs, seen = network.run(x, places)
        return self.both(outputs[: len(y)], outputs[len(y) :], y[:, 0], words, smoothing), StepAux(seen, memory, {})

    def count(self, targets: Int[Array, "N L+1"]) -> Float[Array, ""]:
        """Return the number of rows: of a sum of two means, no count is right for both, and rows have a label each."""
        return jnp.float32(targets.shape[0])

    def loss(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"], smoothing: Any = None) -> Array:
        """Return the sum of both means; only words are smoothed."""
        return self.both(outputs[:, 0], outputs[:, 1:], targets[:, 0], targets[:, 1:], smoothing)

    def both(self, pairs: Array, words: Array, labels: Int[Array, " N"], own: Array, smoothing: Any) -> Array:
        """Return the sum of the pairs' and the words' mean losses."""
        return super().loss(words, own, smoothing) + mean_over(cross_entropy(pairs, labels), there(labels))

    def metrics(self, outputs: Float[Array, "N L+1 2"], targets: Int[Array, "N L+1"]) -> dict[str, Float[Array, ""]]:
        """Return the loss, that of the words with its perplexity, and both accuracies, of what ``digest`` returned."""
        words = super().metrics(outputs[:, 1:], targets[:, 1:])
        losses, hits = (mean_over(outputs[:, 0, i], there(targets[:, 0])) for i in (0, 1))
        return {
            "loss": words["loss"] + losses,
            "masked_loss": words["loss"],
            "masked_accuracy": words["accuracy"],
            "pair_accuracy": hits,
            "perplexity": words["perplexity"],
        }


@dataclass(frozen=True)
class PairLabels(Classification):
    """The mean loss of pairs alone: the rows and outputs of :class:`MaskedPairs`, of which no word is missing."""

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the mean :meth:`loss`, of the pairs' outputs alone."""
        x, y = batch
        outputs, seen = network.run(x, jnp.zeros(1, jnp.int32))  # the least of words there can be, and not looked at
        return self.loss(outputs[: len(y), None], y, smoothing), StepAux(seen, memory, {})

    def count(self, targets: Int[Array, "N L+1"]) -> Float[Array, ""]:
        """Return how many pairs have a label."""
        return Labels().count(targets[:, :1])

    def loss(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"], smoothing: Any = None) -> Array:
        """Return the mean cross-entropy of the two logits."""
        return Labels().loss(outputs[:, :1, :2], targets[:, :1], smoothing)

    def reduce_outputs(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"]) -> Float[Array, "N 1 2"]:
        """Return the pairs' logits: those over the vocabulary are not kept."""
        return outputs[:, :1, :2]

    def metrics(self, outputs: Float[Array, "N 1 2"], targets: Int[Array, "N L+1"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of right labels, of what :meth:`reduce_outputs` returned."""
        found = Labels().metrics(outputs, targets[:, :1])
        return {"loss": found["loss"], "pair_accuracy": found["accuracy"]}

    def report(self, outputs: Float[Array, "N 1 2"], targets: Int[Array, "N L+1"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics."""
        return self.metrics(outputs, targets)
