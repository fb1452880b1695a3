"""Files of tensors and JSON, read as data from outside and written whole or not at all.

Nothing in these files can run: tensors are safetensors, never pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from ..files import atomic_write

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names
MAX_LISTED = 20  # names in one sentence


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; a :class:`UserError` if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON") from error
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds no JSON object")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


class Tensor(NamedTuple):
    """A tensor of a file, not read yet."""

    file: Any  # an open safetensors file
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # safetensors' name

    def read(self, transposed: bool = False) -> np.ndarray:
        """Return the values as float32, read-only; with our axes if they are ``transposed``."""
        values = np.asarray(self.file.get_tensor(self.name)).astype(np.float32)
        values = np.ascontiguousarray(values.transpose(to_our_axes(values.ndim))) if transposed else values
        values.flags.writeable = False
        return values


def to_our_axes(dimensions: int) -> tuple[int, ...]:
    """Return the permutation from PyTorch's axes ``(out, in, height, width)`` to ``(height, width, in, out)``."""
    return (*range(2, dimensions), 1, 0)


def to_torch_axes(dimensions: int) -> tuple[int, ...]:
    """Return the inverse of :func:`to_our_axes`."""
    return (dimensions - 1, dimensions - 2, *range(dimensions - 2))


def open_files(paths: Iterable[Path]) -> Iterator[tuple[Path, Any]]:
    """Yield safetensors files, open; a :class:`UserError` names one that is damaged or cannot be read."""
    for path in paths:
        try:
            yield path, safe_open(path, framework="numpy")
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise UserError(f"'{path}' is damaged or no safetensors file: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a safetensors file's arrays, sorted by name, and its metadata; raises as :func:`open_files`."""
    ((_, file),) = open_files([path])
    return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata as one safetensors file."""
    # order="C": safetensors writes memory as it lies, so a transposed view would become another array.
    content = {name: np.asarray(values, order="C") for name, values in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(content, dict(metadata)))


def check_file(folder: Path, name: str, library: str, pickle: str = "") -> None:
    """Refuse a folder without a file that a library's ``save_pretrained`` writes, or with a pickle instead."""
    if (folder / name).is_file():
        return
    if (folder / pickle).is_file():
        raise UserError(
            f"'{folder}' has {pickle} only, a pickle, which can run code when it is read; "
            f"allowed: {name} ({library} save_pretrained writes it)"
        )
    raise UserError(f"'{folder}' holds no {name}; allowed: a folder that {library} save_pretrained wrote")


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' holds something already; allowed: a new or an empty folder")


def misfit(tensor: Tensor, transposed: bool, shape: tuple[int, ...]) -> str | None:
    """Return a sentence if a tensor has another shape than its parameter, or holds no real numbers."""
    shape = tuple(shape[axis] for axis in to_torch_axes(len(shape))) if transposed else shape
    if tensor.shape != shape:
        return f"{tensor.name} is {tensor.shape} instead of {shape}"
    if tensor.dtype not in FLOAT_DTYPES:
        return f"{tensor.name} holds {tensor.dtype} instead of {', '.join(FLOAT_DTYPES)}"
    return None
