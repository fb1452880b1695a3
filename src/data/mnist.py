"""``data=mnist``: pre-train on the digits 0 to 4, fine-tune on 5 to 9 with a new head, from the user's idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..config.hparams import COUNT, hparam
from ..errors import UserError
from .base import DataSource, Table

MnistFiles = Enum("MnistFiles", ["train", "t10k"])
UNSIGNED_BYTE = 0x08  # the idx type of both files


@dataclass(frozen=True, kw_only=True)
class Mnist(DataSource):
    """Handwritten digits of 28 x 28 pixels (LeCun et al. 1998), two classifications of 5 classes each.

    ``path``: the folder of the published idx files, compressed (``.gz``) or not. ``files``: the pair that is read,
    ``train`` (60,000 digits) or ``t10k`` (10,000). ``source_rows`` and ``target_rows``: the digits of each task, drawn
    with ``split_seed``; ``null`` takes all. ``images``: uint8 of shape ``(N, 28, 28, 1)`` for models of images, instead
    of rows of standardised numbers.
    """

    path: str = hparam()
    files: MnistFiles = hparam(MnistFiles.train)
    source_rows: int | None = hparam(5000, COUNT)
    target_rows: int | None = hparam(2000, COUNT)
    images: bool = hparam(False)

    def tables(self) -> tuple[Table, Table, str]:
        """Read both files; return the digits 0 to 4 and 5 to 9."""
        images, labels = read_digits(self.path, self.files)
        rng = np.random.default_rng((self.split_seed, ROWS_STREAM))
        tables = []
        for key, count, chosen, digits in (
            ("source_rows", self.source_rows, labels < 5, "0 to 4"),
            ("target_rows", self.target_rows, labels >= 5, "5 to 9"),
        ):
            rows = rng.permutation(np.flatnonzero(chosen))
            if count is not None and count > len(rows):
                raise UserError(f"data.{key} is {count}; allowed: at most {len(rows)}, the digits {digits} in the file")
            rows = rows[:count]
            x = images[rows][..., None]
            if not self.images:
                x = x.reshape(len(rows), math.prod(images.shape[1:])) / np.float32(255)
            tables.append(Table(x, labels[rows], f"the digits {digits} of data.path={self.path}", image=True))
        return tables[0], tables[1], "classification"


ROWS_STREAM = 1  # of split_seed: the choice of rows is independent of the shuffle that splits them


def read_digits(path: str, files: MnistFiles) -> tuple[UInt8[np.ndarray, "N H W"], UInt8[np.ndarray, " N"]]:
    """Return the images and the labels, 0 to 9, of a pair of idx files in the folder ``data.path``."""
    if not Path(path).is_dir():
        raise UserError(f"data.path={path}: there is no such folder")
    images = read_idx(path, f"{files.name}-images-idx3-ubyte", axes=3)
    labels = read_idx(path, f"{files.name}-labels-idx1-ubyte", axes=1)
    if len(images) != len(labels):
        raise UserError(
            f"data.path={path} holds {len(images)} images and {len(labels)} labels in its "
            f"{files.name} files; allowed: equal numbers"
        )
    if labels.max(initial=0) > 9:
        raise UserError(f"data.path={path} holds the label {labels.max()}; allowed: 0 to 9")
    return images, labels


def read_idx(folder: str, name: str, axes: int) -> UInt8[np.ndarray, "N ..."]:
    """Return the array in an idx file of unsigned bytes, compressed or not.

    The format: two zero bytes, the type of the values, the number of axes, the size of each axis as a big-endian 32-bit
    number, then the values in C order.
    """
    path = next((path for end in ("", ".gz") if (path := Path(folder, name + end)).is_file()), None)
    if path is None:
        raise UserError(f"data.path={folder} has no file {name} or {name}.gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data.path: {path} cannot be read: {error}") from error
    magic, header = bytes((0, 0, UNSIGNED_BYTE, axes)), 4 + 4 * axes
    if content[:4] != magic:
        raise UserError(
            f"data.path: {path} begins with the bytes {content[:4].hex(' ') or '(none)'}; "
            f"allowed: {magic.hex(' ')}, an idx file of unsigned bytes with {axes} axes"
        )
    shape = np.frombuffer(content[4:header].ljust(4 * axes, b"\0"), ">u4").tolist()
    if len(content) != header + math.prod(shape):
        raise UserError(
            f"data.path: {path} has {len(content)} bytes and its header requires {header + math.prod(shape)}; "
            "allowed: a complete file"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
