"""Checkpoints of Hugging Face: which of their tensors is which parameter, read with care and written back.

A checkpoint is a folder with ``config.json`` and ``model.safetensors``, in one piece or in shards with an index. All of
it is data from outside: sizes are checked, names of files stay in their folder, and nothing in it can run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError, listed
from ..models import resnet, vit
from ..models.transformer import TIED, Sizes, Transformer
from ..models.vision import CENTRE, SPREAD, Vision, is_number
from ..notices import warn_once

CONFIG, WHOLE, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"  # of images
WANTED = (CONFIG, WHOLE, INDEX, "model-*.safetensors", "tokenizer.json", "tokenizer_config.json", PREPROCESSOR)
LARGEST = 2**24  # of a size that config.json may name
MOST = 32  # sizes in a list
NUMBERS = ("F64", "F32", "F16", "BF16")
SHOWN = 20  # names in one sentence

# --- the tables ------------------------------------------------------------------------------------------------------

# Last names of a module: theirs -> ours, and whether the array is transposed: PyTorch's Linear has (out, in), its
# convolutions have (out, in, height, width).
Leaves = Mapping[str, tuple[str, bool]]
DENSE: Leaves = {"weight": ("kernel", True), "bias": ("bias", False)}
CONV1D: Leaves = {"weight": ("kernel", False), "bias": ("bias", False)}  # GPT-2's, which is (in, out)
NORM: Leaves = {"weight": ("scale", False), "bias": ("bias", False)}
EMBEDDING: Leaves = {"weight": ("embedding", False)}
KERNEL: Leaves = {"weight": ("kernel", True)}
BIAS: Leaves = {"bias": ("bias", False)}
BATCH_NORM: Leaves = {**NORM, "running_mean": ("mean", False), "running_var": ("var", False)}
TOKENS: Leaves = {"cls_token": ("class_token", False), "position_embeddings": ("positions", False)}

Lines = tuple[tuple[str, str, Leaves], ...]  # their module -> our module; {i} is a block, by their name and our number


def numbered(sizes: Any) -> list[str]:
    """Return what blocks are called that lie in one list."""
    return [str(i) for i in range(sizes.layers)]


def by_stage(sizes: resnet.Sizes) -> list[str]:
    """Return what blocks are called that lie in stages."""
    return [f"{stage}.layers.{i}" for stage, depth in enumerate(sizes.depths) for i in range(depth)]


class Architecture(NamedTuple):
    """What Hugging Face calls the parts of a network."""

    prefix: str  # of the trunk's names, which may be missing
    trunk: Lines
    pooler: Lines
    heads: Mapping[str, Lines]
    classes: Mapping[str, tuple[str, ...]]  # head -> classes that have it; the first one is written
    renamed: Mapping[str, Mapping[str, str]]  # classes whose files call a module otherwise -> its name -> the table's
    sizes: Mapping[str, str]  # ours -> theirs, in config.json
    fixed: Mapping[str, tuple[Any, ...]]  # what else config.json says -> what this network can do
    tied: Mapping[str, str]  # copies of a tensor that some files have -> the tensor
    other: str  # regular expression: parts of other networks, which are left alone
    buffers: str  # regular expression: no parameters
    kind: Any = Sizes  # what holds the sizes; a default's type is that of what config.json must say
    blocks: Callable[[Any], Sequence[str]] = numbered
    row: Callable[[Any], tuple[int, ...]] = lambda _: (3, 1)  # a shape that inputs may have


BERT = Architecture(
    prefix="bert.",
    trunk=(
        ("embeddings.word_embeddings", "embeddings/word", EMBEDDING),
        ("embeddings.position_embeddings", "embeddings/position", EMBEDDING),
        ("embeddings.token_type_embeddings", "embeddings/type", EMBEDDING),
        ("embeddings.LayerNorm", "embeddings/norm", NORM),
        ("encoder.layer.{i}.attention.self.query", "block_{i}/attention/query", DENSE),
        ("encoder.layer.{i}.attention.self.key", "block_{i}/attention/key", DENSE),
        ("encoder.layer.{i}.attention.self.value", "block_{i}/attention/value", DENSE),
        ("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/output", DENSE),
        ("encoder.layer.{i}.attention.output.LayerNorm", "block_{i}/attention_norm", NORM),
        ("encoder.layer.{i}.intermediate.dense", "block_{i}/up", DENSE),
        ("encoder.layer.{i}.output.dense", "block_{i}/down", DENSE),
        ("encoder.layer.{i}.output.LayerNorm", "block_{i}/mlp_norm", NORM),
    ),
    pooler=(("pooler.dense", "pooler", DENSE),),
    heads={
        "classify": (("classifier", "classifier", DENSE),),
        "tokens": (("classifier", "classifier", DENSE),),
        "spans": (("qa_outputs", "classifier", DENSE),),
        "masked": (
            ("cls.predictions.transform.dense", "transform", DENSE),
            ("cls.predictions.transform.LayerNorm", "transform_norm", NORM),
            ("cls.predictions", "vocabulary", BIAS),
        ),
        "pretraining": (
            ("cls.predictions.transform.dense", "transform", DENSE),
            ("cls.predictions.transform.LayerNorm", "transform_norm", NORM),
            ("cls.predictions", "vocabulary", BIAS),
            ("cls.seq_relationship", "classifier", DENSE),
        ),
    },
    classes={
        "classify": ("BertForSequenceClassification", "BertForNextSentencePrediction"),
        "tokens": ("BertForTokenClassification",),
        "spans": ("BertForQuestionAnswering",),
        "masked": ("BertForMaskedLM", "BertForPreTraining"),
        "pretraining": ("BertForPreTraining",),
    },
    renamed={"BertForNextSentencePrediction": {"cls.seq_relationship": "classifier"}},
    sizes={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
        "epsilon": "layer_norm_eps",
    },
    fixed={
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    other=r"(cls|classifier|qa_outputs|pooler)\..*",
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
    pooler=(),
    heads={
        "classify": (("score", "classifier", KERNEL),),
        "tokens": (("classifier", "classifier", DENSE),),
        "spans": (("qa_outputs", "classifier", DENSE),),
        "causal": (),
    },
    classes={
        "classify": ("GPT2ForSequenceClassification",),
        "tokens": ("GPT2ForTokenClassification",),
        "spans": ("GPT2ForQuestionAnswering",),
        "causal": ("GPT2LMHeadModel", "GPT2DoubleHeadsModel"),
    },
    renamed={},
    sizes={
        "vocab_size": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "intermediate": "n_inner",
        "positions": "n_positions",
        "epsilon": "layer_norm_epsilon",
    },
    fixed={
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    tied={"lm_head.weight": "wte.weight"},
    other=r"(lm_head|score|classifier|qa_outputs|multiple_choice_head)\..*",
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
    pooler=(),
    heads={"classify": (("classifier.1", "head", DENSE),)},
    classes={"classify": ("ResNetForImageClassification",)},
    renamed={},
    sizes={
        "stem_width": "embedding_size",
        "widths": "hidden_sizes",
        "depths": "depths",
        "kind": "layer_type",
        "channels": "num_channels",
    },
    fixed={
        "hidden_act": ("relu",),
        "layer_type": ("basic", "bottleneck"),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
    },
    tied={},
    other=r"classifier\..*",
    buffers=r".*\.num_batches_tracked",
    kind=resnet.Sizes,
    blocks=by_stage,
    row=lambda sizes: (32, 32, sizes.channels),
)

VIT = Architecture(
    prefix="vit.",
    trunk=(
        ("embeddings", "embeddings", TOKENS),
        ("embeddings.patch_embeddings.projection", "embeddings/patch", DENSE),
        ("encoder.layer.{i}.layernorm_before", "block_{i}/attention_norm", NORM),
        ("encoder.layer.{i}.attention.attention.query", "block_{i}/attention/query", DENSE),
        ("encoder.layer.{i}.attention.attention.key", "block_{i}/attention/key", DENSE),
        ("encoder.layer.{i}.attention.attention.value", "block_{i}/attention/value", DENSE),
        ("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/output", DENSE),
        ("encoder.layer.{i}.layernorm_after", "block_{i}/mlp_norm", NORM),
        ("encoder.layer.{i}.intermediate.dense", "block_{i}/up", DENSE),
        ("encoder.layer.{i}.output.dense", "block_{i}/down", DENSE),
        ("layernorm", "final_norm", NORM),
    ),
    pooler=(),
    heads={"classify": (("classifier", "head", DENSE),)},
    classes={"classify": ("ViTForImageClassification",)},
    renamed={},
    sizes={
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "patch": "patch_size",
        "image": "image_size",
        "channels": "num_channels",
        "epsilon": "layer_norm_eps",
    },
    fixed={"hidden_act": ("gelu",), "qkv_bias": (True,)},
    tied={},
    other=r"(pooler|classifier|decoder)\..*",
    buffers=r"embeddings\.mask_token",
    kind=vit.Sizes,
    row=lambda sizes: (sizes.image, sizes.image, sizes.channels),
)

TEXTS = {"bert": BERT, "gpt2": GPT2}
ARCHITECTURES = TEXTS | {"resnet": RESNET, "vit": VIT}


def names_of(lines: Lines, blocks: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return ``{their name: (our path, whether it is transposed)}`` of a table, for blocks of these names."""
    found = {}
    for theirs, ours, leaves in lines:
        for i, name in enumerate(blocks if "{i}" in theirs else ("",)):
            for their_leaf, (our_leaf, transposed) in leaves.items():
                found[f"{theirs.format(i=name)}.{their_leaf}"] = (f"{ours.format(i=i)}/{our_leaf}", transposed)
    return found


def full_names(model: Transformer | Vision) -> dict[str, tuple[str, bool]]:
    """Return what :func:`names_of` does for a whole network, with the trunk's prefix: the names in a class's files."""
    table = ARCHITECTURES[model.architecture]
    trunk = names_of((*table.trunk, *table.pooler), table.blocks(model.sizes))
    return {table.prefix + name: entry for name, entry in trunk.items()} | names_of(table.heads[model.head_name], ())


def inward(dimensions: int) -> tuple[int, ...]:
    """Return PyTorch's axes in our order: of ``(out, in, height, width)``, those of ``(height, width, in, out)``."""
    return (*range(2, dimensions), 1, 0)


def outward(dimensions: int) -> tuple[int, ...]:
    """Return the axes of ours in PyTorch's order, the inverse of :func:`inward`."""
    return (dimensions - 1, dimensions - 2, *range(dimensions - 2))


# --- files -----------------------------------------------------------------------------------------------------------


def folder_of(checkpoint: str) -> Path:
    """Return the folder of a checkpoint; a name on the Hugging Face Hub is downloaded first, where it is not at hand.

    Raises:
        UserError: there is no such folder, and the Hub does not give one.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", checkpoint):
        raise UserError(f"model.checkpoint is '{checkpoint}', and there is no such folder")
    return _downloaded(checkpoint)


@functools.cache
def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.checkpoint is '{name}': there is no such folder, and the Hugging Face Hub does not give it "
            f"({type(error).__name__}); allowed: a folder, or a name that the Hub or its local cache has"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors.

    Raises:
        UserError: there are none, they are pickled, or the index names what is no file of the folder.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        return sharded(folder)
    if (folder / PICKLE).is_file():
        raise UserError(
            f"'{folder}' has {PICKLE} only, a pickle, which can run code when it is read; "
            "allowed: model.safetensors (transformers' save_pretrained writes it)"
        )
    raise UserError(f"'{folder}' holds no {WHOLE}; allowed: a folder that transformers' save_pretrained wrote")


def sharded(folder: Path) -> list[Path]:
    """Return the files that a checkpoint's index names."""
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"'{folder / INDEX}' names no files; allowed: an index with a weight_map")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise UserError(f"'{folder / INDEX}' names the file '{name}'; allowed: safetensors files beside it")
        if not (folder / name).is_file():
            raise UserError(f"'{folder / INDEX}' names the file '{name}', which is not there")
    return [folder / name for name in files]


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no JSON") from error
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds no JSON object")
    return found


Stamp = tuple[tuple[str, int, int], ...]  # of files: name, size and time of the last change


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Return what changes when files do, so that what was read of them can be kept."""
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def fingerprint(checkpoint: str) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over a checkpoint's configuration and weights.

    Raises:
        UserError: there is no checkpoint.
    """
    folder = folder_of(checkpoint)
    files = weight_files(folder)
    read_json(folder / CONFIG)
    pixels = [folder / PREPROCESSOR] if (folder / PREPROCESSOR).is_file() else []
    return _digest(stamp_of([folder / CONFIG, *pixels, *files]))


@functools.cache
def _digest(stamp: Stamp) -> str:
    digest = hashlib.sha256()
    for name, size, _ in stamp:
        with Path(name).open("rb") as file:
            digest.update(f"{Path(name).name} {size} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


# --- config.json -----------------------------------------------------------------------------------------------------


def read_sizes(architecture: str, checkpoint: str) -> Any:
    """Return the sizes that a checkpoint's ``config.json`` names, of the architecture's kind.

    Raises:
        UserError: another architecture, a size that cannot be, or a variant that this network does not compute.
    """
    path = folder_of(checkpoint) / CONFIG
    if not path.is_file():
        raise UserError(f"'{path.parent}' has no {CONFIG}; allowed: a folder that transformers' save_pretrained wrote")
    return _sizes(architecture, stamp_of([path]))


@functools.cache
def _sizes(architecture: str, stamp: Stamp) -> Any:
    path = Path(stamp[0][0])
    config, table = read_json(path), ARCHITECTURES[architecture]
    if (kind := config.get("model_type")) != architecture:
        other = f"; model={kind} reads it" if kind in ARCHITECTURES else ""
        raise UserError(f"'{path}' describes a model of type '{kind}', and model={architecture} is asked for{other}")
    for key, allowed in table.fixed.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"'{path}': {key} is '{config[key]}'; allowed: {listed(map(str, allowed))}")
    sizes = {ours: config.get(theirs) for ours, theirs in table.sizes.items()}
    if sizes.get("intermediate", 0) is None and isinstance(sizes["width"], int):
        sizes["intermediate"] = 4 * sizes["width"]
    for ours, value in sizes.items():
        if not _may_be(value, table.kind._field_defaults[ours], least=(least := 0 if ours == "types" else 1)):
            words = _words(table, ours, least)
            raise UserError(f"'{path}': {table.sizes[ours]} is {value!r}; allowed: {words}")
    return table.kind(**{ours: tuple(value) if isinstance(value, list) else value for ours, value in sizes.items()})


def _may_be(value: Any, default: Any, least: int) -> bool:
    """Tell whether ``config.json`` may give a size this value, by the type of the size's default."""
    if isinstance(default, tuple):
        return isinstance(value, list) and 0 < len(value) <= MOST and all(_may_be(one, None, least) for one in value)
    if isinstance(default, float):
        return isinstance(value, float) and 0 < value < 1
    if isinstance(default, str):  # one of the words that the table allows, if it is there at all
        return isinstance(value, str)
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _words(table: Architecture, ours: str, least: int) -> str:
    """Say what :func:`_may_be` accepts."""
    default, whole = table.kind._field_defaults[ours], f"whole number from {least} to {LARGEST}"
    if isinstance(default, tuple):
        return f"a list of 1 to {MOST}, each a {whole}"
    if isinstance(default, str):
        return listed(table.fixed[table.sizes[ours]])
    return "a number between 0 and 1" if isinstance(default, float) else f"a {whole}"


# --- preprocessor_config.json ----------------------------------------------------------------------------------------


def read_scaling(checkpoint: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation, channel by channel, that a checkpoint's pixels from 0 to 1 are given.

    Raises:
        UserError: there is no ``preprocessor_config.json``, its numbers cannot be, or it scales pixels in another way.
    """
    path = folder_of(checkpoint) / PREPROCESSOR
    if not path.is_file():
        raise UserError(f"'{path.parent}' has no {PREPROCESSOR}, so model.mean and model.std must be given")
    config = read_json(path)
    factor = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) is not True or not is_number(factor) or not math.isclose(factor, 1 / 255):
        raise UserError(f"'{path}' does not divide pixels by 255; allowed: do_rescale with a rescale_factor of 1/255")
    if config.get("do_normalize", True) is False:
        return (0.0,), (1.0,)
    found = []
    for key, check in (("image_mean", CENTRE), ("image_std", SPREAD)):
        value = config.get(key)
        values: list[Any] = value if isinstance(value, list) else [value]
        if not values or not all(map(check.accepts, values)):
            raise UserError(f"'{path}': {key} is {value!r}; allowed: {check.description}")
        found.append(tuple(map(float, values)))
    return found[0], found[1]


# --- tensors ---------------------------------------------------------------------------------------------------------


class Tensor(NamedTuple):
    """A tensor of a file that has not been read yet."""

    file: Any  # an open safetensors file
    name: str  # as the file has it
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        """Return the values as float32."""
        return np.asarray(self.file.get_tensor(self.name)).astype(np.float32)


def tensors(files: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of files by their names of today, without the trunk's prefix.

    Raises:
        UserError: a file is damaged or no safetensors file, or two tensors have one name.
    """
    found: dict[str, Tensor] = {}
    for path, file in opened(files):
        for name in file.keys():  # noqa: SIM118  (an open file, no dict)
            today = name.removeprefix(prefix)
            today = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", today))
            if today in found:
                raise UserError(f"'{path.parent}' has '{today}' twice, as '{found[today].name}' and '{name}'")
            part = file.get_slice(name)
            found[today] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
    return found


def opened(files: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """Yield safetensors files, open; their headers have been checked against their lengths."""
    for path in files:
        try:
            yield path, safe_open(path, framework="numpy")
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise UserError(f"'{path}' is damaged or no safetensors file: {error}") from error


class Request(NamedTuple):
    """What is to be read for a network."""

    architecture: str
    head: str
    blocks: tuple[str, ...]  # as the checkpoint calls them
    with_head: bool
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # of the network's parameters, by path


def read_checkpoint(model: Transformer | Vision, outputs: int | None = None) -> dict[str, np.ndarray]:
    """Return a checkpoint's parameters by path, as float32. They are kept and shared, so none can be written to.

    What is not taken is said once: a head that the checkpoint lacks or has of another kind or size (``outputs``), or
    one that is not asked for.

    Args:
        model: with a ``checkpoint``.
        outputs: of the head; ``None``: it is left out, unless its size is the vocabulary's.

    Raises:
        UserError: the files cannot be read, or their tensors are not those of this network: all of them are named.
    """
    if model.checkpoint is None:
        raise UserError("model.checkpoint is null; allowed here: a folder or a name on the Hugging Face Hub")
    sizes, head = model.sizes, model.head_name  # sizes are checked before anything large is touched
    folder = folder_of(model.checkpoint)
    files = [folder / CONFIG, *weight_files(folder)]
    fixed = sizes.vocab_size if head in TIED else 2
    shapes = parameter_shapes(model, outputs or fixed)
    with_head = outputs is not None or head in TIED
    blocks = tuple(ARCHITECTURES[model.architecture].blocks(sizes))
    request = Request(model.architecture, head, blocks, with_head, tuple(shapes.items()))
    return dict(_read(request, stamp_of(files)))


def parameter_shapes(model: Transformer | Vision, outputs: int, sizes: Any = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by path; ``sizes``: those that its own leave to the data."""
    row = ARCHITECTURES[model.architecture].row(sizes or model.sizes)
    found = jax.eval_shape(lambda key: model.init(key, row, outputs), jax.random.PRNGKey(0))
    return {path: leaf.shape for path, leaf in found.items()}


@functools.lru_cache(maxsize=2)
def _read(request: Request, stamp: Stamp) -> dict[str, np.ndarray]:
    config, *files = (Path(name) for name, _, _ in stamp)
    table = ARCHITECTURES[request.architecture]
    found = in_the_table(table, request.head, tensors(files, table.prefix), config)
    taken, faults = matched(request, found, config)
    if request.head in TIED:
        faults += untied(table, found)
    if faults:
        raise UserError(f"'{config.parent}' does not fit this network: {listed(faults, SHOWN)}")
    return {path: _parameter(found[name], transposed) for name, (path, transposed) in taken.items()}


def _parameter(tensor: Tensor, transposed: bool) -> np.ndarray:
    values = tensor.read()
    values = np.ascontiguousarray(values.transpose(inward(values.ndim))) if transposed else values
    values.flags.writeable = False
    return values


def matched(
    request: Request, found: Mapping[str, Tensor], config: Path
) -> tuple[dict[str, tuple[str, bool]], list[str]]:
    """Return which tensors are taken, by their names, and everything that does not fit; say what is left or starts new.

    Args:
        request: what is to be read.
        found: the checkpoint's tensors.
        config: its ``config.json``, which names the class that the weights are of.
    """
    table, shapes = ARCHITECTURES[request.architecture], dict(request.shapes)
    taken = {name: entry for name, entry in names_of(table.trunk, request.blocks).items() if entry[0] in shapes}
    faults, remarks = [], []
    for part, lines in (("pooler", table.pooler), ("head", table.heads[request.head] if request.with_head else ())):
        names = {name: entry for name, entry in names_of(lines, ()).items() if entry[0] in shapes}
        reason = "the file has none"
        if part == "head" and (others := other_classes(table, request.head, config)):
            reason = f"the file's is that of {listed(others)}"
        elif found.keys() & names.keys():
            reason = ""
            if part == "head" and (wrong := misshapen(names, found, shapes)):
                reason = f"the file's has another size: {listed(wrong)}"
        if names and not reason:
            taken |= names
        elif names:
            remarks.append(f"the {part} starts new, {reason}")
    faults += [f"{name} is missing" for name in taken if name not in found]
    faults += misshapen(taken, found, shapes)
    rest = [name for name in found if name not in taken and name not in table.tied]
    rest = [name for name in rest if not re.fullmatch(table.buffers, name)]
    faults += [f"{found[name].name} is unexpected" for name in rest if not re.fullmatch(table.other, name)]
    if left := sorted({name.split(".")[0] for name in rest if re.fullmatch(table.other, name)}):
        remarks.append(f"not taken: {listed(left)}")
    if remarks and not faults:
        warn_once(f"checkpoint '{config.parent}': {'; '.join(remarks)}")
    return taken, faults


def in_the_table(table: Architecture, head: str, found: Mapping[str, Tensor], config: Path) -> dict[str, Tensor]:
    """Return tensors by the table's names, where a class with this head calls some modules otherwise."""
    given = set(read_json(config).get("architectures") or []) & set(table.classes[head])
    names = {theirs: ours for cls in given for theirs, ours in table.renamed.get(cls, {}).items()}

    renamed = {}
    for name, tensor in found.items():
        module, dot, leaf = name.rpartition(".")
        renamed[names.get(module, module) + dot + leaf] = tensor
    return renamed


def other_classes(table: Architecture, head: str, config: Path) -> list[str]:
    """Return the classes that a checkpoint was saved from, if none of them has this head; of some, nothing is known."""
    given = read_json(config).get("architectures") or []
    known = {name for classes in table.classes.values() for name in classes}
    return [name for name in given if name in known] if not set(given) & set(table.classes[head]) else []


def misshapen(
    names: Mapping[str, tuple[str, bool]], found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what is wrong with the tensors of these names: their shapes, or that they hold no real numbers."""
    wrong = []
    for name, (path, transposed) in names.items():
        if name in found:
            shape = shapes[path]
            shape = tuple(shape[axis] for axis in outward(len(shape))) if transposed else shape
            if found[name].shape != shape:
                wrong.append(f"{found[name].name} is {found[name].shape} instead of {shape}")
            elif found[name].dtype not in NUMBERS:
                wrong.append(f"{found[name].name} holds {found[name].dtype} instead of {listed(NUMBERS)}")
    return wrong


def untied(table: Architecture, found: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors that should be copies of others and are not: the network has one for both."""
    return [
        f"{found[copy].name} differs from {found[original].name}, to which the head is tied"
        for copy, original in table.tied.items()
        if copy in found and original in found and not np.array_equal(found[copy].read(), found[original].read())
    ]
