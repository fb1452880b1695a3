"""The tensor names of Hugging Face's BERT, GPT-2, ResNet and ViT, and the keys of their ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..models.resnet import ResNetConfig
from ..models.transformer import TIED, Transformer, TransformerConfig
from ..models.vision import Vision
from ..models.vit import ViTConfig

NetworkModel = Transformer | Vision

# Parameters of a module: Hugging Face's last name -> ours, and whether the axes are transposed. PyTorch's Linear has
# (out, in), its convolutions (out, in, height, width).
ParamNames = Mapping[str, tuple[str, bool]]
DENSE: ParamNames = {"weight": ("kernel", True), "bias": ("bias", False)}
CONV1D: ParamNames = {"weight": ("kernel", False), "bias": ("bias", False)}  # GPT-2's, which is (in, out)
NORM: ParamNames = {"weight": ("scale", False), "bias": ("bias", False)}
EMBEDDING: ParamNames = {"weight": ("embedding", False)}
KERNEL: ParamNames = {"weight": ("kernel", True)}
BIAS: ParamNames = {"bias": ("bias", False)}
BATCH_NORM: ParamNames = {**NORM, "running_mean": ("mean", False), "running_var": ("var", False)}
TOKENS: ParamNames = {"cls_token": ("class_token", False), "position_embeddings": ("positions", False)}

# (Hugging Face's module, our module, its parameters). {i} is a block: its name there, its number here.
Modules = tuple[tuple[str, str, ParamNames], ...]


class Head(NamedTuple):
    """A kind of head: its modules, and the classes of Hugging Face that have it."""

    modules: Modules
    classes: tuple[str, ...]  # the first one is written


class Architecture(NamedTuple):
    """How Hugging Face names the parameters and sizes of a network."""

    prefix: str  # of the trunk's tensors; files may leave it out
    trunk: Modules  # below pooler and head
    heads: Mapping[str, Head]  # by our name
    config_keys: Mapping[str, str]  # our name of a size -> its key in config.json
    required: Mapping[str, tuple[Any, ...]]  # other keys of config.json -> the values that our network computes
    ignored: str  # a regular expression for parts of other networks, which are not read
    buffers: str  # a regular expression for tensors that are not parameters
    pooler: Modules = ()
    aliases: Mapping[str, Mapping[str, str]] = {}  # class -> module name in its files -> module name in the table
    tied: Mapping[str, str] = {}  # tensors that some files repeat -> the tensor that they are a copy of
    config_class: Any = TransformerConfig  # holds the sizes; the type of a default is that of the value in config.json
    block_names: Callable[[Any], Sequence[str]] = lambda config: [str(i) for i in range(config.layers)]
    input_shape: Callable[[Any], tuple[int, ...]] = lambda _: (3, 1)  # that inputs may have, without the batch axis


QKV = ("query", "key", "value")
CLASSIFIER: Modules = (("classifier", "classifier", DENSE),)
SPANS: Modules = (("qa_outputs", "classifier", DENSE),)
MASKED: Modules = (
    ("cls.predictions.transform.dense", "transform", DENSE),
    ("cls.predictions.transform.LayerNorm", "transform_norm", NORM),
    ("cls.predictions", "vocabulary", BIAS),
)
TRANSFORMER_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "epsilon": "layer_norm_eps",
}

BERT = Architecture(
    prefix="bert.",
    trunk=(
        ("embeddings.word_embeddings", "embeddings/word", EMBEDDING),
        ("embeddings.position_embeddings", "embeddings/position", EMBEDDING),
        ("embeddings.token_type_embeddings", "embeddings/type", EMBEDDING),
        ("embeddings.LayerNorm", "embeddings/norm", NORM),
        *((f"encoder.layer.{{i}}.attention.self.{name}", f"block_{{i}}/attention/{name}", DENSE) for name in QKV),
        ("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/output", DENSE),
        ("encoder.layer.{i}.attention.output.LayerNorm", "block_{i}/attention_norm", NORM),
        ("encoder.layer.{i}.intermediate.dense", "block_{i}/up", DENSE),
        ("encoder.layer.{i}.output.dense", "block_{i}/down", DENSE),
        ("encoder.layer.{i}.output.LayerNorm", "block_{i}/mlp_norm", NORM),
    ),
    pooler=(("pooler.dense", "pooler", DENSE),),
    heads={
        "classify": Head(CLASSIFIER, ("BertForSequenceClassification", "BertForNextSentencePrediction")),
        "tokens": Head(CLASSIFIER, ("BertForTokenClassification",)),
        "spans": Head(SPANS, ("BertForQuestionAnswering",)),
        "masked": Head(MASKED, ("BertForMaskedLM", "BertForPreTraining")),
        "pretraining": Head((*MASKED, ("cls.seq_relationship", "classifier", DENSE)), ("BertForPreTraining",)),
    },
    aliases={"BertForNextSentencePrediction": {"cls.seq_relationship": "classifier"}},
    config_keys={
        "vocab_size": "vocab_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
        **TRANSFORMER_KEYS,
    },
    required={
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=r"(cls|classifier|qa_outputs|pooler)\..*",
    buffers=r"embeddings\.position_ids",
)

GPT2 = Architecture(
    prefix="transformer.",
    trunk=(
        ("wte", "embeddings/word", EMBEDDING),
        ("wpe", "embeddings/position", EMBEDDING),
        ("h.{i}.ln_1", "block_{i}/attention_norm", NORM),
        ("h.{i}.attn.c_attn", "block_{i}/attention/qkv", CONV1D),
        ("h.{i}.attn.c_proj", "block_{i}/attention/output", CONV1D),
        ("h.{i}.ln_2", "block_{i}/mlp_norm", NORM),
        ("h.{i}.mlp.c_fc", "block_{i}/up", CONV1D),
        ("h.{i}.mlp.c_proj", "block_{i}/down", CONV1D),
        ("ln_f", "final_norm", NORM),
    ),
    heads={
        "classify": Head((("score", "classifier", KERNEL),), ("GPT2ForSequenceClassification",)),
        "tokens": Head(CLASSIFIER, ("GPT2ForTokenClassification",)),
        "spans": Head(SPANS, ("GPT2ForQuestionAnswering",)),
        "causal": Head((), ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")),
    },
    config_keys={
        "vocab_size": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "intermediate": "n_inner",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
    },
    required={
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    tied={"lm_head.weight": "wte.weight"},
    ignored=r"(lm_head|score|classifier|qa_outputs|multiple_choice_head)\..*",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
)

RESNET = Architecture(
    prefix="resnet.",
    trunk=(
        ("embedder.embedder.convolution", "stem/conv", KERNEL),
        ("embedder.embedder.normalization", "stem/norm", BATCH_NORM),
        *((f"encoder.stages.{{i}}.layer.{j}.convolution", f"block_{{i}}/conv_{j}", KERNEL) for j in range(3)),
        *((f"encoder.stages.{{i}}.layer.{j}.normalization", f"block_{{i}}/norm_{j}", BATCH_NORM) for j in range(3)),
        ("encoder.stages.{i}.shortcut.convolution", "block_{i}/shortcut", KERNEL),
        ("encoder.stages.{i}.shortcut.normalization", "block_{i}/shortcut_norm", BATCH_NORM),
    ),
    heads={"classify": Head((("classifier.1", "head", DENSE),), ("ResNetForImageClassification",))},
    config_keys={
        "stem_width": "embedding_size",
        "widths": "hidden_sizes",
        "depths": "depths",
        "kind": "layer_type",
        "channels": "num_channels",
    },
    required={
        "hidden_act": ("relu",),
        "layer_type": ("basic", "bottleneck"),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
    },
    ignored=r"classifier\..*",
    buffers=r".*\.num_batches_tracked",
    config_class=ResNetConfig,
    block_names=lambda config: [f"{stage}.layers.{i}" for stage, n in enumerate(config.depths) for i in range(n)],
    input_shape=lambda config: (32, 32, config.channels),
)

VIT = Architecture(
    prefix="vit.",
    trunk=(
        ("embeddings", "embeddings", TOKENS),
        ("embeddings.patch_embeddings.projection", "embeddings/patch", DENSE),
        ("encoder.layer.{i}.layernorm_before", "block_{i}/attention_norm", NORM),
        *((f"encoder.layer.{{i}}.attention.attention.{name}", f"block_{{i}}/attention/{name}", DENSE) for name in QKV),
        ("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/output", DENSE),
        ("encoder.layer.{i}.layernorm_after", "block_{i}/mlp_norm", NORM),
        ("encoder.layer.{i}.intermediate.dense", "block_{i}/up", DENSE),
        ("encoder.layer.{i}.output.dense", "block_{i}/down", DENSE),
        ("layernorm", "final_norm", NORM),
    ),
    heads={"classify": Head((("classifier", "head", DENSE),), ("ViTForImageClassification",))},
    config_keys={"patch": "patch_size", "image": "image_size", "channels": "num_channels", **TRANSFORMER_KEYS},
    required={"hidden_act": ("gelu",), "qkv_bias": (True,)},
    ignored=r"(pooler|classifier|decoder)\..*",
    buffers=r"embeddings\.mask_token",
    config_class=ViTConfig,
    input_shape=lambda config: (config.image, config.image, config.channels),
)

TEXT_ARCHITECTURES = {"bert": BERT, "gpt2": GPT2}
ARCHITECTURES = TEXT_ARCHITECTURES | {"resnet": RESNET, "vit": VIT}

# Tensor names of Hugging Face -> the path of our parameter, and whether its axes are transposed.
TensorNames = dict[str, tuple[str, bool]]


def tensor_names(modules: Modules, blocks: Sequence[str] = ()) -> TensorNames:
    """Return the tensors of some modules, for blocks of these names."""
    return {
        f"{theirs.format(i=name)}.{their_param}": (f"{ours.format(i=i)}/{our_param}", transposed)
        for theirs, ours, params in modules
        for i, name in enumerate(blocks if "{i}" in theirs else ("",))
        for their_param, (our_param, transposed) in params.items()
    }


def model_tensor_names(model: NetworkModel) -> TensorNames:
    """Return the tensors of a whole model as its class writes them, with the trunk's prefix."""
    table = ARCHITECTURES[model.architecture]
    trunk = tensor_names((*table.trunk, *table.pooler), table.block_names(model.sizes))
    head = tensor_names(table.heads[model.head_name].modules)
    return {table.prefix + name: entry for name, entry in trunk.items()} | head


def fixed_outputs(model: NetworkModel) -> int | None:
    """Return the number of outputs of a head that allows only one number; ``None`` for other heads."""
    if model.head_name in TIED:
        return model.sizes.vocab_size
    return 2 if model.head_name == "spans" else None


def param_shapes(model: NetworkModel, outputs: int, config: Any = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by path; ``config`` replaces the model's own sizes."""
    shape = ARCHITECTURES[model.architecture].input_shape(config or model.sizes)
    found = jax.eval_shape(lambda key: model.init(key, shape, outputs), jax.random.PRNGKey(0))
    return {path: leaf.shape for path, leaf in found.items()}
