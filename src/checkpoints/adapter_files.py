"""Adapters on disk: one safetensors file each, whole or absent; and what a finished job's folder holds of one.

The file has the factors as ``Dense_0/lora_a`` and ``Dense_0/lora_b``, the head's leaves under their own paths, and in
its metadata, as JSON, the scales, the base's fingerprint and what is known of its making. Nothing in it can run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as encoded

from ..config.schema import build
from ..errors import UserError
from ..files import atomic_write
from ..models.base import head_paths
from ..models.lowrank import scale
from ..tracking.record import CHECKPOINT
from ..types import Params
from .adapters import LEAVES, A, Adapter, B, extract, ranks, taken_apart

FORMAT = "thaw-adapter-1"
# Names of safetensors; its own NumPy reader knows no bfloat16.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def save(adapter: Adapter, path: Path) -> None:
    """Write an adapter; the file appears whole or not at all."""
    texts = {"scales": dict(adapter.scales), "head_paths": list(adapter.head_paths), "meta": dict(adapter.meta)}
    metadata = {name: json.dumps(value) for name, value in texts.items()} | {"format": FORMAT, "base": adapter.base}
    # order="C", because safetensors writes a transposed array's memory as it lies: another array.
    leaves = {p: np.asarray(leaf, order="C") for p, leaf in {**adapter.leaves, **adapter.head}.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(encoded(leaves, metadata))


def load(path: Path) -> Adapter:
    """Read an adapter that :func:`save` wrote.

    Raises:
        UserError: there is no such file, it is no adapter, or one with numbers that are not finite.
    """
    leaves, metadata = read_tensors(path)
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(metadata["format"])
        scales, head_paths, meta = (json.loads(metadata[name]) for name in ("scales", "head_paths", "meta"))
        deltas = {module: (leaves[f"{module}/{A}"], leaves[f"{module}/{B}"]) for module in scales}
        base = metadata["base"]
    except (KeyError, ValueError) as error:
        raise UserError(f"'{path}' is a safetensors file, but no adapter of the format {FORMAT}") from error
    head = {p: leaf for p, leaf in leaves.items() if p.rpartition("/")[2] not in LEAVES}
    return Adapter(deltas, scales, head, base, tuple(head_paths), meta)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a safetensors file's arrays and its metadata.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        content = path.read_bytes()
        found = dict(deserialize(content))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        arrays = {
            name: np.frombuffer(part["data"], np.dtype(DTYPES[part["dtype"]])).reshape(part["shape"])
            for name, part in sorted(found.items())
        }
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"'{path}' is no safetensors file of parameters; allowed: what a job or this tool wrote"
        ) from error
    return arrays, header.get("__metadata__", {})


class FinishedJob(NamedTuple):
    """What a job that fine-tuned under LoRA left behind."""

    adapter: Adapter
    base: Params  # what the adapter stands beside, with the job's head
    config: DictConfig


def read_job(folder: Path) -> FinishedJob:
    """Take the adapter out of a finished job's folder.

    The head is the model's last group. The scale is that of the job's ``strategy``: its ``alpha``, and
    ``rank_stabilised`` where it has one; the ranks are the leaves' own.

    Raises:
        UserError: the folder holds no parameters, no configuration, or those of another strategy.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is no job's folder: it has no .hydra/config.yaml")
    params = read_tensors(folder / CHECKPOINT)[0]
    config: Any = OmegaConf.load(path)
    found, strategy = ranks(params), config.strategy
    if not found or strategy.get("alpha") is None:
        raise UserError(f"'{folder}' holds no LoRA adapter: its strategy is '{strategy.get('name')}'")
    stabilised = bool(strategy.get("rank_stabilised", False))
    scales = {module: scale(float(strategy.alpha), rank, stabilised) for module, rank in found.items()}
    meta = {"alpha": float(strategy.alpha), "rank": max(found.values()), "rank_stabilised": stabilised}
    adapter = extract(params, scales, head_paths(build("model", config.model), params), meta=meta)
    return FinishedJob(adapter, taken_apart(params)[1], config)
