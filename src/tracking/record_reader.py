"""Reads the records of jobs from disk, one :class:`Job` per job's folder; imports neither JAX nor pandas."""

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
from .record_writer import METRICS, SUMMARY

STATUSES = ("completed", "diverged", "failed", "unfinished", "damaged")
STAGES = ("pretrain", "finetune")
NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

NUMBERS = ("objective", "flops_per_step", "seconds", "seconds_per_update", "compile_seconds")  # of a summary

RecordRow = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One job's record, from its folder or from W&B; fields that the record does not have are None."""

    name: str  # the job's folder relative to the sweep, or the W&B run's name
    status: str  # one of STATUSES: an unfinished job was killed or is running, a damaged one cannot be read
    job_id: str | None = None
    config: dict[str, Any] = field(default_factory=dict)  # resolved
    objective: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # final values by name, such as test_loss
    error: str | None = None
    last_finite_step: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    flops_per_step: float | None = None  # of fine-tuning
    seconds: float | None = None  # wall time of the job
    seconds_per_update: float | None = None  # of fine-tuning in steady state, without compilation
    compile_seconds: float | None = None
    data_fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    started: str | None = None
    warnings: tuple[str, ...] = ()  # of pre-training, one sentence each
    stability: dict[str, float] = field(default_factory=dict)  # what the warnings are based on
    # Reads the logged steps: dicts with `stage`, `step` (updates done) and values.
    rows: Callable[[], list[RecordRow]] = field(default=list, compare=False, repr=False)


def number(value: Any) -> Any:
    """Convert ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` to floats; return other values unchanged."""
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Apply :func:`number` to each value."""
    return {key: number(value) for key, value in values.items()}


def job_folders(sweep_dir: Path) -> Iterator[Path]:
    """Yield the folders, at any depth, with a ``summary.json`` or a ``.hydra/``; jobs are not nested."""
    for folder, children, files in os.walk(sweep_dir):
        if SUMMARY in files or ".hydra" in children:
            children.clear()
            yield Path(folder)


def load_jobs(sweep_dir: Path | str) -> list[Job]:
    """Read every job below a sweep's folder, sorted by name (``2`` before ``10``).

    A record that cannot be read becomes a job of status ``damaged`` whose ``error`` names the file. Raises a
    :class:`UserError` if ``sweep_dir`` is not a folder.
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
    """Make a job from its summary; a missing or wrong part is a :class:`ValueError`."""
    if not isinstance(summary, Mapping) or summary.get("status") not in STATUSES[:3]:
        raise ValueError(f"its status is not one of {', '.join(STATUSES[:3])}")
    part = {}
    for key in ("config", "metrics", "parameters", "data", "versions", "git", "stability"):
        part[key] = summary.get(key) or {}
        if not isinstance(part[key], dict):
            raise ValueError(f"'{key}' is not an object")
    return Job(
        name=name,
        config=part["config"],
        metrics=numbers(part["metrics"]),
        trainable_parameters=part["parameters"].get("trainable"),
        total_parameters=part["parameters"].get("total"),
        data_fingerprint=part["data"].get("fingerprint"),
        versions=part["versions"],
        git_commit=part["git"].get("commit"),
        warnings=tuple(summary.get("warnings") or ()),
        stability=numbers(part["stability"]),
        rows=rows,
        **{key: summary.get(key) for key in ("status", "job_id", "error", "last_finite_step", "started")},
        **{key: number(summary.get(key)) for key in NUMBERS},
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

    Raises a :class:`UserError` if another line is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for count, line in enumerate(lines, start=1):
        try:
            rows.append(numbers(json.loads(line)))  # no stage is called NaN
        except (ValueError, AttributeError) as error:
            if count < len(lines):
                raise UserError(f"line {count} of {path} is not a JSON object") from error
    return rows
