"""Writes the record of a job to disk (docs/architecture.md): rows as they happen, and a summary when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_write, to_json, to_json_page

SUMMARY, METRICS, CHECKPOINT = "summary.json", "metrics.jsonl", "model.safetensors"


class RecordWriter:
    """Writes one job's folder. A crash leaves complete rows and no summary; a summary is complete or absent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / SUMMARY).unlink(missing_ok=True)  # of an earlier attempt in the same folder
        self._rows = (folder / METRICS).open("wb", buffering=0)  # unbuffered: a row is handed to the system at once

    def log(self, lines: str) -> None:
        """Append rows in the form that :func:`as_lines` returns."""
        self._rows.write(lines.encode())

    def close(self) -> None:
        """Close the file of rows; a job without a summary counts as unfinished."""
        self._rows.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which makes the job count as ended."""
        self.close()
        write_summary(self.folder, summary)

    def save_params(self, params: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Write parameters as safetensors, ``{"Dense_0/kernel": array}``."""
        import numpy as np
        from safetensors.numpy import save

        with atomic_write(self.folder / CHECKPOINT) as file:
            file.write(save({path: np.asarray(value, order="C") for path, value in params.items()}, dict(metadata)))


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a job's summary."""
    with atomic_write(folder / SUMMARY) as file:
        file.write(to_json_page(summary).encode())


def as_lines(stage: str, rows: Iterable[Mapping[str, float]]) -> str:
    """Return a stage's rows as lines of the file of rows."""
    return "".join(to_json({"stage": stage, **row}) + "\n" for row in rows)
