"""Atomic writes, and JSON for every reader."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


def to_json(value: Any) -> str:
    """Return strict JSON; numbers that are not finite become ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # rare; searching for such numbers first would be slower
        return json.dumps(_finite(value), allow_nan=False)


def to_json_page(value: Mapping[str, Any]) -> str:
    """Return JSON with one line per top-level key."""
    lines = (f"  {json.dumps(key)}: {to_json(item)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends; after an exception, ``path`` is unchanged."""
    folder, name = os.path.split(path)
    temporary = f"{folder}/.{name}.{os.getpid()}-{threading.get_ident()}"
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123
            yield file
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
