"""Reads W&B's offline ``.wandb`` files, for which wandb has no Python reader since release 0.30.

A file is a 7-byte header followed by LevelDB's log format (github.com/google/leveldb, doc/log_format.md) with zlib's
CRC-32: blocks of 32768 bytes, counted from the file's start, contain fragments of records; each fragment has its
checksum, length and type, and each record is a protobuf message.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

from ..errors import UserError
from .record_reader import Job
from .wandb_runs import job_from_run

Record: Any = getattr(wandb_internal_pb2, "Record")  # noqa: B009  (made at import, which no type checker sees)
HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32768
FRAGMENT = struct.Struct("<IHB")  # checksum, length, type
PADDING, FULL, FIRST, MIDDLE, LAST = range(5)


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file, without an incomplete record at its end (of a killed process).

    Raises:
        UserError: the file is not W&B's, or a checksum is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if content[: len(HEADER)] != HEADER[: len(content)]:  # the header may be incomplete, too
        raise UserError(f"{path} is not a .wandb file of a known version: it starts with {content[:7]!r}")
    position, parts = len(HEADER), []
    while position + FRAGMENT.size <= len(content):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < FRAGMENT.size:
            position += left_in_block
            continue
        checksum, length, kind = FRAGMENT.unpack_from(content, position)
        start = position + FRAGMENT.size
        data = content[start : start + length]
        if kind == PADDING and length == 0:
            position += left_in_block
            continue
        if len(data) < length:
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise UserError(f"{path} is damaged: wrong checksum at byte {position}")
        position = start + length
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield parse(b"".join(parts), path)


def parse(message: bytes, path: Path) -> Any:
    """Parse one record."""
    try:
        return Record.FromString(message)
    except DecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error


@dataclass
class OfflineRun:
    """One run, from one or more files."""

    path: Path
    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    commit: str | None = None
    started: float = 0.0  # seconds since 1970
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def update(target: dict[str, Any], items: Iterable[Any], removed: Iterable[Any] = ()) -> dict[str, Any]:
    """Set (or remove) a record's items in a nested dict, at each item's nested key or key."""
    for item in items:
        *above, key = item.nested_key or [item.key]
        inner = target
        for step in above:
            inner[step] = inner[step] if isinstance(inner.get(step), dict) else {}
            inner = inner[step]
        inner[key] = json.loads(item.value_json)
    for item in removed:
        *above, key = item.nested_key or [item.key]
        functools.reduce(lambda inner, step: inner.get(step, {}), above, target).pop(key, None)
    return target


def read_run(path: Path | str) -> OfflineRun:
    """Read one ``.wandb`` file.

    Raises:
        UserError: see :func:`read_records`.
    """
    run = OfflineRun(Path(path))
    for record in read_records(run.path):
        match record.WhichOneof("record_type"):
            case "run":
                run.run_id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
                run.group, run.job_type = record.run.run_group, record.run.job_type
                run.tags = tuple(record.run.tags)
                run.commit = record.run.git.commit or None
                run.started = record.run.start_time.seconds + record.run.start_time.nanos / 1e9
                update(run.config, record.run.config.update)
            case "config":
                update(run.config, record.config.update, record.config.remove)
            case "summary":
                update(run.summary, record.summary.update, record.summary.remove)
            case "history":
                run.history.append(update({}, record.history.item))
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def merge(runs: list[OfflineRun]) -> OfflineRun:
    """Join the files of a run that was resumed offline; ``_step``, which restarts with each file, continues."""
    runs = sorted(runs, key=lambda run: run.started)
    whole = runs[0]
    for run in runs[1:]:
        whole.config |= run.config
        whole.summary |= run.summary
        whole.exit_code = run.exit_code
        whole.name, whole.commit = run.name or whole.name, run.commit or whole.commit
        steps = [row.get("_step", 0) for row in (whole.history[-1:] + run.history[:1])]
        offset = steps[0] + 1 if len(steps) == 2 and steps[1] <= steps[0] else 0
        whole.history += [row | {"_step": row.get("_step", 0) + offset} for row in run.history]
    return whole


def load_wandb_files(paths: Iterable[Path | str]) -> list[Job]:
    """Read offline runs as jobs, one per run; a run's files are joined in the order in which they were started.

    Status: ``unfinished`` without an exit code, ``completed`` with exit code 0, else ``failed``. A file that
    cannot be read becomes a job of status ``damaged`` whose ``error`` names it.
    """
    jobs, files = [], {}
    for path in map(Path, paths):
        try:
            run = read_run(path)
        except UserError as error:
            jobs.append(Job(path.stem, "damaged", error=str(error)))
            continue
        files.setdefault((run.project, run.run_id or str(path)), []).append(run)
    whole = [merge(runs) for runs in files.values()]
    return [
        job_from_run(
            name=run.name,
            run_id=run.run_id or run.path.stem,
            status={None: "unfinished", 0: "completed"}.get(run.exit_code, "failed"),
            config=run.config,
            summary=run.summary,
            history=lambda run=run: run.history,
            git_commit=run.commit,
            started=datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds") if run.started else None,
        )
        for run in whole
    ] + jobs
