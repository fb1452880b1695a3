"""The stage cache: pre-trained parameters, and what was computed about them, kept on disk for later runs.

A sweep of twenty fine-tunings pays for their pre-training once, in this process or in another. Keys are made by
``cache_key.py``; a :class:`src.store.Store` keeps the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ..config.choices import CacheMode
from ..errors import UserError
from ..store import Store, Stored
from ..types import Row


class Entry(NamedTuple):
    """The result of a stage, or what was computed about it."""

    params: dict[str, np.ndarray]  # flat, {"Dense_0/kernel": array}: parameters, or a number for each
    rows: list[Row]  # logged, to the bit
    facts: dict[str, Any]  # JSON: "stage" (its label), "diverged", "metrics", ...


class EntryInfo(NamedTuple):
    """An entry in a listing."""

    key: str
    bytes: int
    last_used: datetime
    label: str  # the fact "stage"
    facts: dict[str, Any]


class StageCache:
    """A folder of entries, shared by any number of processes.

    The cache never fails a run: what cannot be read counts as missing, what cannot be written is warned about.

    Args:
        folder: made when it is first written to.
        mode: ``use``, ``read`` (never write), ``refresh`` (never read) or ``off``.
        limit_bytes: of all entries; the least recently used are removed first. 0 keeps nothing.
        warn: takes one sentence.
    """

    def __init__(self, folder: Path, mode: CacheMode, limit_bytes: int, warn: Callable[[str], None]) -> None:
        reads, writes = mode in (CacheMode.use, CacheMode.read), mode in (CacheMode.use, CacheMode.refresh)
        self._store = Store(folder, "stage", reads=reads, writes=writes, limit_bytes=limit_bytes, warn=warn)
        self._warn = warn

    def get(self, key: str) -> Entry | None:
        """Return an entry, or ``None``; a damaged one is warned about, removed, and counts as missing."""
        return self._store.get(key, _decode)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, then remove the least recently used others until all are within the limit.

        Raises:
            TypeError: a row or a fact that is not JSON; nothing has been written then.
        """
        try:
            content = _encode(entry)
        except SafetensorError as error:
            self._warn(f"the stage {self._store.path(key)} cannot be kept: {' '.join(str(error).split())}")
            return
        self._store.put(key, [content])

    def entries(self) -> list[EntryInfo]:
        """Return the entries, the least recently used first; they are not verified."""
        return [_info(stored) for stored in self._store.entries()]

    def prune(self, limit_bytes: int = 0) -> list[EntryInfo]:
        """Remove the least recently used entries until the rest is within the limit; return the removed ones."""
        known = {info.key: info for info in self.entries()}
        return [known[stored.key] for stored in self._store.prune(limit_bytes) if stored.key in known]


def _encode(entry: Entry) -> bytes:
    # order="C": safetensors writes the memory of a transposed array as it lies, which is another array.
    params = {path: np.asarray(value, order="C") for path, value in entry.params.items()}
    # Python's JSON has words for numbers that are not finite; nobody else reads these texts.
    texts = {
        "dtypes": json.dumps({path: value.dtype.name for path, value in params.items()}),
        "rows": json.dumps(entry.rows, default=_plain),
        "facts": json.dumps(entry.facts, default=_plain),
    }
    return save(params, texts)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"the stage cache cannot keep {value!r}, which is not JSON")


def _decode(content: memoryview) -> Entry:
    size = int.from_bytes(content[:8], "little")
    texts = json.loads(bytes(content[8 : 8 + size]))["__metadata__"]
    found = dict(deserialize(bytes(content)))
    # Not safetensors.numpy.load, which does not know bfloat16 and sorts.
    params = {
        path: np.frombuffer(found[path]["data"], np.dtype(dtype)).reshape(found[path]["shape"])
        for path, dtype in json.loads(texts["dtypes"]).items()
    }
    return Entry(params, json.loads(texts["rows"]), json.loads(texts["facts"]))


def _info(stored: Stored) -> EntryInfo:
    try:
        with stored.path.open("rb") as file:
            size = min(int.from_bytes(file.read(8), "little"), stored.bytes)
            facts = json.loads(json.loads(file.read(size))["__metadata__"]["facts"])
        label = str(facts.get("stage", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        facts, label = {}, "damaged"
    return EntryInfo(stored.key, stored.bytes, datetime.fromtimestamp(stored.last_used, UTC), label, facts)


# --- sizes as people write them --------------------------------------------------------------------------------------

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, key: str = "the size") -> int:
    """Return the bytes of ``"500MB"`` (500 million), ``"2GiB"`` (2 * 1024**3), ``"1.5 GB"`` or ``"0"``.

    Args:
        text: upper and lower case mean the same.
        key: the option that the text was given for; the error names it.

    Raises:
        UserError: the text is no size.
    """
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{key} is '{text}'; allowed: a size such as 500MB, 2GiB or 0")
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** ("kmgt".index(prefix.lower()) + 1) if prefix else 1
    return round(float(number) * unit)
