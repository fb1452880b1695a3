"""``model=bert``: a bidirectional transformer encoder (Devlin et al. 2018, arXiv 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ..config.hparams import NATURAL, hparam
from ..errors import UserError
from .cpu_kernels import add_bias, gelu
from .layers import Dropout
from .transformer import (
    HEAD,
    MASK_VALUE,
    Attention,
    Embeddings,
    Transformer,
    TransformerConfig,
    TransformerModule,
    dense,
    pooled,
    take_tokens,
)

BertHead = Enum("BertHead", ["classify", "tokens", "spans", "masked", "pretraining"])
BertPooling = Enum("BertPooling", ["pooler", "first", "mean"])
POOLER = "pooler/.*"


class BertBlock(nn.Module):
    """Attention and two dense layers, each added to its input and then normalised."""

    sizes: TransformerConfig
    dropout: Any

    @nn.compact
    def __call__(self, h: Float[Array, "N*L E"], bias: Float[Array, "n 1 L L"]) -> Float[Array, "N*L E"]:
        """Return new hidden states."""
        attended = Attention(self.sizes.heads, self.dropout, name="attention")(h, bias)
        h = h + Dropout(self.dropout, name="attention_dropout")(attended)
        h = nn.LayerNorm(self.sizes.epsilon, name="attention_norm")(h)
        inner = gelu(dense(self.sizes.intermediate, "up")(h))
        outer = dense(self.sizes.width, "down")(inner)
        return nn.LayerNorm(self.sizes.epsilon, name="mlp_norm")(h + Dropout(self.dropout, name="mlp_dropout")(outer))


class BertModule(TransformerModule):
    """BERT: normalised embeddings, blocks that end with a normalisation, attention in both directions."""

    @nn.nowrap
    def block(self, number: int) -> BertBlock:
        """Return a block."""
        return BertBlock(self.sizes, self.dropout, name=f"block_{number}")

    @nn.nowrap
    def pool(self, h: Float[Array, "N S E"]) -> Float[Array, "N S E"]:
        """Return a dense layer and tanh on the first token, ``[CLS]``."""
        return nn.tanh(dense(self.sizes.width, "pooler")(h))

    @nn.nowrap
    def apply_head(self, h: Array, examples: Array, embeddings: Embeddings, positions: Array | None) -> Array:
        """Return the head's outputs; for masked words, logits over the vocabulary (section 3.1, task 1).

        With ``head="pretraining"`` and positions, ``(N + P, V)``: the pairs' logits come first.
        """
        if self.head not in ("masked", "pretraining"):
            return super().apply_head(h, examples, embeddings, positions)
        words = self.words(take_tokens(h, positions), embeddings)
        if self.head == "masked":
            return words
        pairs = self.pair(h, examples, words)
        return jnp.concatenate([pairs, words], axis=1) if positions is None else jnp.concatenate([pairs[:, 0], words])

    @nn.nowrap
    def words(self, h: Float[Array, "... E"], embeddings: Embeddings) -> Float[Array, "... V"]:
        """Return logits over the vocabulary."""
        h = gelu(dense(self.sizes.width, "transform")(h))
        h = nn.LayerNorm(self.sizes.epsilon, name="transform_norm")(h)
        return Bias(name="vocabulary")(embeddings.words(h))

    @nn.nowrap
    def pair(self, h: Float[Array, "N L E"], examples: Int[Array, "N L"], words: Array) -> Float[Array, "N 1 V"]:
        """Return the pairs' two logits, padded to the width of the words' logits."""
        logits = dense(2, "classifier")(self.pool(pooled(h, examples, "first", 1)))
        rest = ((0, 0), (0, 0), (0, words.shape[-1] - logits.shape[-1]))
        return jnp.pad(logits, rest, constant_values=MASK_VALUE)


class Bias(nn.Module):
    """The bias of a dense layer whose kernel is the tied embedding."""

    @nn.compact
    def __call__(self, x: Float[Array, "... K"]) -> Float[Array, "... K"]:
        """Return ``x`` with the bias added."""
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return add_bias(x, bias)


@dataclass(frozen=True)
class Bert(Transformer):
    """``model=bert``: see :class:`~src.models.transformer.Transformer` for what it shares with GPT-2.

    ``types``: number of token types, for pairs of segments. ``head``: ``classify`` an example, label its ``tokens``,
    mark ``spans`` (two outputs a token: first, last), predict ``masked`` words, or ``pretraining``, BERT's own: masked
    words, and whether the second segment follows the first, as ``(N, 1 + L, V)`` with the pair's two logits first and
    the rest of their row at -1e9. ``pooling``, under ``classify``: the ``first`` token, that token through BERT's
    ``pooler`` (a group of its own; under ``pretraining`` a part of the head), or the ``mean`` of the tokens.
    """

    architecture: ClassVar[str] = "bert"
    module_class: ClassVar[type[TransformerModule]] = BertModule
    default_sizes: ClassVar[TransformerConfig] = TransformerConfig(types=2, epsilon=1e-12)

    types: int | None = hparam(None, NATURAL)
    head: BertHead = hparam(BertHead.classify)
    pooling: BertPooling = hparam(BertPooling.pooler)

    def module(self, outputs: int) -> TransformerModule:
        """Return the network with ``outputs`` outputs; refuse packed rows with ``head="pretraining"``."""
        if self.head is BertHead.pretraining and self.examples > 1:
            raise UserError(f"model.examples is {self.examples}; allowed with model.head=pretraining: 1, a pair a row")
        return super().module(outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``embeddings``, ``block_0`` ..., ``pooler`` where there is one, then the head."""
        *below, head = super().groups()
        if self.head is BertHead.pretraining:
            return (*below, (head[0], f"({HEAD}|{POOLER})"))
        if self.head is BertHead.classify and self.pooling is BertPooling.pooler:
            below.append(("pooler", POOLER))
        return (*below, head)
