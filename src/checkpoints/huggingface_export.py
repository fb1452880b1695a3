"""A network written as a checkpoint that transformers loads, with the tokenizer or the scaling of pixels."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, listed
from ..models.resnet import Resnet
from ..models.transformer import Transformer
from ..models.vision import Vision
from .architectures import ARCHITECTURES, NetworkModel, fixed_outputs, model_tensor_names, param_shapes
from .huggingface import CONFIG, PREPROCESSOR, WEIGHTS, folder_of
from .tensor_files import check_new_folder, read_json, to_torch_axes, write_json, write_tensors

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
POOLING = {"bert": "pooler", "gpt2": "last", "vit": "first"}  # of Hugging Face's classes for whole examples
FIRST_KERNEL = {"resnet": "stem/conv/kernel", "vit": "embeddings/patch/kernel"}  # (height, width, channels, out)
PROCESSOR = {"resnet": "ConvNextImageProcessor", "vit": "ViTImageProcessor"}


def export(
    model: NetworkModel,
    params: Mapping[str, Any],
    out: Path,
    tokenizer: Path | None = None,
    pad_token_id: int | None = None,
) -> str:
    """Write a network as a checkpoint of Hugging Face; return the name of the class that loads it.

    The parameters are without any that a strategy added. The tokenizer in a folder is copied. The default id of padding
    is that of the checkpoint which the network started from.

    Raises:
        UserError: no class of Hugging Face computes this network, the padding's id is needed and unknown, or the
            folder is not empty.
    """
    check_exportable(model)
    check_new_folder(out)
    last = "head/kernel" if isinstance(model, Vision) else "classifier/kernel"
    outputs = fixed_outputs(model) or int(np.shape(params[last])[-1])
    sizes = complete_sizes(model, params)
    tensors = to_tensors(model, params, outputs, sizes)
    config = to_config(model, outputs, pad_token_id, sizes)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / WEIGHTS, tensors, {"format": "pt"})
    if isinstance(model, Vision):
        write_json(out / PREPROCESSOR, to_preprocessor(model, sizes))
    for name in TOKENIZER_FILES:
        if tokenizer is not None and (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)
    write_json(out / CONFIG, config)
    return config["architectures"][0]


def padding_id(tokenizer: Path | None) -> int | None:
    """Return the id that the tokenizer in a folder pads with: its padding's, or that of ``[PAD]`` or ``<pad>``."""
    if tokenizer is None or not (tokenizer / TOKENIZER).is_file():
        return None
    found = read_json(tokenizer / TOKENIZER)
    if isinstance(padding := found.get("padding"), dict) and isinstance(padding.get("pad_id"), int):
        return padding["pad_id"]
    tokens = {token.get("content"): token.get("id") for token in found.get("added_tokens") or []}
    return tokens.get("[PAD]", tokens.get("<pad>"))


def check_exportable(model: NetworkModel) -> None:
    """Refuse a network that no class of Hugging Face computes."""
    expected = POOLING.get(model.architecture)
    if expected and model.head_name == "classify" and (pooling := model.pooling.name) != expected:  # type: ignore[union-attr]
        raise UserError(
            f"model.pooling is {pooling}, which no class of Hugging Face computes below its head; allowed: {expected}"
        )
    if isinstance(model, Resnet) and model.sizes.stem != "imagenet":
        raise UserError("model.stem is cifar, which no class of Hugging Face has; allowed: imagenet")


def complete_sizes(model: NetworkModel, params: Mapping[str, Any]) -> Any:
    """Return a network's sizes; those that its settings leave to the images are read off the parameters."""
    if isinstance(model, Transformer):
        return model.sizes
    sizes = model.sizes._replace(channels=int(np.shape(params[FIRST_KERNEL[model.architecture]])[-2]))
    if model.architecture == "resnet":
        return sizes
    patches = int(np.shape(params["embeddings/positions"])[1]) - 1
    if math.isqrt(patches) ** 2 != patches:
        raise UserError(f"the network has {patches} patches, which form no square; allowed: square images")
    return sizes._replace(image=math.isqrt(patches) * sizes.patch)


def to_tensors(model: NetworkModel, params: Mapping[str, Any], outputs: int, sizes: Any) -> dict[str, np.ndarray]:
    """Return parameters under the names, and with the axes, of Hugging Face's class."""
    shapes = param_shapes(model, outputs, sizes)
    extra, missing = sorted(params.keys() - shapes.keys()), sorted(shapes.keys() - params.keys())
    if extra or missing:
        what = f"holds {listed(extra)} beside its own" if extra else f"lacks {listed(missing)} of its own"
        raise UserError(
            f"the network {what} parameters, so no class of Hugging Face computes it; "
            "allowed: strategies that add no parameters, and strategy=lora"
        )
    found = {}
    for name, (path, transposed) in model_tensor_names(model).items():
        if path not in params:
            continue
        values = np.asarray(params[path])
        found[name] = values.transpose(to_torch_axes(values.ndim)) if transposed else values
        if name.endswith(".running_var"):  # PyTorch counts batches beside them
            found[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    if model.architecture == "bert" and model.sizes.types == 0:  # the class requires at least one type
        found["bert.embeddings.token_type_embeddings.weight"] = np.zeros((1, model.sizes.width), np.float32)
    return found


def to_config(model: NetworkModel, outputs: int, pad_token_id: int | None, sizes: Any) -> dict[str, Any]:
    """Return the content of ``config.json``: that of the model's checkpoint, if any, with what has changed."""
    table, is_text = ARCHITECTURES[model.architecture], isinstance(model, Transformer)
    config: dict[str, Any] = {"pad_token_id": 0 if model.architecture == "bert" else None} if is_text else {}
    if model.architecture == "gpt2":
        config |= {"bos_token_id": None, "eos_token_id": None}
    if model.checkpoint is not None:
        config |= read_json(folder_of(model.checkpoint) / CONFIG)
    config.pop("torch_dtype", None)
    config |= {key: allowed[0] for key, allowed in table.required.items()}
    config |= {theirs: getattr(sizes, ours) for ours, theirs in table.config_keys.items()}
    if model.architecture == "bert":
        config["type_vocab_size"] = max(model.sizes.types, 1)
    config |= {"model_type": model.architecture, "dtype": "float32"}
    config["architectures"] = [table.heads[model.head_name].classes[0]]
    if model.head_name in ("classify", "tokens") and len(config.get("id2label") or {}) != outputs:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(outputs)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(outputs)}
    if is_text and pad_token_id is not None:
        config["pad_token_id"] = pad_token_id
    if model.architecture == "gpt2" and config["pad_token_id"] is None and model.head_name == "classify":
        raise UserError("the padding's id is unknown; give it as --pad-token-id, or a tokenizer as --tokenizer")
    return config


def to_preprocessor(model: Vision, sizes: Any) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``: that of the checkpoint, if any, with the model's scaling."""
    config: dict[str, Any] = {"image_processor_type": PROCESSOR[model.architecture], "do_resize": False}
    if model.checkpoint is not None and (file := folder_of(model.checkpoint) / PREPROCESSOR).is_file():
        config = read_json(file)
    mean, std = (list(values) * (sizes.channels if len(values) == 1 else 1) for values in model.scaling)
    scaling = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    return config | scaling | {"image_mean": mean, "image_std": std}
