"""A keyed store of results on disk, one file for each entry.

An entry's key is a hash of everything that determines its content, so entries are never outdated. Files are written
atomically, are verified when they are read, and can be limited in their total size. The store never fails a run: what
cannot be read counts as missing, what cannot be written is warned about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .files import atomic_write
from .notices import warn_once

T = TypeVar("T")
KEY_DIGITS = 24
DIGEST_BYTES = 32  # of the SHA-256 over the key and the content, at the end of a file
ABANDONED = 3600.0  # seconds after which a half-written file belongs to a process that was killed


def key_of(description: Any) -> str:
    """Return the key of an entry: 24 hexadecimal digits of a SHA-256.

    Args:
        description: everything that determines the entry's content, in JSON's types; the order of keys does not matter.
            It includes a number for the format, and the versions of the libraries that compute the content.
    """
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]


def stored(
    folder: str | None,
    kind: str,
    key: str,
    compute: Callable[[], T],
    *,
    encode: Callable[[T], Iterable[bytes | memoryview]],
    decode: Callable[[memoryview], T],
) -> T:
    """Return an entry of a folder, or compute and keep it; see :class:`Store` and :meth:`Store.get`."""
    store = Store(folder, kind)
    if (found := store.get(key, decode)) is None:
        found = compute()
        store.put(key, encode(found))
    return found


class Stored(NamedTuple):
    """An entry's file."""

    key: str
    path: Path
    bytes: int
    last_used: float  # seconds since the epoch


class Store:
    """A folder of entries of one kind, shared by any number of processes.

    Args:
        folder: made when it is first written to; other files in it are not touched. ``None``: nothing is kept.
        kind: what an entry is, for instance ``"tokenizer"``: the suffix of its file, and its name in warnings.
        reads: whether entries that exist are used.
        writes: whether entries are written, damaged ones removed, and their time of last use recorded.
        limit_bytes: of all entries together; the least recently used are removed first. ``None``: no limit.
        warn: takes one sentence.
    """

    def __init__(
        self,
        folder: str | Path | None,
        kind: str,
        *,
        reads: bool = True,
        writes: bool = True,
        limit_bytes: int | None = None,
        warn: Callable[[str], None] = warn_once,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.kind, self.reads, self.writes, self.limit_bytes, self._warn = kind, reads, writes, limit_bytes, warn
        entry = rf"[0-9a-f]{{{KEY_DIGITS}}}\.{re.escape(kind)}"
        self._entry, self._half_written = re.compile(entry), re.compile(rf"\.{entry}\..+")

    def path(self, key: str) -> Path:
        """Return where an entry is, or would be."""
        path = (self.folder or Path()) / f"{key}.{self.kind}"
        if not self._entry.fullmatch(path.name):
            raise ValueError(f"'{key}' is no key; allowed: what key_of returns")
        return path

    def get(self, key: str, decode: Callable[[memoryview], T]) -> T | None:
        """Return an entry, or ``None``; a damaged one is warned about, removed, and counts as missing.

        Args:
            key: what :func:`key_of` returned.
            decode: makes the entry of its content, to which it may keep views.
        """
        path = self.path(key)
        if self.folder is None or not self.reads:
            return None
        try:
            content = memoryview(path.read_bytes())
        except OSError:
            return None
        try:
            if content[-DIGEST_BYTES:] != _digest(key, [content[:-DIGEST_BYTES]]):
                raise ValueError("its checksum does not match")
            found = decode(content[:-DIGEST_BYTES])
        except Exception as error:  # noqa: BLE001  (whatever decoding raises, the entry can be computed again)
            self._warn(f"the kept {self.kind} {path} is damaged ({error}), so it is computed again")
            if self.writes:
                remove(path)
            return None
        if self.writes:
            with contextlib.suppress(OSError):  # removed meanwhile, or another user's
                os.utime(path)  # many file systems do not note when a file is read
        return found

    def put(self, key: str, content: Iterable[bytes | memoryview]) -> None:
        """Keep an entry, given as pieces of its content; then remove others until all are within the limit."""
        path = self.path(key)
        if self.folder is None or not self.writes:
            return
        if self.limit_bytes != 0:
            pieces = list(content)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.writelines([*pieces, _digest(key, pieces)])
            except OSError as error:
                self._warn(f"the {self.kind} {path} cannot be kept: {error.strerror}")
        if self.limit_bytes is not None:
            self._evict(self.limit_bytes, spare=key if self.limit_bytes else None)

    def entries(self) -> list[Stored]:
        """Return the entries, the least recently used first; they are not verified."""
        return [
            Stored(path.name[:KEY_DIGITS], path, stat.st_size, stat.st_mtime) for path, stat in self._files(self._entry)
        ]

    def prune(self, limit_bytes: int = 0) -> list[Stored]:
        """Remove the least recently used entries until the others are within the limit; return the removed ones."""
        return self._evict(limit_bytes)

    def _evict(self, limit_bytes: int, spare: str | None = None) -> list[Stored]:
        for path, stat in self._files(self._half_written):
            if time.time() - stat.st_mtime > ABANDONED:
                remove(path)
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.key != spare and remove(entry.path):
                removed.append(entry)
                total -= entry.bytes
        return removed

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        """Return the files of such a name with their sizes and times, the oldest first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir() if self.folder else ():
                with contextlib.suppress(OSError):  # another process removed it
                    if pattern.fullmatch(path.name) and path.is_file():
                        found.append((path, path.stat()))
        return sorted(found, key=lambda file: (file[1].st_mtime_ns, file[0].name))


def remove(path: Path) -> bool:
    """Remove a file; return whether it is gone, whoever removed it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _digest(key: str, content: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256(key.encode())
    for piece in content:
        digest.update(piece)
    return digest.digest()
