"""Base classes of sequences of tasks: where the digits come from, how they are split, and how labels map to heads.

Pixels are scaled from 0 (paper) to 1 (ink) and not standardised, because later tasks are unknown at the first, as in
van de Ven and Tolias 2019 (arXiv 1904.07734), whose permuted digits also have a margin of 2 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

import numpy as np

from ..config.hparams import COUNT, FRACTION, NATURAL, SHARE, hparam
from ..errors import UserError
from .base import ImageTask, Parts, Table, TaskSequence, only_positive, read_embedded, split_off, subsample
from .mnist import MnistFiles, read_digits

DIGITS = tuple(range(10))
Heads = Enum("Heads", ["one", "each"])


class DigitImages(NamedTuple):
    """The images of all tasks: pixels as uint8, labels 0 to 9 as int32."""

    train: Table  # training and validation images
    test: Table
    ink: float  # largest pixel value


@dataclass(frozen=True)
class SequenceSource:
    """Base of every sequence of tasks.

    ``val_fraction`` of the images that are not for testing is the validation part, 0 for none. ``train_rows`` and
    ``test_rows``: how many images each task trains and tests on; ``null`` takes all. A larger number includes the
    images of a smaller one, with classes as balanced as possible. ``split_seed`` decides which images these are.
    """

    is_sequence: ClassVar[bool] = True
    val_fraction: float = hparam(0.1, SHARE)
    split_seed: int = hparam(0, NATURAL)
    train_rows: int | None = hparam(None, COUNT)
    test_rows: int | None = hparam(None, COUNT)

    def pools(self, rng: np.random.Generator) -> DigitImages:
        """Return the images; the test images are in an order drawn with ``rng``."""
        raise TypeError(f"{type(self).__name__} does not define pools()")

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the tasks that consist of these images."""
        raise TypeError(f"{type(self).__name__} does not define sequence()")

    def load(self) -> TaskSequence:
        """Read, check and split; inputs are converted when a task's part is read.

        Raises:
            UserError: there is no such data, or the tasks cannot be made of it.
        """
        rng = np.random.default_rng(self.split_seed)
        return self.sequence(self.pools(rng), rng)

    def parts(self, pools: DigitImages, digits: Sequence[int], rng: np.random.Generator) -> Parts:
        """Return the images of some digits as ``train``, ``val`` (unless its fraction is 0) and ``test``."""
        train, test = select_digits(pools.train, digits), select_digits(pools.test, digits)
        parts = split_off(train, rng, only_positive(val=self.val_fraction))
        parts["train"] = subsample(parts["train"], self.train_rows, "classification", train.origin)
        return parts | {"test": subsample((test.x, test.y), self.test_rows, "classification", test.origin, "test")}

    def transformed(
        self, pools: DigitImages, rng: np.random.Generator, pixels: Sequence[np.ndarray | None]
    ) -> TaskSequence:
        """Return tasks of the same images, each in the same part of every task, one task for each map of the pixels."""
        images = self.parts(pools, DIGITS, rng)
        tasks = tuple(ImageTask(images, pools.ink, change) for change in pixels)
        return TaskSequence("classification", tasks, (len(DIGITS),) * len(tasks), shared_head=True)


@dataclass(frozen=True)
class SplitSequence(SequenceSource):
    """Base of sequences of five tasks: 0 or 1, 2 or 3, ... and 8 or 9 (Zenke et al. 2017, arXiv 1703.04200).

    ``heads``: ``each`` is task-incremental learning, with a head of 2 outputs for each task, which is known when
    testing; ``one`` is class-incremental learning, with one head of 10 outputs (van de Ven and Tolias 2019, arXiv
    1904.07734).
    """

    heads: Heads = hparam(Heads.each)

    def sequence(self, pools: DigitImages, rng: np.random.Generator) -> TaskSequence:
        """Return the five tasks."""
        one, tasks = self.heads is Heads.one, []
        for low in DIGITS[::2]:
            parts = self.parts(pools, (low, low + 1), rng)
            tasks.append(ImageTask({name: (x, y if one else y - low) for name, (x, y) in parts.items()}, pools.ink))
        return TaskSequence("classification", tuple(tasks), (len(DIGITS) if one else 2,) * len(tasks), shared_head=one)


@dataclass(frozen=True, kw_only=True)
class MnistSequence(SequenceSource):
    """Tasks made of MNIST: 60,000 training and validation images and 10,000 test images of 28 x 28 pixels.

    ``path``: the folder of the four published idx files, compressed (``.gz``) or not.
    """

    path: str = hparam()

    def pools(self, rng: np.random.Generator) -> DigitImages:
        """Read the four files."""
        shapes, tables = [], []
        for files in MnistFiles:
            images, labels = read_digits(self.path, files)
            shapes.append(images.shape[1:])
            x = images.reshape(len(images), math.prod(shapes[-1]))
            tables.append(Table(x, labels.astype(np.int32), f"the {files.name} files of data.path={self.path}"))
        if shapes[0] != shapes[1]:
            raise UserError(
                f"data.path={self.path} holds images of {shapes[0]} pixels to train on and of {shapes[1]} to test on; "
                "allowed: one size"
            )
        train, test = tables
        order = rng.permutation(len(test.x))  # the first half of the published test file is easier
        return DigitImages(train, Table(test.x[order], test.y[order], test.origin), 255.0)


@dataclass(frozen=True)
class DigitsSequence(SequenceSource):
    """Tasks made of 1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), from scikit-learn.

    ``test_fraction`` of them are test images, the same for all tasks.
    """

    test_fraction: float = hparam(0.25, FRACTION)

    def pools(self, rng: np.random.Generator) -> DigitImages:
        """Read the table and split off the test images."""
        rows, origin = read_embedded("digits.csv.gz"), "the digits"
        table = Table(rows[:, :-1].astype(np.uint8), rows[:, -1].astype(np.int32), origin)
        kept = split_off(table, rng, {"test": self.test_fraction})
        return DigitImages(Table(*kept["train"], origin), Table(*kept["test"], origin), 16.0)


def select_digits(table: Table, digits: Sequence[int]) -> Table:
    """Return the images of some digits; each digit must occur."""
    for digit in digits:
        if digit not in table.y:
            raise UserError(f"{table.origin} hold no image of {digit}; allowed: at least one of each digit")
    chosen = np.isin(table.y, digits)
    named = table.origin if len(digits) == len(DIGITS) else f"{' and '.join(map(str, digits))} in {table.origin}"
    return Table(table.x[chosen], table.y[chosen], named)
