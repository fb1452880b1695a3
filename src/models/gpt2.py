"""``model=gpt2``: a causal transformer (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float, Int

from ..config.hparams import hparam
from .layers import Dropout
from .transformer import Attention, Embeddings, Transformer, TransformerConfig, TransformerModule, dense, residual_std

Gpt2Head = Enum("Gpt2Head", ["classify", "tokens", "spans", "causal"])
Gpt2Pooling = Enum("Gpt2Pooling", ["last", "mean"])


class Gpt2Block(nn.Module):
    """Attention and two dense layers, each on normalised hidden states and added to what they were."""

    sizes: TransformerConfig
    dropout: Any

    @nn.compact
    def __call__(self, h: Float[Array, "N*L E"], bias: Float[Array, "n 1 L L"]) -> Float[Array, "N*L E"]:
        """Return new hidden states."""
        sizes, std = self.sizes, residual_std(self.sizes.layers)
        attention = Attention(sizes.heads, self.dropout, fused=True, std=std, name="attention")
        attended = attention(nn.LayerNorm(sizes.epsilon, name="attention_norm")(h), bias)
        h += Dropout(self.dropout, name="attention_dropout")(attended)
        inner = dense(sizes.intermediate, "up")(nn.LayerNorm(sizes.epsilon, name="mlp_norm")(h))
        outer = dense(sizes.width, "down", std=std)(nn.gelu(inner, approximate=True))
        return h + Dropout(self.dropout, name="mlp_dropout")(outer)


class Gpt2Module(TransformerModule):
    """GPT-2: causal attention, and a normalisation after the last block."""

    causal: ClassVar[bool] = True
    normalised: ClassVar[bool] = False

    @nn.nowrap
    def block(self, number: int) -> Gpt2Block:
        """Return a block."""
        return Gpt2Block(self.sizes, self.dropout, name=f"block_{number}")

    @nn.nowrap
    def last_norm(self, h: Float[Array, "N L E"]) -> Float[Array, "N L E"]:
        """Return normalised hidden states."""
        return nn.LayerNorm(self.sizes.epsilon, name="final_norm")(h)

    @nn.nowrap
    def after_blocks(self, h: Float[Array, "N L E"]) -> Float[Array, "N L E"]:
        """Return normalised hidden states; with ``head="causal"`` the normalisation is part of the head."""
        return h if self.head == "causal" else self.last_norm(h)

    @nn.nowrap
    def apply_head(self, h: Array, examples: Int[Array, "N L"], embeddings: Embeddings) -> Array:
        """Return the head's outputs; with ``head="causal"``, logits over the vocabulary for the next token."""
        if self.head == "causal":
            return embeddings.words(self.last_norm(h))
        return super().apply_head(h, examples, embeddings)

    @property
    def head_bias(self) -> bool:
        """Whether the classifier has a bias: not with ``head="classify"``, as in Hugging Face's."""
        return self.head != "classify"


@dataclass(frozen=True)
class Gpt2(Transformer):
    """``model=gpt2``: see :class:`~src.models.transformer.Transformer` for what it shares with BERT.

    ``head``: ``classify`` an example, label its ``tokens``, mark ``spans`` (two outputs a token: first, last), or
    predict each next token (``causal``). ``pooling``, under ``classify``: the ``last`` token or the
    ``mean``. Token types are ignored.
    """

    architecture: ClassVar[str] = "gpt2"

    head: Gpt2Head = hparam(Gpt2Head.causal)
    pooling: Gpt2Pooling = hparam(Gpt2Pooling.last)

    def module(self, outputs: int) -> TransformerModule:
        """Return the network with ``outputs`` outputs."""
        return self.make_module(Gpt2Module, outputs)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``embeddings``, ``block_0`` ..., the head. A causal head has one parameter, the last normalisation."""
        *below, (name, head) = super().groups()
        if self.head is Gpt2Head.causal:
            return (*below, (name, "final_norm/.*"))
        top, expression = below.pop()
        return (*below, (top, f"{expression}|final_norm/.*"), (name, head))
