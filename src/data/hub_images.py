"""``data=hub_images``: a data set of the Hub with images and labels, by its id."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.hparams import hparam
from ..errors import UserError
from .base import balanced_rows, check_column
from .hub_text import fetch
from .image_files import ImageFile, LabeledImages, check_bad, load_decoded
from .images import DecodedImageSource


@dataclass(frozen=True, kw_only=True)
class HubImages(DecodedImageSource):
    """PNG or JPEG images with labels, from the Hub or its cache on disk; requires the extra ``hub``.

    ``dataset`` is the id (``uoft-cs/cifar10``), ``subset`` its configuration. ``train_split`` and ``test_split`` name
    the splits (``null`` splits a fraction off the first), ``image`` and ``label`` their columns.
    """

    dataset: str = hparam()
    subset: str | None = hparam(None)
    train_split: str = hparam("train")
    test_split: str | None = hparam(None)
    image: str = hparam("image")
    label: str = hparam("label")

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Load the splits."""
        held_out = None if self.test_split is None else self._fetch("test_split", self.test_split)
        return self._fetch("train_split", self.train_split), held_out

    def _fetch(self, key: str, split: str) -> LabeledImages:
        part, origin = fetch(self.dataset, self.subset, split, f"data.{key}"), f"data.dataset={self.dataset}, {split}"
        for name in ("image", "label"):
            check_column(f"data.{name}", getattr(self, name), part.column_names, origin)
        names, y = encode_labels(part[self.label], getattr(part.features[self.label], "names", None))
        if (y < 0).any():
            raise UserError(
                f"data.{key}={split}: {origin} has rows without a label in this split; allowed: a split with all labels"
            )
        rows = balanced_rows(y, self.limit)
        contents = encoded_files(part.select(rows), self.image, origin)
        files = [ImageFile(str(row), len(one), zlib.crc32(one)) for row, one in zip(rows, contents, strict=True)]
        at = dict(zip(files, contents, strict=True))
        found = load_decoded(files, at.__getitem__, self.image_format, origin, self.image_cache)
        check_bad(found, self.on_bad, origin)
        return LabeledImages(found.images, y[rows][found.kept], names, origin)


def encode_labels(values: list, names: list[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names, and each row's class number; -1: no label."""
    if names is not None:
        return tuple(names), np.array([-1 if value is None else value for value in values], np.int32)
    found, numbers = np.unique([str(value) for value in values], return_inverse=True)
    return tuple(found.tolist()), numbers.astype(np.int32)


def encoded_files(part: Any, column: str, origin: str) -> list[bytes]:
    """Return the files of a column, not decoded."""
    from datasets import Image  # type: ignore[import-not-found]

    if not isinstance(part.features[column], Image):
        raise UserError(f"data.image: column '{column}' of {origin} is not of images; allowed: a column of images")
    stored = part.cast_column(column, Image(decode=False))[column]  # None: a row without an image
    return [b"" if one is None else one["bytes"] or Path(one["path"]).read_bytes() for one in stored]
