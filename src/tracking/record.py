"""The record of a job on disk (see docs/architecture.md): rows as they happen, and a summary when it ends."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from src import __version__

SUMMARY, METRICS, CHECKPOINT = "summary.json", "metrics.jsonl", "model.safetensors"


class JobRecord:
    """Writes one job's folder. A crash leaves whole rows and no summary; a summary is whole or absent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier try in the same folder
        self._rows = (folder / METRICS).open("wb", buffering=0)  # what is written is with the system at once

    def log(self, stage: str, row: Mapping[str, float]) -> None:
        """Append a logged step."""
        self.log_lines(as_lines(stage, [row]))

    def log_lines(self, lines: str) -> None:
        """Append rows that :func:`as_lines` has written already."""
        self._rows.write(lines.encode())

    def close(self) -> None:
        """Close the file of rows; without a summary the job counts as unfinished."""
        self._rows.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which makes the job count as ended."""
        self.close()
        with replacing(self.folder / SUMMARY) as file:
            file.write(to_json_page(summary).encode())

    def save_params(self, params: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Write parameters as safetensors, ``{"Dense_0/kernel": array}``."""
        import numpy as np
        from safetensors.numpy import save

        with replacing(self.folder / CHECKPOINT) as file:
            file.write(save({path: np.asarray(value, order="C") for path, value in params.items()}, dict(metadata)))


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


def as_lines(stage: str, rows: Iterable[Mapping[str, float]]) -> str:
    """Return a stage's rows as they stand in the file of rows."""
    return "".join(to_json({"stage": stage, **row}) + "\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
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


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "omegaconf")
    return {
        "thaw": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Return the project's commit and whether its files differ from it; ``None`` outside a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
