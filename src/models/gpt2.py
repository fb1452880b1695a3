"""``model=gpt2``: a causal transformer (Radford et al. 2019, "Language models are unsupervised multitask learners")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from ..config.hparams import hparam
from .transformer import Embeddings, PreNormBlock, Transformer, TransformerModule, residual_std, take_tokens

Gpt2Head = Enum("Gpt2Head", ["classify", "tokens", "spans", "causal"])
Gpt2Pooling = Enum("Gpt2Pooling", ["last", "mean"])


class GptModule(TransformerModule):
    """GPT-2: causal attention, and a normalisation after the last block."""

    causal: ClassVar[bool] = True
    normalised: ClassVar[bool] = False

    @nn.nowrap
    def block(self, number: int) -> PreNormBlock:
        """Return a block."""
        activation, std = partial(nn.gelu, approximate=True), residual_std(self.sizes.layers)
        return PreNormBlock(self.sizes, self.dropout, activation, fused=True, std=std, name=f"block_{number}")

    @nn.nowrap
    def last_norm(self, h: Float[Array, "N L E"]) -> Float[Array, "N L E"]:
        """Return normalised hidden states."""
        return nn.LayerNorm(self.sizes.epsilon, name="final_norm")(h)

    @nn.nowrap
    def after_blocks(self, h: Float[Array, "N L E"]) -> Float[Array, "N L E"]:
        """Return normalised hidden states; with ``head="causal"`` the normalisation is part of the head."""
        return h if self.head == "causal" else self.last_norm(h)

    @nn.nowrap
    def apply_head(self, h: Array, examples: Array, embeddings: Embeddings, positions: Array | None) -> Array:
        """Return the head's outputs; with ``head="causal"``, logits over the vocabulary for the next token."""
        if self.head == "causal":
            return embeddings.words(self.last_norm(take_tokens(h, positions)))
        return super().apply_head(h, examples, embeddings, positions)

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
    module_class: ClassVar[type[TransformerModule]] = GptModule

    head: Gpt2Head = hparam(Gpt2Head.causal)
    pooling: Gpt2Pooling = hparam(Gpt2Pooling.last)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``embeddings``, ``block_0`` ..., the head. A causal head has one parameter, the last normalisation."""
        *below, (name, head) = super().groups()
        if self.head is Gpt2Head.causal:
            return (*below, (name, "final_norm/.*"))
        top, expression = below.pop()
        return (*below, (top, f"{expression}|final_norm/.*"), (name, head))
