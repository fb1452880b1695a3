"""The stage cache: what a stage leaves behind, kept on disk under a name made of everything that decides it.

Twenty fine-tunings of one pre-training pay for it once, in this process, in another, or next week; and once for what
was found out about its parameters, such as their Fisher information. Two halves: :func:`stage_key` and
:func:`finding_key` say what an entry's name depends on; :class:`StageCache` keeps entries, each in one file that is
whole or absent, verified when read, the least recently used evicted first.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ..config.choices import CacheMode
from ..environment import PACKAGE_DIR, versions
from ..errors import UserError
from ..files import atomic_write

if TYPE_CHECKING:  # listing a cache needs no JAX
    from ..types import Row
    from .stage import Stage


# --- what an entry is called -------------------------------------------------------------------------------------

FORMAT = 1  # of an entry's file; another one is never asked for, because it is part of the key
KEY_DIGITS = 24
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
SRC = PACKAGE_DIR


def stage_key(stage: Stage, data_fingerprint: str, extra: Mapping[str, Any] = {}) -> str:
    """Return the name of a stage's entry: 24 hexadecimal digits of a SHA-256 over what decides its numbers.

    That is: every field of the stage, traced values as the arrays that its programs take (so ``0.05`` and
    ``np.float32(0.05)`` are one rate), the others exactly (Adam computes ``1 - b2`` in float64, before it is
    compiled); the sources that the stage runs through (:func:`sources`); the data; and the versions of the libraries.

    Args:
        stage: the stage; its fields are plain values, enums and dataclasses of such.
        data_fingerprint: of the rows that it learns from.
        extra: what else decides the bits, as JSON can say it. The caller names at least the platform,
            ``{"platform": jax.default_backend()}``, and on an accelerator its kind: backends round differently.

    Raises:
        TypeError: a field that is no plain value, or a class without a source file: neither has a lasting name.
    """
    from ..config.hparams import static_part
    from .stage import traced

    decides = {
        "stage": _described(static_part(stage)),
        "form": stage.strategy.freeze_impl.name,
        "traced": {path: [array.dtype.name, array.tobytes().hex()] for path, array in traced(stage).items()},
        "sources": sources(stage, SRC / "training" / "loop.py"),
    }
    return _named(decides, data_fingerprint, extra)


def finding_key(which: Any, params: Mapping[str, Any], data_fingerprint: str, extra: Mapping[str, Any] = {}) -> str:
    """Return the name of the entry of what was found out about a stage's parameters.

    They count by their bits, not by the stage that they are of: that stage computed again, in lanes perhaps, may have
    rounded otherwise.

    Args:
        which: what was found out: a dataclass like a stage's, with no traced field.
        params: flat.
        data_fingerprint: of the rows that were looked at.
        extra: as in :func:`stage_key`.

    Raises:
        TypeError: as in :func:`stage_key`.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in params.items()}
    bits = {path: [a.dtype.name, a.shape, hashlib.sha256(a.tobytes()).hexdigest()] for path, a in arrays.items()}
    return _named({"finding": _described(which), "params": bits, "sources": sources(which)}, data_fingerprint, extra)


def _named(decides: Mapping[str, Any], data_fingerprint: str, extra: Mapping[str, Any]) -> str:
    always = {
        "format": FORMAT,
        "data": data_fingerprint,
        "versions": {name: versions()[name] for name in LIBRARIES},
        "extra": dict(extra),
    }
    decides = {**decides, **always}
    canonical = json.dumps(decides, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]


def stage_label(stage: Stage) -> str:
    """Return what people call a stage: ``"Mlp(widths=8, activation=relu), Regression, Sgd, lr 0.05, ..."``."""
    values = {f.name: getattr(stage.model, f.name) for f in dataclasses.fields(stage.model) if f.repr}
    model = ", ".join(f"{name}={_short(value)}" for name, value in values.items() if value is not None)
    names = [type(part).__name__ for part in (stage.objective, stage.optimizer)]
    rate = f"lr {np.float32(stage.lr):.6g}"
    return ", ".join(
        [f"{type(stage.model).__name__}({model})", *names, rate, f"{stage.steps} steps", f"seed {stage.seed}"]
    )


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_short, value))
    return value.name if isinstance(value, Enum) else str(value)


def _described(value: Any) -> Any:
    """Return a specification as what JSON can say, classes and enums by name."""
    if dataclasses.is_dataclass(value):
        values = {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": _qualified(type(value)), "fields": values}
    if isinstance(value, Enum):
        return {"enum": _qualified(type(value)), "name": value.name}
    if isinstance(value, (tuple, list)):
        return [_described(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value  # JSON writes a float by the shortest decimal that gives the same bits back
    raise TypeError(f"a stage with {value!r} in it has no lasting name: only plain values, enums and dataclasses have")


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def sources(specification: Any, *more: Path) -> dict[str, str]:
    """Return the digests of the sources that a stage, or a finding, runs through, by file.

    These are the files of its objects' classes with their bases, ``more`` of them (a stage's loop), and whatever these
    import of ``src``, directly or not: a model may take its layers from another file. What only others use, scripts,
    data or results, is not among them.
    """
    waiting = {Path(file) for cls in _classes(specification) for file in _file_of(cls)} | set(more)
    found: dict[Path, Source] = {}
    while waiting:
        file = waiting.pop()
        found[file] = _source(file)
        waiting |= found[file].imports - found.keys()
    # Relative, so that a copy of the project elsewhere finds the same entries.
    return {_name(file): source.digest for file, source in found.items()}


def _classes(value: Any) -> Iterator[type]:
    """The classes, bases included, of a specification's dataclasses and enums."""
    if dataclasses.is_dataclass(value) or isinstance(value, Enum):
        yield from type(value).__mro__
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _classes(getattr(value, f.name))


def _file_of(cls: type) -> Iterator[str]:
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:  # `object`, `Enum`: Python's own
        return
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        raise TypeError(f"{_qualified(cls)} has no source file, so what it computes has no lasting name")
    yield file


def _name(file: Path) -> str:
    return (file.relative_to(SRC.parent) if file.is_relative_to(SRC) else file).as_posix()


class Source(NamedTuple):
    """What a source file says."""

    digest: str
    imports: frozenset[Path]  # files of this project


@functools.cache  # for good: a file that is edited while this process runs is not the one that it has loaded
def _source(file: Path) -> Source:
    text = file.read_bytes()
    nodes = ast.walk(ast.parse(text)) if file.is_relative_to(SRC) else ()  # the rest is named by its version
    imports = frozenset(found for node in nodes for found in _imported(node, file))
    return Source(hashlib.sha256(text).hexdigest(), imports)


def _imported(node: ast.AST, file: Path) -> Iterator[Path]:
    """The files of ``src`` that an import statement names; ``from a import b`` may mean ``a/b.py``."""
    if isinstance(node, ast.Import):
        places = [SRC.parent.joinpath(*alias.name.split(".")) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        start = file.parents[node.level - 1] if node.level else SRC.parent
        place = start.joinpath(*(node.module or "").split("."))
        places = [place, *(place / alias.name for alias in node.names)]
    else:
        return
    for place in places:
        candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
        yield from (path for path in candidates if path.is_relative_to(SRC) and path.is_file())


# --- the files ---------------------------------------------------------------------------------------------------

ENTRY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}\.safetensors")
HALF_WRITTEN = re.compile(rf"\.{ENTRY.pattern}\..+")  # what `atomic_write` leaves when its process is killed
ABANDONED = 3600.0  # seconds after which nobody is still writing such a file
# The place of the checksum in an entry's header. In a JSON text these quotes can only be a key's: within a string they
# would have backslashes. It is computed with BLANK in its place, so that it covers every other byte of the file.
SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
BLANK = "0" * 64


class Entry(NamedTuple):
    """What a stage leaves behind, or what was found out about it."""

    params: dict[str, np.ndarray]  # flat, {"Dense_0/kernel": array}: parameters, or a number for each
    rows: list[Row]  # its logged rows, to the bit; numbers that are not finite too
    facts: dict[str, Any]  # what JSON can say: "stage" (its label), "diverged", "metrics", ...


class EntryInfo(NamedTuple):
    """What a listing says of an entry."""

    key: str
    bytes: int
    last_used: datetime
    label: str  # the fact "stage"
    facts: dict[str, Any]


class StageCache:
    """A folder of entries, shared by any number of processes.

    A cache is never worth a run: what cannot be read counts as missing, what cannot be written is warned about.

    Args:
        folder: made when it is first written to. Files that are no entries are left alone.
        mode: see :data:`CacheMode`.
        limit_bytes: of all entries together; 0 keeps nothing.
        warn: takes one sentence.
    """

    def __init__(self, folder: Path, mode: CacheMode, limit_bytes: int, warn: Callable[[str], None]) -> None:
        self.folder, self.mode, self.limit_bytes, self._warn = folder, mode, limit_bytes, warn

    def get(self, key: str) -> Entry | None:
        """Return an entry, or ``None``; a damaged one is warned about, removed, and counts as missing."""
        path = self._path(key)
        if self.mode not in (CacheMode.use, CacheMode.read):
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            entry = _decoded(content, key)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            reason = str(error) if isinstance(error, EntryError) else "it cannot be read"
            self._warn(f"the kept stage {path} is damaged ({reason}), so it is computed again")
            if self.mode is CacheMode.use:
                _remove(path)
            return None
        if self.mode is CacheMode.use:
            with contextlib.suppress(OSError):  # evicted meanwhile, or not ours to touch
                os.utime(path)  # what eviction goes by: many file systems do not note when a file is read
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, then evict the least recently used others until all are within the limit.

        Raises:
            TypeError: a row or a fact that JSON cannot say; nothing has been written then.
        """
        path = self._path(key)
        if self.mode not in (CacheMode.use, CacheMode.refresh):
            return
        try:
            if self.limit_bytes > 0:
                content = _encoded(key, entry)
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.writelines(content)
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
            self._warn(f"the stage cache could not keep {path}: {reason}")
        self._evict(self.limit_bytes, spare=key if self.limit_bytes > 0 else None)

    def entries(self) -> list[EntryInfo]:
        """Return what is kept, the least recently used first; nothing is verified for it."""
        return [_kept(path, stat) for path, stat in self._files(ENTRY)]

    def prune(self, limit_bytes: int = 0) -> list[EntryInfo]:
        """Remove the least recently used entries until the rest is within the limit; return the removed ones."""
        return self._evict(limit_bytes)

    def _evict(self, limit_bytes: int, spare: str | None = None) -> list[EntryInfo]:
        for path, stat in self._files(HALF_WRITTEN):
            if time.time() - stat.st_mtime > ABANDONED:
                _remove(path)
        files = self._files(ENTRY)
        total = sum(stat.st_size for _, stat in files)
        removed = []
        for path, stat in files:
            if total <= limit_bytes:
                break
            if path.stem == spare:
                continue
            kept = _kept(path, stat)
            if _remove(path):
                removed.append(kept)
                total -= kept.bytes
        return removed

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        """The folder's files of such a name with their sizes and times, the oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):  # another process evicted it
                    if pattern.fullmatch(path.name) and path.is_file():
                        found.append((path, path.stat()))
        return sorted(found, key=lambda file: (file[1].st_mtime_ns, file[0].name))

    def _path(self, key: str) -> Path:
        path = self.folder / f"{key}.safetensors"
        if not ENTRY.fullmatch(path.name):
            raise ValueError(f"'{key}' is no key of a stage")
        return path


class EntryError(ValueError):
    """Why an entry cannot be trusted."""


def _encoded(key: str, entry: Entry) -> Iterable[bytes | memoryview]:
    """Return an entry's file, in pieces."""
    # order="C", because safetensors writes a transposed array's memory as it lies: another array.
    params = {path: np.asarray(value, order="C") for path, value in entry.params.items()}
    # Python's JSON has words for what is not finite; nobody else reads these texts, so they stay numbers.
    texts = {
        "key": key,
        "dtypes": json.dumps({path: value.dtype.name for path, value in params.items()}),
        "rows": json.dumps(entry.rows, default=_plain),
        "facts": json.dumps(entry.facts, default=_plain),
    }
    content = save(params, {**texts, "sha256": BLANK})
    place = SEAL.search(content)
    assert place is not None
    digest = hashlib.sha256(content).hexdigest()
    return content[: place.start(1)], digest.encode(), memoryview(content)[place.end(1) :]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"the stage cache cannot keep {value!r}: JSON cannot say it")


def _decoded(content: bytes, key: str) -> Entry:
    """Return the entry that a file holds.

    Raises:
        EntryError: it is not what was written. A file that was never an entry may raise other errors.
    """
    place = SEAL.search(content)
    if place is None:
        raise EntryError("it has no checksum")
    digest = hashlib.sha256(content[: place.start(1)])
    digest.update(BLANK.encode())
    digest.update(memoryview(content)[place.end(1) :])
    if digest.hexdigest().encode() != place[1]:
        raise EntryError("its checksum does not match")
    texts = _metadata(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if texts["key"] != key:
        raise EntryError(f"it is the entry {texts['key']}")
    found = dict(deserialize(content))
    # Not safetensors.numpy.load: that knows no bfloat16, and sorts.
    params = {
        path: np.frombuffer(found[path]["data"], np.dtype(dtype)).reshape(found[path]["shape"])
        for path, dtype in json.loads(texts["dtypes"]).items()
    }
    return Entry(params, json.loads(texts["rows"]), json.loads(texts["facts"]))


def _metadata(header: bytes) -> dict[str, str]:
    return json.loads(header)["__metadata__"]


def _kept(path: Path, stat: os.stat_result) -> EntryInfo:
    try:
        with path.open("rb") as file:
            facts = json.loads(_metadata(file.read(min(int.from_bytes(file.read(8), "little"), stat.st_size)))["facts"])
        label = str(facts.get("stage", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        facts, label = {}, "damaged"
    return EntryInfo(path.stem, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC), label, facts)


def _remove(path: Path) -> bool:
    """Remove a file; tell whether it is gone, whoever removed it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


# --- sizes as people write them ----------------------------------------------------------------------------------

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, key: str = "the size") -> int:
    """Return the bytes of ``"500MB"`` (500 million), ``"2GiB"`` (2 * 1024**3), ``"1.5 GB"`` or ``"0"``.

    Args:
        text: what was given; upper and lower case mean the same.
        key: what it was given for; the error names it.

    Raises:
        UserError: it is no size.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{key} is '{text}'; allowed: a size such as 500MB, 2GiB or 0")
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** ("kmgt".index(prefix.lower()) + 1) if prefix else 1
    return round(float(number) * unit)
