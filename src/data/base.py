"""The source and the target task: checks, splits and standardisation, shared by all data sources."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..config.hparams import COUNT, FRACTION, NATURAL, SHARE, hparam
from ..errors import UserError, did_you_mean, listed
from ..types import Split
from .tokenization import Vocabulary

LabelKind = Enum("LabelKind", ["classification", "regression"])


@dataclass(frozen=True)
class Table:
    """The rows of one task before they are split and standardised."""

    x: Shaped[np.ndarray, "N ..."]  # numbers (N, D); images uint8 (N, H, W, C)
    y: Shaped[np.ndarray, " N"]  # numbers for regression; labels of any kind for classification
    origin: str  # configuration key or file, for error messages
    image: bool = False  # the features are pixels, which share one mean and one deviation


@dataclass(frozen=True)
class Transfer:
    """A source and a target task, ready for training."""

    is_sequence: ClassVar[bool] = False
    scored: ClassVar[bool] = False  # whether :meth:`scores` returns any
    kind: str  # of the target task: "regression", "classification", or one of text's (src/data/text_source.py)
    source: dict[str, Split]  # "train", "test", and "val" if data.source_val_fraction > 0; empty with a checkpoint
    target: dict[str, Split]  # "train", "val" and "test"
    source_outputs: int  # units of the source task's head
    outputs: int  # units of the target task's head
    new_head: bool  # whether the target task has other labels, so that its head is initialised anew
    source_kind: str = ""  # of the source task; "": the same kind as the target task
    vocabulary: Vocabulary | None = field(default=None, kw_only=True)  # of tasks of texts

    def __post_init__(self) -> None:
        object.__setattr__(self, "source_kind", self.source_kind or self.kind)

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of one row of inputs."""
        return (self.source or self.target)["train"].x.shape[1:]

    def parts(self) -> Iterator[tuple[str, Split]]:
        """Yield every part with its name; the source's are prefixed with ``source_``."""
        yield from ((f"source_{name}", part) for name, part in self.source.items())
        yield from self.target.items()

    def rows(self) -> dict[str, int]:
        """Return how many rows each part has."""
        return {name: len(part.x) for name, part in self.parts()}

    def facts(self) -> dict[str, Any]:
        """Return the entries of the record under ``data``."""
        return {"fingerprint": self.fingerprint, **self.rows()}

    def files(self) -> dict[str, str]:
        """Return the files, by name, that prediction on new rows needs beside the parameters."""
        return {}

    def scores(self, part: str, outputs: Float[np.ndarray, "N ..."]) -> dict[str, float]:
        """Return metrics of a part of the target task that need more than outputs and targets, such as the texts."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over the values, shapes and order of all parts."""
        kinds = self.kind if self.kind == self.source_kind else f"{self.kind} after {self.source_kind}"
        return fingerprint_of(kinds, self.parts())

    @cached_property
    def source_fingerprint(self) -> str:
        """The fingerprint of the source task alone, which is all that pre-training reads."""
        return fingerprint_of(self.source_kind, self.source.items())


def fingerprint_of(kind: str, parts: Iterable[tuple[str, Split]]) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the parts' values, shapes and order."""
    digest = hashlib.sha256(kind.encode())
    for name, part in parts:
        for array in part:
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ImageTask(Mapping[str, Split]):
    """One task of a sequence: images as bytes, converted to float32 whenever a part is read.

    The conversion is not cached: five tasks of MNIST share 47 MB of bytes; as float32, each takes 188 MB.
    """

    images: Parts  # of each part: pixels, uint8 (N, D), and labels, int32 (N,)
    ink: float  # pixel value that is scaled to 1
    pixels: np.ndarray | None = None  # a permutation, int (D,), or a linear map, float (D, D), of the pixels

    def __getitem__(self, name: str) -> Split:
        """Return the part ``train``, ``val`` or ``test`` with inputs as float32 from 0 to 1."""
        x, y = self.images[name]
        if self.pixels is not None and self.pixels.ndim == 1:
            x = np.take(x, self.pixels, axis=1)  # five times faster than x[:, pixels], and rows stay contiguous
        x = x / np.float32(self.ink)
        if self.pixels is not None and self.pixels.ndim == 2:
            x = (x @ self.pixels).astype(np.float32)
        return Split(x, y)

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def stored(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the arrays that determine the parts, by name."""
        yield from ((f"{name} of {self.ink}", array) for name, part in self.images.items() for array in part)
        if self.pixels is not None:
            yield "pixels", self.pixels


@dataclass(frozen=True)
class TaskSequence:
    """A sequence of tasks, ready for training."""

    is_sequence: ClassVar[bool] = True
    kind: str  # "classification"
    tasks: tuple[ImageTask, ...]  # each has "train", "test", and "val" if data.val_fraction > 0
    outputs: tuple[int, ...]  # units of each task's head
    shared_head: bool  # one head for all tasks instead of a head for each

    @cached_property
    def features(self) -> tuple[int, ...]:
        """The shape of one row of inputs."""
        return self.tasks[0]["test"].x.shape[1:]

    def parts(self) -> Iterator[tuple[str, Split]]:
        """Yield every part with its name, such as ``task_1_train``; each is converted when it is yielded."""
        for number, task in enumerate(self.tasks, 1):
            yield from ((f"task_{number}_{name}", task[name]) for name in task)

    def rows(self) -> dict[str, int]:
        """Return how many rows each part has, without converting any."""
        tasks = enumerate(self.tasks, 1)
        return {f"task_{i}_{name}": len(y) for i, task in tasks for name, (_, y) in task.images.items()}

    def facts(self) -> dict[str, Any]:
        """Return the entries of the record under ``data``."""
        return {"fingerprint": self.fingerprint, **self.rows()}

    def files(self) -> dict[str, str]:
        """Return no files: prediction needs the parameters alone."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over all that determines the parts."""
        digest = hashlib.sha256(f"{self.kind}{self.outputs}{self.shared_head}".encode())
        seen: dict[int, bytes] = {}  # digests of arrays that tasks share, by id
        for number, task in enumerate(self.tasks, 1):
            for name, array in task.stored():
                if id(array) not in seen:
                    seen[id(array)] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
                digest.update(f"{number}{name}{array.shape}{array.dtype}".encode() + seen[id(array)])
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DataSource:
    """Base of data sources with two tables. A subclass returns the tables; this class checks and splits them.

    ``source_test_fraction`` of the source table is held out for testing, ``source_val_fraction`` of it for choosing the
    strength of retention. ``val_fraction`` and ``test_fraction`` are those of the target table. ``split_seed`` decides
    which rows these are; it is independent of the run's seed, so runs of different seeds have the same rows.
    ``train_rows``: how many of the target's remaining rows are trained on, ``null`` for all; a larger number includes
    the rows of a smaller one, and validation and test rows do not change.
    """

    is_sequence: ClassVar[bool] = False
    source_test_fraction: float = hparam(0.2, FRACTION)
    source_val_fraction: float = hparam(0.0, SHARE)
    val_fraction: float = hparam(0.25, FRACTION)
    test_fraction: float = hparam(0.25, FRACTION)
    split_seed: int = hparam(0, NATURAL)
    train_rows: int | None = hparam(None, COUNT)

    def tables(self) -> tuple[Table, Table, str]:
        """Return the source table, the target table, and ``"regression"`` or ``"classification"``."""
        raise TypeError(f"{type(self).__name__} does not define tables()")

    def load(self) -> Transfer:
        """Read, check, split and standardise.

        Features, and the targets of a regression, are standardised with the mean and the standard deviation of the
        source's training rows, because the target's rows are unknown during pre-training. Constant features are only
        centred. Pixels share one mean and one deviation; scaled one by one, pixels that are almost constant in the
        source would reach hundreds of deviations in the target. Images as uint8 are not standardised.

        Raises:
            UserError: the tables cannot be used; the message names the file or key and the reason.
        """
        check_fractions(val_fraction=self.val_fraction, test_fraction=self.test_fraction)
        check_fractions(source_val_fraction=self.source_val_fraction, source_test_fraction=self.source_test_fraction)
        source, target, kind = self.tables()
        for table in (source, target):
            check_table(table, kind)
        if source.x.shape[1:] != target.x.shape[1:]:
            raise UserError(
                f"{source.origin} has {source.x.shape[1]} features and {target.origin} has {target.x.shape[1]}; "
                "both parts need the same ones"
            )
        rng = np.random.default_rng(self.split_seed)
        pre = split_off(source, rng, only_positive(test=self.source_test_fraction, val=self.source_val_fraction))
        fine = split_off(target, rng, {"test": self.test_fraction, "val": self.val_fraction})
        fine["train"] = subsample(fine["train"], self.train_rows, kind, target.origin)
        scale_x = (lambda x: x) if source.x.dtype == np.uint8 else standardizer(pre["train"][0], source.image)
        first, second = ([], []) if kind == "regression" else class_labels(source, target)
        if kind == "regression":
            outputs, encoders = (1, 1), [standardizer(pre["train"][1])] * 2
        else:
            outputs, encoders = (len(first), len(second)), [class_encoder(first), class_encoder(second)]
        pre_splits, fine_splits = (
            {name: Split(scale_x(x), encode(y)) for name, (x, y) in parts.items()}
            for parts, encode in zip((pre, fine), encoders, strict=True)
        )
        return Transfer(kind, pre_splits, fine_splits, *outputs, new_head=first != second)


Parts = dict[str, tuple[np.ndarray, np.ndarray]]


def check_fractions(**fractions: float) -> None:
    """Refuse fractions, by their keys in ``data``, that leave no rows to train on."""
    if sum(fractions.values()) >= 1:
        raise UserError(
            f"{' + '.join(f'data.{key}' for key in fractions)} is {sum(fractions.values()):g}; "
            "allowed: less than 1, so that rows to train on are left"
        )


def check_table(table: Table, kind: str) -> None:
    """Refuse a table with wrong shapes or types, or with values that are not finite."""
    if len(table.x) != len(table.y):
        raise UserError(f"{table.origin} has {len(table.x)} rows of x and {len(table.y)} of y; allowed: equal numbers")
    if table.x.ndim != (4 if table.x.dtype == np.uint8 else 2) or table.x.shape[1] == 0:
        raise UserError(f"{table.origin} has features of shape {table.x.shape}; allowed: (rows, at least one feature)")
    for name, values in (("x", table.x), *((("y", table.y),) if kind == "regression" else ())):
        if not np.issubdtype(values.dtype, np.number):
            raise UserError(f"{table.origin} holds {values.dtype} in {name}; allowed: numbers")
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise UserError(
                f"{table.origin} holds {int(bad.sum())} missing or infinite values in {name}, the first in row {row}; "
                "allowed: finite numbers"
            )


def split_rows(
    rows: int, rng: np.random.Generator, fractions: Mapping[str, float], origin: str
) -> dict[str, Int[np.ndarray, " n"]]:
    """Shuffle row numbers and split off the named fractions; the others are ``train``, which comes first."""
    order = rng.permutation(rows)
    parts = {}
    for name, fraction in fractions.items():
        size = math.floor(fraction * rows + 0.5)
        parts[name], order = order[:size], order[size:]
    parts = {"train": order, **dict(reversed(parts.items()))}
    for name, part in parts.items():
        if len(part) == 0:
            raise UserError(f"{origin} has {rows} rows, which leaves its {name} part empty; give it more")
    return parts


def split_off(table: Table, rng: np.random.Generator, fractions: Mapping[str, float]) -> Parts:
    """Return a table's rows split as by :func:`split_rows`."""
    parts = split_rows(len(table.x), rng, fractions, table.origin)
    return {name: (table.x[rows], table.y[rows]) for name, rows in parts.items()}


def only_positive(**fractions: float) -> dict[str, float]:
    """Return the fractions that are not 0."""
    return {name: fraction for name, fraction in fractions.items() if fraction}


def subsample(
    part: tuple[np.ndarray, np.ndarray], count: int | None, kind: str, origin: str, use: str = "train"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` of a part's shuffled rows in their order, with classes as balanced as possible.

    A larger ``count`` includes the rows of a smaller one. ``use``: ``train`` or ``test``, for the error message.
    """
    x, y = part
    if count is None:
        return part
    if count > len(x):
        raise UserError(f"data.{use}_rows is {count}; allowed: at most {len(x)}, the rows to {use} on of {origin}")
    chosen = balanced_rows(y, count) if kind == "classification" else np.arange(count)
    return x[chosen], y[chosen]


def balanced_rows(labels: Shaped[np.ndarray, " N"], limit: int | None) -> Int[np.ndarray, " n"]:
    """Return the numbers of ``limit`` rows, with labels as balanced as possible, the first of each label."""
    if limit is None:
        return np.arange(len(labels))
    return np.sort(np.argsort(rank_in_class(labels), kind="stable")[:limit])


def rank_in_class(labels: Shaped[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return each row's rank, from 0, among the rows with its label."""
    seen: Counter[object] = Counter()
    ranks = np.empty(len(labels), int)
    for row, label in enumerate(labels.tolist()):
        ranks[row] = seen[label]
        seen[label] += 1
    return ranks


def standardizer(rows: np.ndarray, shared: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that standardises rows, to float32, by the statistics of these ones.

    They are the mean and deviation of each column, or of all values (``shared``). Constant columns are only centred.
    """
    rows, axis = rows.astype(np.float64), None if shared else 0
    mean, spread = rows.mean(axis=axis), rows.std(axis=axis)
    scale = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1.0), spread, 1.0)
    return lambda values: ((values - mean) / scale).astype(np.float32)


def class_labels(source: Table, target: Table) -> tuple[list[object], list[object]]:
    """Return each task's labels in sorted order; refuse a single one, and tasks that share only some of theirs."""
    first, second = (
        sorted(set(table.y.tolist()), key=lambda label: (str(type(label)), label)) for table in (source, target)
    )
    for table, labels in ((source, first), (target, second)):
        if len(labels) < 2:
            raise UserError(f"{table.origin} has one label only ({listed(map(str, labels))}); allowed: at least two")
    check_overlap([list(map(str, labels)) for labels in (first, second)], source.origin, target.origin)
    return first, second


def class_encoder(labels: Sequence[object]) -> Callable[[np.ndarray], Int[np.ndarray, " N"]]:
    """Return a function that numbers labels by their place in ``labels``."""
    index = {label: i for i, label in enumerate(labels)}
    return lambda y: np.array([index[label] for label in y.tolist()], np.int32)


def check_overlap(classes: list[list[str]], source: str, target: str) -> None:
    """Refuse tasks that share only some classes: numbered by task, a shared class would change its output unit."""
    first, second = map(set, classes)
    if first == second or not first & second:
        return
    only = [
        f"{listed(name for name in own if name not in other)} in {origin} only"
        for own, other, origin in ((classes[0], second, source), (classes[1], first, target))
        if set(own) - other
    ]
    raise UserError(
        f"the two parts share some of their classes and not all ({', '.join(only)}); "
        "allowed: the same classes in both, which keep the pre-trained head, or none in common, which get a new one"
    )


def check_column(key: str, column: str, columns: Iterable[str], origin: str) -> None:
    """Refuse the name of a column that a table lacks."""
    if column not in (columns := list(columns)):
        raise UserError(
            f"{key}: {origin} has no column '{column}'{did_you_mean(column, columns)}; it has {listed(columns)}"
        )


def read_embedded(name: str) -> np.ndarray:
    """Return a table of ``sklearn/datasets/data``, without importing scikit-learn, which takes more than a second."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / name if found and found.origin else None
    if path is None or not path.is_file():
        raise UserError(f"the embedded data {name} is part of scikit-learn, which is not installed here with its data")
    return np.loadtxt(path, delimiter="," if name.startswith("digits") else None)
