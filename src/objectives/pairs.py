"""Objectives over pairs of sentences (:mod:`src.data.pairs`), with masked tokens or without.

Targets begin with the pair's label, 0 or 1 (-1: none), followed by those of the tokens. Outputs begin with the pair's
two logits, padded with -1e9 to the size of the vocabulary, so that functions of rows over it apply to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..metrics.classification import masked_mean
from .base import NetworkFns, Objective, StepAux, StepContext
from .text import MaskedLm, TokenClassification, cross_entropy


@dataclass(frozen=True)
class MaskedPairs(MaskedLm):
    """The mean loss of masked tokens plus the mean loss of pairs (Devlin et al., arXiv 1810.04805, appendix A.2)."""

    def corrupt(self, key: Array, x: Int[Array, "N 3 L"], targets: Int[Array, "N L+1"]) -> tuple[Array, Array]:
        """Return the rows with masked tokens; targets are the labels and these tokens."""
        x, tokens = super().corrupt(key, x, targets[:, 1:])
        return x, jnp.concatenate([targets[:, :1], tokens], axis=1)

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss, computed from the outputs of the pairs and of the masked tokens only."""
        x, y = self.corrupt(context.key, *batch)
        positions = self.loss_positions(y[:, 1:])
        tokens = y[:, 1:].reshape(-1).at[positions].get(mode="fill", fill_value=-1)
        outputs, statistics = network.run(x, positions)
        loss = self.sum_of_means(outputs[: len(y)], outputs[len(y) :], y[:, 0], tokens, smoothing)
        return loss, StepAux(statistics, memory, {})

    def count(self, targets: Int[Array, "N L+1"]) -> Float[Array, ""]:
        """Return the number of rows: no count is exact for a sum of two means."""
        return jnp.float32(targets.shape[0])

    def loss(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"], smoothing: Any = None) -> Array:
        """Return the sum of both means; only tokens are smoothed."""
        return self.sum_of_means(outputs[:, 0], outputs[:, 1:], targets[:, 0], targets[:, 1:], smoothing)

    def sum_of_means(
        self, pairs: Array, tokens: Array, labels: Int[Array, " N"], token_labels: Array, smoothing: Any
    ) -> Float[Array, ""]:
        """Return the tokens' mean loss plus the pairs'."""
        of_tokens = super().loss(tokens, token_labels, smoothing)
        return of_tokens + masked_mean(cross_entropy(pairs, labels), self.valid(labels))

    def metrics(self, outputs: Float[Array, "N L+1 2"], targets: Int[Array, "N L+1"]) -> dict[str, Float[Array, ""]]:
        """Return the losses, the perplexity and both accuracies, of what :meth:`reduce_outputs` returned."""
        tokens = super().metrics(outputs[:, 1:], targets[:, 1:])
        losses, hits = (masked_mean(outputs[:, 0, i], self.valid(targets[:, 0])) for i in (0, 1))
        return {
            "loss": tokens["loss"] + losses,
            "masked_loss": tokens["loss"],
            "masked_accuracy": tokens["accuracy"],
            "pair_accuracy": hits,
            "perplexity": tokens["perplexity"],
        }


@dataclass(frozen=True)
class PairLabels(TokenClassification):
    """The mean loss of pairs alone: rows and outputs as for :class:`MaskedPairs`, without masked tokens."""

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss, computed from the outputs of the pairs only."""
        x, y = batch
        outputs, statistics = network.run(x, jnp.zeros(1, jnp.int32))  # one token is the least; its output is not used
        return self.loss(outputs[: len(y), None], y, smoothing), StepAux(statistics, memory, {})

    def count(self, targets: Int[Array, "N L+1"]) -> Float[Array, ""]:
        """Return the number of pairs with a label."""
        return super().count(targets[:, :1])

    def loss(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"], smoothing: Any = None) -> Array:
        """Return the mean cross-entropy of the two logits."""
        return super().loss(outputs[:, :1, :2], targets[:, :1], smoothing)

    def reduce_outputs(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"]) -> Float[Array, "N 1 2"]:
        """Return the pairs' logits only."""
        return outputs[:, :1, :2]

    def metrics(self, outputs: Float[Array, "N 1 2"], targets: Int[Array, "N L+1"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of right labels, of what :meth:`reduce_outputs` returned."""
        found = super().metrics(outputs, targets[:, :1])
        return {"loss": found["loss"], "pair_accuracy": found["accuracy"]}

    report = Objective.report
