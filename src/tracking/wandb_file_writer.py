"""Writes a finished run as W&B's offline file, which ``wandb sync`` uploads, without W&B's client.

A run of the official client is slow because it communicates with a service process; the resulting file is small and
simple. A sweep whose jobs finish a hundred at a time therefore writes the files directly. They contain the records of
the official client in its order, without its telemetry, which lists the features of the client that were used. The
format is described in ``wandb_file_reader.py``.
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

from .record_reader import STAGES
from .wandb_file_reader import BLOCK, FIRST, FRAGMENT, FULL, HEADER, LAST, MIDDLE, Record

MIN_CONSUMER = "0.70.0"  # the oldest version of W&B's service that can read the file

to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # NaN and Infinity as W&B writes them


def write_offline_run(
    run: Mapping[str, Any], rows: Iterable[Mapping[str, float]], summary: Mapping[str, float], exit_code: int
) -> Path:
    """Write a finished run; its folder is complete or absent.

    Args:
        run: keyword arguments of ``wandb.init``: ``dir``, ``config``, ``project``, ``entity``, ``group``, ``job_type``,
            ``name``, ``tags``; keys that are absent or ``None`` stay unset.
        rows: the arguments of ``run.log``, one mapping per step, with keys such as ``"finetune/loss"``.
        summary: the run's summary, beside each key's last value.
        exit_code: 0 for a run that succeeded.

    Returns:
        The run's folder, ``<dir>/wandb/offline-run-<time>-<run_id>``, the argument of ``wandb sync``.

    Raises:
        OSError: the folder cannot be written.
    """
    run_id, started = generate_id(), time.time()
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
    client = {"stream_id": run_id}  # marks the records that the client writes, as opposed to the service
    yield Record(header={"version_info": {"producer": wandb.__version__, "min_consumer": MIN_CONSUMER}}, _info=client)
    yield Record(run=run_record(run, run_id, started), _info=client)
    for metric in stage_metrics():
        yield Record(metric=metric, _info=client)
    for step, row in enumerate(rows):
        now = time.time()
        logged = {**row, "_timestamp": now, "_runtime": now - started, "_step": step}
        items = [{"nested_key": [key], "value_json": to_json(value)} for key, value in logged.items()]
        yield runtime(started)
        yield Record(summary={"update": items})
        yield Record(history={"item": items, "step": {"num": step}})
    yield Record(summary={"update": plain_items(summary)}, _info=client)
    yield runtime(started)
    yield Record(exit={"exit_code": exit_code}, _info=client)


def run_record(run: Mapping[str, Any], run_id: str, started: float) -> dict[str, Any]:
    """Return the fields of the record that describes the run; W&B leaves out those that are ``None``."""
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
    """Yield the metric definitions by which each stage's curves are drawn over that stage's steps."""
    for stage in STAGES:
        axis = f"{stage}/step"
        yield {"name": axis, "options": {"hidden": True, "defined": True}}
        yield {"glob_name": f"{stage}/*", "step_metric": axis, "options": {"step_sync": True, "defined": True}}


def plain_items(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the items of a configuration or a summary, where W&B writes NaN as ``null`` (unlike in rows)."""
    nan = {key for key, value in values.items() if isinstance(value, float) and math.isnan(value)}
    return [{"key": key, "value_json": to_json(None if key in nan else value)} for key, value in values.items()]


def runtime(started: float) -> Any:
    """Return the record by which the service sets the summary's runtime in whole seconds."""
    seconds = to_json(int(time.time() - started))
    nested = {"nested_key": ["_wandb", "runtime"], "value_json": seconds}
    return Record(summary={"update": [nested, {"key": "_runtime", "value_json": seconds}]})


def numbered(records: Iterable[Any]) -> Iterator[Any]:
    """Number records from 1."""
    for number, record in enumerate(records, start=1):
        record.num = number
        yield record


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
