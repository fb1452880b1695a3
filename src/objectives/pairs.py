"""Missing words and pairs of sentences, learned at once.

Whether two sentences are neighbours (:mod:`src.data.pairs`) is alone a classification like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from src.objectives.text import Masked, cross_entropy, mean_over, there


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

    def asked(self, targets: Int[Array, "N L+1"]) -> None:
        """Return nothing, so that all outputs are computed: a row's first lies in no place of its tokens."""
        return

    def count(self, targets: Int[Array, "N L+1"]) -> Float[Array, ""]:
        """Return the number of rows: of a sum of two means, no count is right for both, and rows have a label each."""
        return jnp.float32(targets.shape[0])

    def loss(self, outputs: Float[Array, "N L+1 V"], targets: Int[Array, "N L+1"], smoothing: Any = None) -> Array:
        """Return the sum of both means; only words are smoothed."""
        of_pairs = cross_entropy(outputs[:, 0], targets[:, 0])
        return super().loss(outputs[:, 1:], targets[:, 1:], smoothing) + mean_over(of_pairs, there(targets[:, 0]))

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
