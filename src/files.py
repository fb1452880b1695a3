"""Files that are whole or absent, and JSON that every reader can read."""

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
    """Return JSON that every reader takes: numbers that are not finite become strings (see the module's page)."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # rare, and looking for such numbers first would cost more than everything else here
        return json.dumps(_finite(value), allow_nan=False)


def to_json_page(value: Mapping[str, Any]) -> str:
    """Return JSON for people: a line for each key at the top."""
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
    """Open a file that takes ``path``'s place when the block ends, or not at all."""
    folder, name = os.path.split(path)
    beside = f"{folder}/.{name}.{os.getpid()}-{threading.get_ident()}"
    try:
        with open(beside, "wb") as file:  # noqa: PTH123
            yield file
        os.replace(beside, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)  # noqa: PTH108
        raise
