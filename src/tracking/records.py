"""Reads the records of jobs from disk, one :class:`Job` per job's folder (docs/architecture.md).

This module imports neither JAX nor pandas, because launchers use it to find the jobs that have ended.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .record import METRICS, SUMMARY

STATUSES = ("completed", "diverged", "failed", "unfinished", "damaged")
STAGES = ("pretrain", "finetune")
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

RecordRow = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One job's record, from its folder or from W&B; fields that the record does not have are None.

    Attributes:
        name: the job's folder relative to the sweep, or the W&B run's name.
        status: one of :data:`STATUSES`; an `unfinished` job was killed or is running, a `damaged` one cannot be read.
        config: the resolved configuration.
        metrics: final values by name, such as ``test_loss``.
        flops_per_step: floating-point operations of one fine-tuning step.
        seconds: wall time of the job.
        seconds_per_update: time of one fine-tuning update in steady state, without compilation.
        compile_seconds: time of compilation.
        warnings: of pre-training, one sentence each.
        stability: the numbers that the warnings are based on.
        rows: reads the logged steps when called: dicts with ``stage``, ``step`` (updates done) and values.
    """

    name: str
    status: str
    job_id: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    objective: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    last_finite_step: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    flops_per_step: float | None = None
    seconds: float | None = None
    seconds_per_update: float | None = None
    compile_seconds: float | None = None
    data_fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    started: str | None = None
    warnings: tuple[str, ...] = ()
    stability: dict[str, float] = field(default_factory=dict)
    rows: Callable[[], list[RecordRow]] = field(default=list, compare=False, repr=False)


def number(value: Any) -> Any:
    """Convert ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` to floats; return other values unchanged."""
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def job_folders(sweep_dir: Path) -> Iterator[Path]:
    """Yield the folders, at any depth, with a ``summary.json`` or a ``.hydra/``; jobs are not nested."""
    for folder, children, files in os.walk(sweep_dir):
        if SUMMARY in files or ".hydra" in children:
            children.clear()
            yield Path(folder)


def load_jobs(sweep_dir: Path | str) -> list[Job]:
    """Read every job below a sweep's folder, sorted by name (``2`` before ``10``).

    A record that cannot be read becomes a job of status ``damaged`` whose ``error`` names the file.

    Raises:
        UserError: ``sweep_dir`` is not a folder.
    """
    sweep_dir = Path(sweep_dir)
    if not sweep_dir.is_dir():
        raise UserError(f"there is no sweep folder '{sweep_dir}'")
    jobs = (load_job(folder, relative_name(folder, sweep_dir)) for folder in job_folders(sweep_dir))
    return sorted(jobs, key=lambda job: natural_key(job.name))


def relative_name(folder: Path, sweep_dir: Path) -> str:
    """Return a job's folder relative to the sweep's; if they are the same, the folder's name."""
    return folder.resolve().name if folder == sweep_dir else folder.relative_to(sweep_dir).as_posix()


def natural_key(name: str) -> list[Any]:
    """Sort key that compares runs of digits as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def load_job(folder: Path, name: str) -> Job:
    """Read one job's folder; a record that cannot be read becomes a ``damaged`` job (:func:`load_jobs`)."""
    rows = functools.partial(read_rows, folder / METRICS)
    path = folder / SUMMARY
    try:
        if path.exists():
            return job_from_summary(json.loads(path.read_text(encoding="utf-8")), name, rows)
        path = folder / ".hydra" / "config.yaml"
        return Job(name, "unfinished", config=read_hydra_config(path), rows=rows)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's messages span lines
        return Job(name, "damaged", error=f"{path} cannot be read: {reason}", rows=rows)


def job_from_summary(summary: Any, name: str, rows: Callable[[], list[RecordRow]]) -> Job:
    """Make a job from the content of its ``summary.json``.

    Raises:
        ValueError: a required part is missing or has the wrong type.
    """
    if not isinstance(summary, Mapping) or summary.get("status") not in STATUSES[:3]:
        raise ValueError(f"its status is not one of {', '.join(STATUSES[:3])}")
    part = {}
    for key in ("config", "metrics", "parameters", "data", "versions", "git", "stability"):
        part[key] = summary.get(key) or {}
        if not isinstance(part[key], dict):
            raise ValueError(f"'{key}' is not an object")
    return Job(
        name=name,
        status=summary["status"],
        job_id=summary.get("job_id"),
        config=part["config"],
        objective=number(summary.get("objective")),
        metrics={key: number(value) for key, value in part["metrics"].items()},
        error=summary.get("error"),
        last_finite_step=summary.get("last_finite_step"),
        trainable_parameters=part["parameters"].get("trainable"),
        total_parameters=part["parameters"].get("total"),
        flops_per_step=number(summary.get("flops_per_step")),
        seconds=number(summary.get("seconds")),
        seconds_per_update=number(summary.get("seconds_per_update")),
        compile_seconds=number(summary.get("compile_seconds")),
        data_fingerprint=part["data"].get("fingerprint"),
        versions=part["versions"],
        git_commit=part["git"].get("commit"),
        started=summary.get("started"),
        warnings=tuple(summary.get("warnings") or ()),
        stability={key: number(value) for key, value in part["stability"].items()},
        rows=rows,
    )


def read_hydra_config(path: Path) -> dict[str, Any]:
    """Read the configuration that Hydra composed; ``${...}`` references are resolved if possible."""
    text = path.read_text(encoding="utf-8")
    config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    if not isinstance(config, dict):
        raise ValueError("it is not a mapping")
    if "${" not in text:
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException:  # a resolver that only the running job registers
        return config


def read_rows(path: Path) -> list[RecordRow]:
    """Read a job's logged steps, without an incomplete last line (of a killed job); a missing file has no rows.

    Raises:
        UserError: another line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for count, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({key: value if key == "stage" else number(value) for key, value in row.items()})
        except (ValueError, AttributeError) as error:
            if count < len(lines):
                raise UserError(f"line {count} of {path} is not a JSON object") from error
    return rows
