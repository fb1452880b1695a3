"""``data=hub_images``: a data set of the Hub with images and labels, by its id."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.hparams import COUNT, hparam
from ..errors import UserError, did_you_mean, listed
from .hub_text import fetch
from .image_files import ImageFile, ImageFormat, LabeledImages, OnBad, check_bad, limit_rows, load_decoded
from .images import ImageSource


@dataclass(frozen=True, kw_only=True)
class HubImages(ImageSource):
    """PNG or JPEG images with labels, from the Hub or its cache on disk; requires the extra ``hub``.

    ``dataset`` is the id (``uoft-cs/cifar10``), ``subset`` its configuration. ``train_split`` and ``test_split`` name
    the splits (``null`` splits a fraction off the first), ``image`` and ``label`` their columns; ``size``, ``grey`` and
    ``on_bad`` are as in ``data=image_folder``.
    """

    dataset: str = hparam()
    subset: str | None = hparam(None)
    train_split: str = hparam("train")
    test_split: str | None = hparam(None)
    image: str = hparam("image")
    label: str = hparam("label")
    size: int | None = hparam(None, COUNT)
    grey: bool = hparam(False)
    on_bad: OnBad = hparam(OnBad.refuse)

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Load the splits."""
        held_out = None if self.test_split is None else self._fetch("test_split", self.test_split)
        return self._fetch("train_split", self.train_split), held_out

    def _fetch(self, key: str, split: str) -> LabeledImages:
        part, origin = fetch(self.dataset, self.subset, split, f"data.{key}"), f"data.dataset={self.dataset}, {split}"
        for name, column in (("image", self.image), ("label", self.label)):
            if column not in part.column_names:
                raise UserError(
                    f"data.{name}: {origin} has no column '{column}'{did_you_mean(column, part.column_names)}; "
                    f"it has {listed(part.column_names)}"
                )
        names, y = encode_labels(part[self.label], getattr(part.features[self.label], "names", None))
        if (y < 0).any():
            raise UserError(
                f"data.{key}={split}: {origin} has rows without a label in this split; allowed: a split with all labels"
            )
        rows = limit_rows(y, self.limit)
        contents = encoded_files(part.select(rows), self.image, origin)
        files = [ImageFile(str(row), len(one), zlib.crc32(one)) for row, one in zip(rows, contents, strict=True)]
        at = {file.name: content for file, content in zip(files, contents, strict=True)}
        image_format = ImageFormat(self.size, self.grey)
        found = load_decoded(files, lambda file: at[file.name], image_format, origin, self.image_cache)
        check_bad(found, self.on_bad, origin)
        return LabeledImages(found.images, y[rows][found.kept], names, origin)


def encode_labels(values: list, names: list[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the class names, and each row's class number; -1: no label."""
    if names is not None:
        return tuple(names), np.array([-1 if value is None else value for value in values], np.int32)
    words = [str(value) for value in values]
    found = sorted(set(words))
    return tuple(found), np.array([found.index(word) for word in words], np.int32)


def encoded_files(part: Any, column: str, origin: str) -> list[bytes]:
    """Return the files of a column, not decoded."""
    from datasets import Image  # type: ignore[import-not-found]

    if not isinstance(part.features[column], Image):
        raise UserError(f"data.image: column '{column}' of {origin} is not of images; allowed: a column of images")
    return [content_of(one) for one in part.cast_column(column, Image(decode=False))[column]]


def content_of(stored: dict[str, Any] | None) -> bytes:
    """Return a file's content, which is in the table or beside it; empty for a row without an image."""
    if stored is None:
        return b""
    return Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]
