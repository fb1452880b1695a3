"""Reads and writes W&B's offline ``.wandb`` files; wandb has no Python reader since release 0.30.

A file is a 7-byte header followed by LevelDB's log format (github.com/google/leveldb, doc/log_format.md) with zlib's
CRC-32: blocks of 32768 bytes, counted from the file's start, contain fragments of records; each fragment has its
checksum, length and type, and each record is a protobuf message. Those written here are the records of the official
client in its order, without its telemetry. They are written directly, because a run of the client is slow: it
communicates with a service process, and a sweep's jobs may end a hundred at a time.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import wandb
from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2
from wandb.sdk.lib.runid import generate_id

from ..errors import UserError
from .record_reader import STAGES, Job
from .wandb_runs import job_from_run

Record: Any = getattr(wandb_internal_pb2, "Record")  # noqa: B009  (made at import, which no type checker sees)
HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32768
FRAGMENT = struct.Struct("<IHB")  # checksum, length, type
PADDING, FULL, FIRST, MIDDLE, LAST = range(5)
MIN_CONSUMER = "0.70.0"  # the oldest version of W&B's service that can read what is written here

to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # NaN and Infinity as W&B writes them


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file, without an incomplete record at its end (of a killed process).

    Raises a :class:`UserError` if the file is not W&B's, or a checksum is wrong.
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
    """Read one ``.wandb`` file."""
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
    damaged, files = [], {}
    for path in map(Path, paths):
        try:
            run = read_run(path)
            files.setdefault((run.project, run.run_id or str(path)), []).append(run)
        except UserError as error:
            damaged.append(Job(path.stem, "damaged", error=str(error)))
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
        for run in map(merge, files.values())
    ] + damaged


def write_offline_run(
    run: Mapping[str, Any], rows: Iterable[Mapping[str, float]], summary: Mapping[str, float], exit_code: int
) -> Path:
    """Write a finished run and return its folder, ``<dir>/wandb/offline-run-<time>-<run_id>``, complete or absent.

    ``run`` are keyword arguments of ``wandb.init``, where ``None`` is unset, and ``rows`` the arguments of ``run.log``.
    """
    run_id, started = generate_id(), time.time()
    messages = []
    for number, record in enumerate(_records(run, rows, summary, run_id=run_id, started=started), start=1):
        record.num = number
        messages.append(record.SerializeToString())
    end = Record(exit={"exit_code": exit_code}, _info={"stream_id": run_id}, num=len(messages) + 1)
    content = framed([*messages, end.SerializeToString()])
    stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(started))
    folder = Path(run.get("dir") or ".", "wandb", f"offline-run-{stamp}-{run_id}")
    unfinished = folder.with_name(f".{folder.name}")
    try:
        (unfinished / "files").mkdir(parents=True)
        (unfinished / f"run-{run_id}.wandb").write_bytes(content)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _records(
    run: Mapping[str, Any],
    rows: Iterable[Mapping[str, float]],
    summary: Mapping[str, float],
    *,
    run_id: str,
    started: float,
) -> Iterator[Any]:
    """Yield a run's records, except the last, in the order in which the official client and its service write them."""
    client = {"stream_id": run_id}  # marks the records that the client writes, as opposed to the service
    yield Record(header={"version_info": {"producer": wandb.__version__, "min_consumer": MIN_CONSUMER}}, _info=client)
    description = {
        "run_id": run_id,
        "entity": run.get("entity"),  # W&B leaves out what is `None`
        "project": run.get("project"),
        "run_group": run.get("group"),
        "job_type": run.get("job_type"),
        "display_name": run.get("name"),
        "tags": run.get("tags") or (),
        "config": {"update": _items({"_wandb": {}, **(run.get("config") or {})})},
        "host": socket.gethostname(),
        "start_time": {"seconds": int(started), "nanos": int(started % 1 * 1e9)},
        "telemetry": {"python_version": platform.python_version(), "cli_version": wandb.__version__},
    }
    yield Record(run=description, _info=client)
    for stage in STAGES:  # each stage's curves are drawn over its own steps
        axis = f"{stage}/step"
        yield Record(metric={"name": axis, "options": {"hidden": True, "defined": True}}, _info=client)
        options = {"step_sync": True, "defined": True}
        yield Record(metric={"glob_name": f"{stage}/*", "step_metric": axis, "options": options}, _info=client)
    for step, row in enumerate(rows):
        now = time.time()
        logged = {**row, "_timestamp": now, "_runtime": now - started, "_step": step}
        items = [{"nested_key": [key], "value_json": to_json(value)} for key, value in logged.items()]
        yield _runtime(started)
        yield Record(summary={"update": items})
        yield Record(history={"item": items, "step": {"num": step}})
    yield Record(summary={"update": _items(summary)}, _info=client)
    yield _runtime(started)


def _items(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the items of a configuration or a summary, where W&B writes NaN as ``null`` (unlike in rows)."""
    nan = {key for key, value in values.items() if isinstance(value, float) and math.isnan(value)}
    return [{"key": key, "value_json": to_json(None if key in nan else value)} for key, value in values.items()]


def _runtime(started: float) -> Any:
    """Return the record by which the service sets the summary's runtime in whole seconds."""
    seconds = to_json(int(time.time() - started))
    nested = {"nested_key": ["_wandb", "runtime"], "value_json": seconds}
    return Record(summary={"update": [nested, {"key": "_runtime", "value_json": seconds}]})


def framed(messages: Iterable[bytes]) -> bytes:
    """Return the content of a file with these messages: W&B's header, then LevelDB's log format."""
    log = bytearray(HEADER)
    for message in messages:
        rest, types = message, (FULL, FIRST)  # of a fragment: the last of its message, or not
        while rest or types[0] == FULL:
            free = BLOCK - len(log) % BLOCK
            if free < FRAGMENT.size:
                log += bytes(free)
                free = BLOCK
            data, rest = rest[: free - FRAGMENT.size], rest[free - FRAGMENT.size :]
            kind = types[bool(rest)]
            log += FRAGMENT.pack(zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
            types = (LAST, MIDDLE)
    return bytes(log)
