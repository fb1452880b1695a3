"""The parts that BERT and GPT-2 share: attention, embeddings, packed rows, the forward pass, and the settings.

Inputs are int32 ``(N, 3, L)``: token ids, token types (0 or 1), and the number of the example that a token belongs to
(1, 2 ...; 0 is padding). Tokens of an example are contiguous. Several examples in a row are *packed*: each attends only
to itself and its positions count from 0, so packing changes no output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ..config.hparams import COUNT, UNIT, hparam
from ..errors import UserError
from .base import Checkpointed, Model, block_groups
from .layers import Dropout

MASK_VALUE = -1e9  # of a masked score or logit: its probability is 0 in every precision
TIED = ("masked", "pretraining", "causal")  # heads over the vocabulary, whose kernel is the word embedding
HEAD = "(classifier|transform|transform_norm|vocabulary)/.*"


class TransformerConfig(NamedTuple):
    """The sizes of a network, and the epsilon of its layer normalisations."""

    vocab_size: int = 8192
    width: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    positions: int = 512
    types: int = 0
    epsilon: float = 1e-5


def truncated_normal_init(std: float = 0.02) -> Callable[..., Array]:
    """Return BERT's initializer: normal, truncated at two standard deviations (arXiv 1810.04805)."""
    return nn.initializers.truncated_normal(std)


def dense(units: int, name: str, bias: bool = True, std: float = 0.02) -> nn.Dense:
    """Return a dense layer with BERT's initializer."""
    return nn.Dense(units, use_bias=bias, kernel_init=truncated_normal_init(std), name=name)


# --- attention -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2)."""

    heads: int
    dropout: Any
    fused: bool = False  # whether queries, keys and values are one dense layer
    std: float = 0.02  # of the initial output kernel

    @nn.compact
    def __call__(self, x: Float[Array, "N*L E"], bias: Float[Array, "n 1 L L"]) -> Float[Array, "N*L E"]:
        """Return the attention outputs; ``bias`` is added to the scores of (query, key)."""
        width = x.shape[-1]
        if self.fused:
            parts = jnp.split(dense(3 * width, "qkv")(x), 3, axis=-1)
        else:
            parts = [dense(width, name)(x) for name in ("query", "key", "value")]
        query, key, value = (self.by_head(part, bias.shape[-1]) for part in parts)
        scores = jnp.einsum("nhqd,nhkd->nhqk", query * (width // self.heads) ** -0.5, key)
        # In float32: bfloat16 probabilities of a long row do not add up to 1.
        probs = nn.softmax(scores.astype(jnp.float32) + bias, axis=-1).astype(x.dtype)
        probs = Dropout(self.dropout, name="dropout")(probs)
        attended = jnp.einsum("nhqk,nhkd->nhqd", probs, value)
        together = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        return dense(width, "output", std=self.std)(together)

    def by_head(self, x: Float[Array, "N*L E"], length: int) -> Float[Array, "N H L D"]:
        """Return the heads on axis 1, where the batched products are four times faster on a CPU than on axis 2."""
        return x.reshape(-1, length, self.heads, x.shape[-1] // self.heads).transpose(0, 2, 1, 3)


def attention_bias(examples: Int[Array, "N L"], causal: bool, packed: bool) -> Float[Array, "n 1 L L"]:
    """Return 0 where a query (axis 2, broadcast if 1) may attend to a key (axis 3), :data:`MASK_VALUE` elsewhere.

    ``packed``: whether rows hold several examples. With one, padding follows it, which causal attention never reaches.
    """
    before = jnp.tril(jnp.ones((examples.shape[-1],) * 2, bool))[None, None]
    if packed:
        seen = (examples[:, None, :, None] == examples[:, None, None, :]) & (before if causal else True)
    else:
        seen = before if causal else examples[:, None, None, :] > 0
    return jnp.where(seen, 0.0, MASK_VALUE)


# --- packed rows -----------------------------------------------------------------------------------------------------


def positions_within(examples: Int[Array, "N L"]) -> Int[Array, "N L"]:
    """Return each token's position within its example, from 0."""
    place = jnp.broadcast_to(jnp.arange(examples.shape[-1]), examples.shape)
    before = jnp.pad(examples[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return place - jax.lax.cummax(jnp.where(examples == before, 0, place), axis=1)


def pooled(
    h: Float[Array, "N L E"], examples: Int[Array, "N L"], pooling: str, count: int
) -> Float[Array, "N count E"]:
    """Return one vector an example, by a matrix product, as the gradient of indexing is slow; 0 where there is none."""
    inside = examples[:, None, :] == jnp.arange(1, count + 1)[None, :, None]
    if pooling != "mean":
        towards = jnp.roll(inside, 1 if pooling == "first" else -1, axis=-1)
        edge = 0 if pooling == "first" else -1
        inside &= ~towards.at[..., edge].set(False)
    weights = inside / jnp.maximum(inside.sum(axis=-1, keepdims=True), 1)
    return jnp.matmul(weights.astype(h.dtype), h, precision=jax.lax.Precision.HIGHEST)


class Embeddings(nn.Module):
    """The sum of word, position and type embeddings (types only if the network has them), and the tied output layer."""

    sizes: TransformerConfig
    dropout: Any
    packed: bool
    normalised: bool  # whether a layer normalisation follows the sum, as in BERT

    def setup(self) -> None:
        """Make the tables, which two methods use."""

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, self.sizes.width, embedding_init=truncated_normal_init())

        self.word, self.position = table(self.sizes.vocab_size), table(self.sizes.positions)
        if self.sizes.types:
            self.type = table(self.sizes.types)
        if self.normalised:
            self.norm = nn.LayerNorm(self.sizes.epsilon)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: Int[Array, "N 3 L"]) -> Float[Array, "N L E"]:
        """Return the hidden states under the first block."""
        ids, types, examples = x[:, 0], x[:, 1], x[:, 2]
        # Without packing, all rows have the same positions: the gradient is a sum, no scatter.
        same = self.position.embedding[None, : ids.shape[-1]]
        h = self.word(ids) + (self.position(positions_within(examples)) if self.packed else same)
        if self.sizes.types:  # a product: the gradient of indexing is a scatter
            chosen = nn.one_hot(types, self.sizes.types, dtype=h.dtype)
            h += jnp.matmul(chosen, self.type.embedding, precision=jax.lax.Precision.HIGHEST)
        return self.drop(self.norm(h) if self.normalised else h)

    def words(self, h: Float[Array, "N L E"]) -> Float[Array, "N L V"]:
        """Return logits over the vocabulary from the tied word embedding (Press and Wolf, arXiv 1608.05859)."""
        return self.word.attend(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], -1)


# --- the network, group by group -------------------------------------------------------------------------------------


class TransformerModule(nn.Module):
    """Embeddings, blocks and a head. Subclasses define the blocks, the pooler and the head.

    Between groups, an example's number is the last column of ``(N, L, E + 1)``; pooled states are ``(N, examples, E)``.
    """

    sizes: TransformerConfig
    outputs: int
    head: str
    pooling: str
    examples: int  # largest number in a row
    dropout: Any
    head_dropout: Any
    causal: ClassVar[bool] = False
    normalised: ClassVar[bool] = True  # whether the embeddings are

    @nn.compact
    def __call__(self, x: Array, start: int = 0, stop: int | None = None, positions: Array | None = None) -> Array:
        """Return the outputs of a batch, or the outputs of group ``stop - 1``.

        With ``positions``, int ``(P,)`` into the batch's ``N * L`` tokens, only the outputs ``(P, K)`` of these tokens
        are computed: the vocabulary's logits of all tokens cost more than all blocks of a small network.
        """
        depth = self.sizes.layers
        embeddings = Embeddings(self.sizes, self.dropout, self.examples > 1, self.normalised, name="embeddings")
        end = depth + 2 + (self.pooling == "pooler" and self.head == "classify")
        stop = end if stop is None else min(stop, end)
        if start >= stop:
            return x
        examples, whole = jnp.zeros((1, 1), jnp.int32), self.head == "classify"
        if start == 0:
            self.check(x)
            examples, h = x[:, 2], embeddings(x)
        elif whole and start > depth:
            h = x
        else:
            h, examples = x[..., :-1], x[..., -1].astype(jnp.int32)
        bias = attention_bias(examples, self.causal, self.examples > 1)
        # Blocks take all tokens as one matrix, which makes the gradients of kernels plain products: a fifth faster.
        shape, h = h.shape, h.reshape(-1, h.shape[-1])
        for i in range(max(start - 1, 0), min(stop - 1, depth)):
            h = self.block(i)(h, bias)
        h = h.reshape(shape)
        if start <= depth < stop:
            h = self.after_blocks(h)
            if whole:
                h = pooled(h, examples, "first" if self.pooling == "pooler" else self.pooling, self.examples)
        if start <= depth + 1 < end - 1 and depth + 1 < stop:
            h = self.pool(h)
        if stop < end:
            numbers = examples[..., None].astype(h.dtype)
            return h if whole and stop > depth else jnp.concatenate([h, numbers], axis=-1)
        return self.apply_head(h, examples, embeddings, positions)

    @nn.nowrap
    def check(self, x: Array) -> None:
        """Refuse inputs that are not rows of tokens, and rows that are too long."""
        if x.ndim != 3 or x.shape[1] != 3 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError(
                f"a model of text is given inputs of shape {x.shape[1:]} and type {x.dtype.name}; "
                "allowed: data of text, whole numbers of shape (3, length)"
            )
        if x.shape[-1] > self.sizes.positions:
            raise UserError(
                f"rows are {x.shape[-1]} tokens long, and model.positions is {self.sizes.positions}; "
                f"allowed: rows of at most {self.sizes.positions}"
            )

    @nn.nowrap
    def block(self, number: int) -> nn.Module:
        """Return a block, from hidden states ``(N * L, E)`` and the bias of attention to hidden states."""
        raise TypeError(f"{type(self).__name__} does not define block()")

    @nn.nowrap
    def after_blocks(self, h: Float[Array, "N L E"]) -> Float[Array, "N L E"]:
        """Return the layers of the last block's group that follow the block."""
        return h

    @nn.nowrap
    def pool(self, h: Float[Array, "N S E"]) -> Float[Array, "N S E"]:
        """Return the outputs of the pooler, the group between the blocks and the head."""
        raise TypeError(f"{type(self).__name__} does not define pool()")

    @nn.nowrap
    def apply_head(self, h: Array, examples: Array, embeddings: Embeddings, positions: Array | None) -> Array:
        """Return the head's outputs, of some tokens if given. Subclasses add the heads over the vocabulary."""
        h = take_tokens(h, positions)
        h = Dropout(self.head_dropout, name="head_dropout")(h)
        outputs = dense(self.outputs, "classifier", bias=self.head_bias)(h)
        if self.head == "spans":
            return jnp.where(examples[..., None] > 0, outputs, jnp.asarray(MASK_VALUE, outputs.dtype))
        return outputs[:, 0] if self.head == "classify" and self.examples == 1 else outputs

    @property
    def head_bias(self) -> bool:
        """Whether the classifier has a bias."""
        return True


class PreNormBlock(nn.Module):
    """Attention and two dense layers, each on normalised hidden states and added to what they were."""

    sizes: Any
    dropout: Any
    activation: Callable[[Array], Array]
    fused: bool = False
    std: float = 0.02  # of the initial kernels of both outputs

    @nn.compact
    def __call__(self, h: Float[Array, "N*L E"], bias: Float[Array, "n 1 #L L"]) -> Float[Array, "N*L E"]:
        """Return new hidden states."""
        sizes = self.sizes
        attention = Attention(sizes.heads, self.dropout, self.fused, self.std, name="attention")
        attended = attention(nn.LayerNorm(sizes.epsilon, name="attention_norm")(h), bias)
        h += Dropout(self.dropout, name="attention_dropout")(attended)
        inner = dense(sizes.intermediate, "up")(nn.LayerNorm(sizes.epsilon, name="mlp_norm")(h))
        outer = dense(sizes.width, "down", std=self.std)(self.activation(inner))
        return h + Dropout(self.dropout, name="mlp_dropout")(outer)


def take_tokens(h: Float[Array, "N L E"], positions: Array | None) -> Float[Array, "... E"]:
    """Return the hidden states of some tokens, int ``(P,)`` into the batch's ``N * L``; ``None``: of all."""
    return h if positions is None else jnp.take(h.reshape(-1, h.shape[-1]), positions, axis=0, mode="clip")


def block_outputs(layers: int) -> tuple[tuple[str, ...], ...]:
    """Return the modules of each block whose outputs are added to the hidden states."""
    return tuple((f"block_{i}/attention/output", f"block_{i}/down") for i in range(layers))


def check_heads(sizes: Any) -> Any:
    """Return the sizes; refuse heads that do not divide the width."""
    if sizes.width % sizes.heads:
        raise UserError(f"model.heads is {sizes.heads}; allowed: a divisor of the width, {sizes.width}")
    return sizes


# --- the settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transformer(Checkpointed):
    """The settings that BERT and GPT-2 share.

    ``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: random initial parameters. Sizes that are
    ``None`` are those of the checkpoint's ``config.json``; without a checkpoint, those of a small network
    (:class:`TransformerConfig`). ``intermediate``: units between the two layers of a block. ``dropout``: of the trunk
    (embeddings, attention's shares, both outputs of a block); ``head_dropout``: of the head's input. ``examples``: most
    in a row.
    """

    input_dtype: ClassVar[Any] = jnp.int32
    default_sizes: ClassVar[TransformerConfig] = TransformerConfig()
    module_class: ClassVar[type[TransformerModule]]

    vocab_size: int | None = hparam(None, COUNT)
    width: int | None = hparam(None, COUNT)
    layers: int | None = hparam(None, COUNT)
    heads: int | None = hparam(None, COUNT)
    intermediate: int | None = hparam(None, COUNT)
    positions: int | None = hparam(None, COUNT)
    dropout: float | None = hparam(None, UNIT, traced=True)
    head_dropout: float | None = hparam(None, UNIT, traced=True)
    examples: int = hparam(1, COUNT)

    @property
    def sizes(self) -> TransformerConfig:
        """The network's sizes: as set, else the checkpoint's, else the defaults."""
        loaded = self.loaded_config()
        known = loaded.network if loaded else self.default_sizes
        given = {name: value for name in known._fields if (value := getattr(self, name, None)) is not None}
        if loaded:
            self.check_matches({name: getattr(known, name) for name in given})
        elif self.width is not None:
            given.setdefault("intermediate", 4 * self.width)
        return check_heads(known._replace(**given))

    @property
    def head_name(self) -> str:
        """The head's name in the settings."""
        head: Enum = self.head  # type: ignore[attr-defined]
        return head.name

    def module(self, outputs: int) -> TransformerModule:
        """Return the network; refuse a number of outputs that the head cannot have."""
        sizes, head = self.sizes, self.head_name
        fixed = sizes.vocab_size if head in TIED else 2 if head == "spans" else outputs
        if outputs != fixed:
            words = "the vocabulary's size, model.vocab_size" if head in TIED else "first and last token"
            raise UserError(f"model.head={head} has {outputs} outputs; allowed: {fixed}, {words}")
        pooling: Enum = self.pooling  # type: ignore[attr-defined]
        dropout = (self.dropout, self.head_dropout)
        return self.module_class(sizes, outputs, head, pooling.name, self.examples, *dropout)

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``embeddings``, ``block_0`` ..., then the head."""
        return (("embeddings", "embeddings/.*"), *block_groups(self.sizes.layers), ("head", HEAD))

    def tied_params(self) -> str:
        """Return the embedding of words where the head is tied to it."""
        return "embeddings/word/embedding" if self.head_name in TIED else super().tied_params()

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return the output layers of each block's attention and feed-forward network, before dropout and residual."""
        return block_outputs(self.sizes.layers)

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """Return the rows of 4,096 tokens, a bound on the memory of the attention scores."""
        return max(1, 4096 // features[-1])

    def with_head(self, kind: str) -> Model:
        """Return the model with the language-model head for a language-model task; packed rows stay packed."""
        if kind not in TIED or kind == self.head_name:
            return self
        heads = type(self.head)  # type: ignore[attr-defined]
        if kind not in heads.__members__:
            what = "pairs of sentences" if kind == "pretraining" else f"{kind} words"
            raise UserError(f"model={self.architecture} has no head for a task of {what}")
        unpacked = {"examples": 1} if kind == "pretraining" else {}  # a row is a pair
        return replace(self, head=heads[kind], **unpacked)  # type: ignore[call-arg]


def residual_std(layers: int) -> float:
    """Return GPT-2's standard deviation for the kernels of its 2 * layers residual branches (section 2.3)."""
    return 0.02 / math.sqrt(2 * layers)
