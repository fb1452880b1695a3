"""A store of results in files, each under a hash of everything that determines it.

An entry is therefore never outdated. Files are written atomically and verified when they are read. The store never
fails a run: what cannot be read is computed again, what cannot be written is warned about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .files import atomic_write
from .notices import warn_once

T = TypeVar("T")
Pieces = Iterable[bytes | memoryview]  # of an entry's content
KEY_DIGITS = 24
DIGEST_BYTES = 32  # of the SHA-256 over the key and the content, at the end of a file


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
    encode: Callable[[T], Pieces],
    decode: Callable[[memoryview], T],
) -> T:
    """Return an entry of a folder, or compute and write it.

    Args:
        folder: of any number of entries and other files, shared by any number of processes; ``None``: not stored.
        kind: what an entry is, for instance ``"tokenizer"``: the suffix of its file, and its name in warnings.
        key: what :func:`key_of` returned.
        compute: returns the entry if it is not stored, or damaged.
        encode: returns pieces of an entry's content.
        decode: returns the entry of its content, to which it may keep views.
    """
    if folder is None:
        return compute()
    path = Path(folder) / f"{key}.{kind}"
    with contextlib.suppress(OSError):
        content = memoryview(path.read_bytes())
        try:
            if content[-DIGEST_BYTES:] != _digest(key, [content[:-DIGEST_BYTES]]):
                raise ValueError("its checksum does not match")
            return decode(content[:-DIGEST_BYTES])
        except Exception as error:  # noqa: BLE001  (whatever decoding raises, the entry can be computed again)
            warn_once(f"the kept {kind} {path} is damaged ({error}), so it is computed again")
    found = compute()
    pieces = list(encode(found))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines([*pieces, _digest(key, pieces)])
    except OSError as error:
        warn_once(f"the {kind} {path} cannot be kept: {error.strerror}")
    return found


def _digest(key: str, content: Pieces) -> bytes:
    digest = hashlib.sha256(key.encode())
    for piece in content:
        digest.update(piece)
    return digest.digest()
