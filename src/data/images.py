"""Base class of sources of images: two tasks from one set of labelled images.

Inputs are uint8 of shape ``(N, H, W, C)``, decoded once and not standardised: models of images standardise them after
augmentation. Targets are int32 ``(N,)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from ..config.hparams import COUNT, hparam
from ..errors import UserError, did_you_mean, listed
from ..types import Split
from .base import DataSource, Transfer, check_fractions, only_positive, rank_in_class, split_rows, subsample
from .image_files import ImageFormat, LabeledImages, OnBad
from .mnist import ROWS_STREAM


@dataclass(frozen=True)
class ImageTransfer(Transfer):
    """Two tasks of images, with the names of the target's classes by number."""

    labels: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the entries of the record under ``data``, with the class names."""
        return super().facts() | {"labels": list(self.labels)}


@dataclass(frozen=True)
class ImageSource(DataSource):
    """Base of every source of images.

    The source task has ``source_rows`` images of ``source_classes``, the target task the other images of
    ``target_classes``; ``null`` stands for all classes. Images are drawn with ``split_seed``, with classes as balanced
    as possible, and a larger number includes the images of a smaller one. ``source_rows=null`` takes all images of
    classes that only the source task has, and half of those of common classes. ``limit``: the most images that are
    read. ``image_cache``: the folder where decoded images are stored.

    Fractions are those of :class:`src.data.base.DataSource`. ``test_fraction`` is not used if the test images are
    separate; the source task's test images are always a fraction of its own.
    """

    source_classes: tuple[str, ...] | None = hparam(None)
    target_classes: tuple[str, ...] | None = hparam(None)
    source_rows: int | None = hparam(None, COUNT)
    limit: int | None = hparam(None, COUNT)
    image_cache: str | None = hparam("outputs/cache/images")

    def read_parts(self) -> tuple[LabeledImages, LabeledImages | None]:
        """Return the images, and the test images if they are separate."""
        raise TypeError(f"{type(self).__name__} does not define read_parts()")

    def load(self) -> ImageTransfer:
        """Read, check and split.

        Raises:
            UserError: the images cannot be used; the message names the file or key and the reason.
        """
        pre_shares = only_positive(test=self.source_test_fraction, val=self.source_val_fraction)
        check_fractions(source_val_fraction=self.source_val_fraction, source_test_fraction=self.source_test_fraction)
        found, held_out = self.read_parts()
        shares = {"val": self.val_fraction} if held_out else {"test": self.test_fraction, "val": self.val_fraction}
        check_fractions(**{f"{name}_fraction": share for name, share in shares.items()})
        first = select_classes(found, self.source_classes, "source_classes")
        second = select_classes(found, self.target_classes, "target_classes")
        rng = np.random.default_rng(self.split_seed)
        rows, others = self.task_rows(found, first, second)
        pre = split_rows(len(rows), rng, pre_shares, found.origin)
        fine = {name: others[part] for name, part in split_rows(len(others), rng, shares, found.origin).items()}
        labeled = fine["train"], found.y[fine["train"]]
        fine["train"], _ = subsample(labeled, self.train_rows, "classification", found.origin)
        source = {name: to_split(found, rows[part], first) for name, part in pre.items()}
        target = {name: to_split(found, part, second) for name, part in fine.items()}
        if held_out is not None:
            target["test"] = held_out_split(held_out, found, second)
        return ImageTransfer(
            "classification",
            source,
            target,
            source_outputs=len(first),
            outputs=len(second),
            new_head=first.tolist() != second.tolist(),
            labels=tuple(found.names[number] for number in second),
        )

    def task_rows(
        self, found: LabeledImages, first: Int[np.ndarray, " K"], second: Int[np.ndarray, " L"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
        """Return the row numbers of the source task and of the target task, which are disjoint."""
        order = np.random.default_rng((self.split_seed, ROWS_STREAM)).permutation(len(found.y))
        mine = order[np.isin(found.y[order], first)]
        labels = found.y[mine]
        if self.source_rows is None:
            rows = mine[~np.isin(labels, second) | (rank_in_class(labels) % 2 == 0)]
        elif self.source_rows > len(mine):
            raise UserError(
                f"data.source_rows is {self.source_rows}; allowed: at most {len(mine)}, the images of the source "
                f"task's classes in {found.origin}"
            )
        else:
            rows, _ = subsample((mine, labels), self.source_rows, "classification", found.origin)
        others = order[np.isin(found.y[order], second) & ~np.isin(order, rows)]
        if missing := set(second.tolist()) - set(found.y[others].tolist()):
            names = [found.names[number] for number in sorted(missing)]
            raise UserError(
                f"{found.origin}: the source task leaves no image of {listed(names)} to fine-tune on; allowed: fewer "
                "data.source_rows, and at least two images of each class that both tasks have"
            )
        return rows, others


@dataclass(frozen=True)
class DecodedImageSource(ImageSource):
    """Base of sources of PNG and JPEG files.

    ``size``: pixels of each side, to which the shorter side is scaled before the middle is cropped; ``null``: all
    images have the same size. ``grey``: one channel instead of three. ``on_bad``: whether images that cannot be decoded
    are refused, or counted and left out.
    """

    size: int | None = hparam(None, COUNT)
    grey: bool = hparam(False)
    on_bad: OnBad = hparam(OnBad.refuse)

    @property
    def image_format(self) -> ImageFormat:
        """The size and the channels of decoded images."""
        return ImageFormat(self.size, self.grey)


def select_classes(found: LabeledImages, classes: Sequence[str] | None, key: str) -> Int[np.ndarray, " K"]:
    """Return the numbers of a task's classes, ascending."""
    names = found.names if classes is None else classes
    for name in names:
        if name not in found.names:
            raise UserError(
                f"data.{key} has '{name}'{did_you_mean(name, found.names)}, which is no class of {found.origin}; "
                f"allowed: {listed(found.names)}"
            )
    numbers = np.array(sorted({found.names.index(name) for name in names}), np.int32)
    if len(numbers) < 2:
        raise UserError(f"data.{key} has one class only ({listed(names)}); allowed: at least two of {found.origin}")
    return numbers


def to_split(found: LabeledImages, rows: Int[np.ndarray, " n"], classes: Int[np.ndarray, " K"]) -> Split:
    """Return images with labels from 0, in the order of a task's classes."""
    return Split(found.x[rows], np.searchsorted(classes, found.y[rows]).astype(np.int32))


def held_out_split(held_out: LabeledImages, found: LabeledImages, classes: Int[np.ndarray, " K"]) -> Split:
    """Return the separate test images of a task's classes, with the task's labels."""
    if held_out.x.shape[1:] != found.x.shape[1:]:
        shapes = [" x ".join(map(str, part.x.shape[1:])) for part in (held_out, found)]
        raise UserError(
            f"{held_out.origin} has images of {shapes[0]} and {found.origin} of {shapes[1]} (height, width, channels); "
            "allowed: the same"
        )
    for name in held_out.names:
        if name not in found.names:
            raise UserError(
                f"{held_out.origin} has the class '{name}'{did_you_mean(name, found.names)}, which {found.origin} does "
                f"not have; allowed: {listed(found.names)}"
            )
    numbers = np.array([found.names.index(name) for name in held_out.names])[held_out.y]
    rows = np.flatnonzero(np.isin(numbers, classes))
    if not len(rows):
        raise UserError(f"{held_out.origin} has no image of data.target_classes; allowed: at least one")
    return to_split(held_out._replace(y=numbers), rows, classes)
