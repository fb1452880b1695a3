"""A finished network as a checkpoint that transformers loads.

``config.json``, ``model.safetensors``, and what makes its inputs: the tokenizer, or how pixels are scaled.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from safetensors.numpy import save

from ..config.schema import build
from ..errors import UserError, listed
from ..files import atomic_write
from ..models.resnet import Resnet
from ..models.transformer import TIED, Transformer
from ..models.vision import Vision
from ..tracking.record import CHECKPOINT
from .adapter_files import read_job, read_tensors
from .adapters import merge, ranks
from .huggingface import (
    ARCHITECTURES,
    CONFIG,
    PREPROCESSOR,
    WHOLE,
    Architecture,
    folder_of,
    full_names,
    outward,
    parameter_shapes,
    read_json,
)

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
POOLED = {"bert": "pooler", "gpt2": "last", "vit": "first"}  # what stands for a row in Hugging Face's classes
BOTTOM = {"resnet": "stem/conv/kernel", "vit": "embeddings/patch/kernel"}  # whose inputs are an image's channels
PROCESSOR = {"resnet": "ConvNextImageProcessor", "vit": "ViTImageProcessor"}


def export_job(job: Path, out: Path, tokenizer: Path | None = None, pad_token_id: int | None = None) -> str:
    """Write a finished job's network as a checkpoint of Hugging Face; return the class that it is one of.

    LoRA is merged into the kernels first.

    Args:
        job: its folder.
        out: the new folder.
        tokenizer: a folder whose tokenizer is copied; ``None``: the job's own, where ``data.tokenizer`` is a folder.
        pad_token_id: the id that padding has; ``None``: the tokenizer's, or the checkpoint's.

    Raises:
        UserError: no finished job of such a model, a network that no class of Hugging Face's computes, or a folder
            that holds something already.
    """
    config, model = network_of(job)
    params: Any = read_tensors(job / CHECKPOINT)[0]
    if config.strategy.get("alpha") is not None and ranks(params):
        params = merge(params, read_job(job).adapter.scales)
    tokenizer = tokenizer or tokenizer_of(config)
    if pad_token_id is None:
        pad_token_id = padding_id(tokenizer)
    return export(model, params, out, tokenizer, pad_token_id)


def network_of(job: Path) -> tuple[DictConfig, Transformer | Vision]:
    """Return a job's configuration, and its network if Hugging Face has its architecture.

    Raises:
        UserError: no job's folder, or another network.
    """
    path = job / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{job}' is no job's folder: it has no .hydra/config.yaml")
    config: Any = OmegaConf.load(path)
    model = build("model", config.model)
    if not isinstance(model, Transformer | Vision):
        raise UserError(f"'{job}' has model={config.model.name}; allowed: {listed(ARCHITECTURES)}")
    return config, model


def tokenizer_of(config: DictConfig) -> Path | None:
    """Return the folder of a job's tokenizer, where its configuration names one that is there."""
    name = OmegaConf.select(config, "data.tokenizer")
    return Path(name) if name and (Path(name) / TOKENIZER[0]).is_file() else None


def padding_id(tokenizer: Path | None) -> int | None:
    """Return the id that a tokenizer pads with: its padding's, or that of its token ``[PAD]``, ``<pad>``."""
    if tokenizer is None or not (tokenizer / TOKENIZER[0]).is_file():
        return None
    found = read_json(tokenizer / TOKENIZER[0])
    if isinstance(padding := found.get("padding"), dict) and isinstance(padding.get("pad_id"), int):
        return padding["pad_id"]
    tokens = {token.get("content"): token.get("id") for token in found.get("added_tokens") or []}
    return tokens.get("[PAD]", tokens.get("<pad>"))


def export(
    model: Transformer | Vision,
    params: Mapping[str, Any],
    out: Path,
    tokenizer: Path | None = None,
    pad_token_id: int | None = None,
) -> str:
    """Write a network as a checkpoint of Hugging Face; return the class that it is one of. See :func:`export_job`."""
    table, head = ARCHITECTURES[model.architecture], model.head_name
    check_class(model)
    check_empty(out)
    last = "head/kernel" if isinstance(model, Vision) else "classifier/kernel"
    outputs = model.sizes.vocab_size if head in TIED else int(np.shape(params[last])[-1])
    sizes = whole_sizes(model, params)
    found = to_tensors(model, params, outputs, sizes)
    config = to_config(model, table, outputs, pad_token_id, sizes)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / WHOLE) as file:
        file.write(save(found, {"format": "pt"}))
    if isinstance(model, Vision):
        with atomic_write(out / PREPROCESSOR) as file:
            file.write((json.dumps(to_preprocessor(model, sizes), indent=2, sort_keys=True) + "\n").encode())
    for name in TOKENIZER:
        if tokenizer is not None and (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)
    with atomic_write(out / CONFIG) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return table.classes[head][0]


def check_class(model: Transformer | Vision) -> None:
    """Refuse a network that no class of Hugging Face's computes."""
    wanted = POOLED.get(model.architecture)
    if wanted and model.head_name == "classify" and (pooling := model.pooling.name) != wanted:  # type: ignore[union-attr]
        raise UserError(
            f"model.pooling is {pooling}, which no class of Hugging Face's computes before its head; allowed: {wanted}"
        )
    if isinstance(model, Resnet) and model.sizes.stem != "imagenet":
        raise UserError("model.stem is cifar, which no class of Hugging Face's has; allowed: imagenet")


def whole_sizes(model: Transformer | Vision, params: Mapping[str, Any]) -> Any:
    """Return a network's sizes; what they left to the images is read off the parameters.

    Raises:
        UserError: the images were not square.
    """
    if isinstance(model, Transformer):
        return model.sizes
    sizes = model.sizes._replace(channels=int(np.shape(params[BOTTOM[model.architecture]])[-2]))
    if model.architecture == "resnet":
        return sizes
    patches = int(np.shape(params["embeddings/positions"])[1]) - 1
    if math.isqrt(patches) ** 2 != patches:
        raise UserError(f"the network has {patches} patches, which make no square; allowed: square images")
    return sizes._replace(image=math.isqrt(patches) * sizes.patch)


def check_empty(out: Path) -> None:
    """Refuse to write into a folder that holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' holds something already; allowed: a new or an empty folder")


def to_tensors(
    model: Transformer | Vision, params: Mapping[str, Any], outputs: int, sizes: Any
) -> dict[str, np.ndarray]:
    """Return parameters under the names, and with the axes, that Hugging Face's class has.

    Raises:
        UserError: leaves that the network itself does not have, or lacks.
    """
    shapes = parameter_shapes(model, outputs, sizes)
    more, less = sorted(params.keys() - shapes.keys()), sorted(shapes.keys() - params.keys())
    if more or less:
        what = f"holds {listed(more)} beside its own" if more else f"lacks {listed(less)} of its own"
        raise UserError(
            f"the network {what} parameters, so no class of Hugging Face's is the same; "
            "allowed: strategies that add nothing, and strategy=lora"
        )
    found = {}
    for name, (path, transposed) in full_names(model).items():
        if path in params:
            values = np.asarray(params[path])
            found[name] = np.ascontiguousarray(values.transpose(outward(values.ndim)) if transposed else values)
        if name.endswith(".running_var") and path in params:  # which its class counts beside them
            found[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    if model.architecture == "bert" and model.sizes.types == 0:  # which its class cannot do without
        found["bert.embeddings.token_type_embeddings.weight"] = np.zeros((1, model.sizes.width), np.float32)
    return found


def to_config(
    model: Transformer | Vision, table: Architecture, outputs: int, pad_token_id: int | None, sizes: Any
) -> dict[str, Any]:
    """Return what ``config.json`` says: the checkpoint's own where there is one, with what has changed.

    Raises:
        UserError: nothing tells which id padding has, and the class needs it to find an example's last token.
    """
    config: dict[str, Any] = {}
    if isinstance(model, Transformer):
        config["pad_token_id"] = 0 if model.architecture == "bert" else None
    if model.architecture == "gpt2":
        config |= {"bos_token_id": None, "eos_token_id": None}
    if model.checkpoint is not None:
        config |= read_json(folder_of(model.checkpoint) / CONFIG)
    config.pop("torch_dtype", None)
    config |= {key: allowed[0] for key, allowed in table.fixed.items()}
    config |= {theirs: getattr(sizes, ours) for ours, theirs in table.sizes.items()}
    if model.architecture == "bert":
        config["type_vocab_size"] = max(model.sizes.types, 1)
    config |= {"model_type": model.architecture, "dtype": "float32"}
    config["architectures"] = [table.classes[model.head_name][0]]
    if model.head_name in ("classify", "tokens") and len(config.get("id2label") or {}) != outputs:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(outputs)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(outputs)}
    if pad_token_id is not None and isinstance(model, Transformer):
        config["pad_token_id"] = pad_token_id
    if model.architecture == "gpt2" and config["pad_token_id"] is None and model.head_name == "classify":
        raise UserError("nothing tells which id padding has; give it as --pad-token-id, or a tokenizer as --tokenizer")
    return config


def to_preprocessor(model: Vision, sizes: Any) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says: the checkpoint's own where there is one, with how pixels scale."""
    config: dict[str, Any] = {"image_processor_type": PROCESSOR[model.architecture], "do_resize": False}
    if model.checkpoint is not None and (file := folder_of(model.checkpoint) / PREPROCESSOR).is_file():
        config = read_json(file)
    mean, std = (list(values) * (sizes.channels if len(values) == 1 else 1) for values in model.scaling)
    return config | {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
