"""Writes a whole finished run as W&B's own offline file, for ``wandb sync``, without starting a run of W&B's.

What a run of the official client costs is the conversation with its service; the file that comes out of it is small
and simple. A sweep whose jobs finish a hundred at a time writes it directly. The records are those of the official
client, in its order, without its telemetry, which tells what of the client was used: here nothing was. The format is
described where it is read, in ``src/tracking/wandb_files.py``.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.lib.runid import generate_id

from .wandb_files import BLOCK, FIRST, FULL, HEADER, LAST, MIDDLE, PIECE, Record

OLDEST_READER = "0.70.0"  # of W&B's service that may read the file, in the numbering of its own format
STAGES = ("pretrain", "finetune")

to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # NaN and Infinity as W&B writes them


def write_offline_run(
    run: Mapping[str, Any],
    rows: Iterable[Mapping[str, float]],
    summary: Mapping[str, float],
    exit_code: int,
    *,
    run_id: str | None = None,
) -> Path:
    """Write a finished run; it appears whole or not at all.

    Args:
        run: keyword arguments of ``wandb.init``: ``dir``, ``config``, ``project``, ``entity``, ``group``, ``job_type``,
            ``name``, ``tags``; what is absent or ``None`` stays unset.
        rows: what ``run.log`` would be given, one mapping a step, keys such as ``"finetune/loss"``.
        summary: what the run's summary says beside each key's last value.
        exit_code: 0 for a run that succeeded.
        run_id: W&B's identity of the run; a new one where it is ``None``.

    Returns:
        The run's folder, ``<dir>/wandb/offline-run-<time>-<run_id>``, which is what ``wandb sync`` takes.

    Raises:
        OSError: the folder cannot be written.
    """
    run_id = run_id or generate_id()
    started = time.time()
    records = numbered(run_records(run, rows, summary, exit_code, run_id, started))
    content = framed(record.SerializeToString() for record in records)
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


def run_records(
    run: Mapping[str, Any],
    rows: Iterable[Mapping[str, float]],
    summary: Mapping[str, float],
    exit_code: int,
    run_id: str,
    started: float,
) -> Iterator[Any]:
    """Yield a run's records in the order in which the official client and its service write them."""
    mine = {"stream_id": run_id}  # what comes from the client and not from the service says so
    yield Record(header={"version_info": {"producer": wandb.__version__, "min_consumer": OLDEST_READER}}, _info=mine)
    yield Record(run=run_record(run, run_id, started), _info=mine)
    for metric in stage_metrics():
        yield Record(metric=metric, _info=mine)
    for step, row in enumerate(rows):
        now = time.time()
        logged = {**row, "_timestamp": now, "_runtime": now - started, "_step": step}
        items = [{"nested_key": [key], "value_json": to_json(value)} for key, value in logged.items()]
        yield runtime(started)
        yield Record(summary={"update": items})
        yield Record(history={"item": items, "step": {"num": step}})
    yield Record(summary={"update": plain_items(summary)}, _info=mine)
    yield runtime(started)
    yield Record(exit={"exit_code": exit_code}, _info=mine)


def run_record(run: Mapping[str, Any], run_id: str, started: float) -> dict[str, Any]:
    """Return the fields of the record that says what a run is; W&B leaves out what is ``None``."""
    return {
        "run_id": run_id,
        "entity": run.get("entity"),
        "project": run.get("project"),
        "run_group": run.get("group"),
        "job_type": run.get("job_type"),
        "display_name": run.get("name"),
        "tags": run.get("tags") or (),
        "config": {"update": plain_items({"_wandb": {}, **(run.get("config") or {})})},
        "host": socket.gethostname(),
        "start_time": {"seconds": int(started), "nanos": int(started % 1 * 1e9)},
        "telemetry": {"python_version": platform.python_version(), "cli_version": wandb.__version__},
    }


def stage_metrics() -> Iterator[dict[str, Any]]:
    """Yield the definitions that draw each stage's curves over that stage's own steps."""
    for stage in STAGES:
        axis = f"{stage}/step"
        yield {"name": axis, "options": {"hidden": True, "defined": True}}
        yield {"glob_name": f"{stage}/*", "step_metric": axis, "options": {"step_sync": True, "defined": True}}


def plain_items(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return items of a configuration or a summary, where W&B has ``null`` for NaN (and not in rows)."""
    nan = {key for key, value in values.items() if isinstance(value, float) and math.isnan(value)}
    return [{"key": key, "value_json": to_json(None if key in nan else value)} for key, value in values.items()]


def runtime(started: float) -> Any:
    """Return the record by which the service keeps the summary's whole seconds of runtime."""
    seconds = to_json(int(time.time() - started))
    nested = {"nested_key": ["_wandb", "runtime"], "value_json": seconds}
    return Record(summary={"update": [nested, {"key": "_runtime", "value_json": seconds}]})


def numbered(records: Iterable[Any]) -> Iterator[Any]:
    """Number records from 1."""
    for number, record in enumerate(records, start=1):
        record.num = number
        yield record


def framed(messages: Iterable[bytes]) -> bytes:
    """Return the content of a file that holds the messages: W&B's header, then LevelDB's log format."""
    log = bytearray(HEADER)
    for message in messages:
        rest, kinds = message, (FULL, FIRST)  # kinds of a piece: the last of its message, or not
        while rest or kinds[0] == FULL:
            room = BLOCK - len(log) % BLOCK
            if room < PIECE.size:
                log += bytes(room)
                room = BLOCK
            data, rest = rest[: room - PIECE.size], rest[room - PIECE.size :]
            kind = kinds[bool(rest)]
            log += PIECE.pack(zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
            kinds = (LAST, MIDDLE)
    return bytes(log)
