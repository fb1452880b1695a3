"""Tracks one job: its rows and its summary go to its record on disk, and to W&B."""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.identity import job_id
from ..environment import git_state, versions
from ..errors import first_line
from .record_writer import RecordWriter, as_lines
from .trackers import Publisher, Wandb, publisher


class JobTracking:
    """A context manager over one job; an exception that leaves its block records the job as failed."""

    def __init__(self, folder: Path, config: Mapping[str, Any], overrides: list[str]) -> None:
        self.folder, self.config, self.overrides = folder, config, overrides
        self.started = now()
        self._clock = time.perf_counter()
        self._publisher: Publisher | None = None
        self._options = Wandb()
        self._start: dict[str, Any] | None = None  # the message that begins the W&B run
        self._rows: list[dict[str, float]] | None = None  # of a job recorded after its end
        self._ended = False
        self.record = RecordWriter(folder)

    def start_tracker(self, options: Any) -> None:
        """Start the process that the job's tracker needs; the W&B run begins with :meth:`start_run`."""
        if isinstance(options, Wandb) and options.effective_mode() != "disabled":
            self._options, self._publisher = options, publisher()

    def start_run(self, group: str | None, fingerprint: str) -> None:
        """Begin the job's W&B run, if its tracker is W&B; ``group`` is the sweep's name, ``fingerprint`` the data's."""
        if self._publisher is not None:
            self._start = self._describe(group, fingerprint)
            self._publisher.send("start", **self._start)

    def log(self, stage: str, row: Mapping[str, float]) -> None:
        """Record a logged step of a stage."""
        self.record.log(as_lines(stage, [row]))
        if self._publisher is not None and self._start is not None:
            self._publisher.send("log", row=_prefixed(stage, row))

    def record_rows(self, stages: Sequence[StageRows], group: str | None, fingerprint: str) -> None:
        """Record all rows of a job that has ended; W&B receives them with :meth:`finish`."""
        self.record.log("".join(stage.lines for stage in stages))
        if self._publisher is not None:
            self._start = self._describe(group, fingerprint)
            self._rows = [_prefixed(stage.name, row) for stage in stages for row in stage.rows]

    def finish(self, status: str, **fields: Any) -> dict[str, Any]:
        """Write the summary, whose ``fields`` depend on the status (docs/architecture.md), and return it."""
        summary = {
            **blank_summary(self.config),
            "status": status,
            "overrides": self.overrides,
            "seconds": round(time.perf_counter() - self._clock, 4),
            "started": self.started,
            **fields,
        }
        self.record.finish(summary)
        self._ended = True
        if self._publisher is not None and self._start is not None:
            end = {"summary": wandb_summary(summary), "exit_code": int(status == "failed")}
            if self._rows is None:
                self._publisher.send("finish", **end)
            else:
                self._publisher.send("record", **self._start, rows=self._rows, **end)
        return summary

    def fail(self, error: Exception) -> None:
        """Write the summary of a job that failed."""
        self.finish("failed", error=first_line(error))

    def _describe(self, group: str | None, fingerprint: str) -> dict[str, Any]:
        options = self._options
        run = {  # the arguments of `wandb.init`
            "project": options.project,
            "entity": options.entity,
            "group": options.group or group,
            "job_type": self.config["strategy"]["name"],
            "tags": list(options.tags),
            "name": self.folder.name,
            "dir": str(self.folder.absolute()),
            "config": {**self.config, "job_id": job_id(self.config), "data_fingerprint": fingerprint},
        }
        return {"mode": options.effective_mode(), "timeout": options.timeout, "run": run}

    def __enter__(self) -> JobTracking:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # An interrupted job has no summary and counts as unfinished.
        if isinstance(error, Exception) and not self._ended:
            self.fail(error)
        self.record.close()


def _prefixed(stage: str, row: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in row.items()}  # W&B draws each stage over its own steps


@dataclass(frozen=True)
class StageRows:
    """A stage's rows; jobs that share a stage share them and their lines in the record."""

    name: str
    rows: Sequence[Mapping[str, float]]

    @functools.cached_property
    def lines(self) -> str:
        """The rows' lines in the record."""
        return as_lines(self.name, self.rows)


def now() -> str:
    """Return the time in the format of the record."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def blank_summary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a job about which only its configuration is known."""
    return {
        "status": "failed",
        "job_id": job_id(config),
        "overrides": [],
        "config": config,
        "objective": None,
        "metrics": {},
        **dict.fromkeys(("error", "last_finite_step", "parameters", "flops_per_step", "bytes", "moved")),
        "signals": {},
        "seconds": None,
        "data": None,
        "versions": versions(),
        "git": git_state(),
        "started": now(),
    }


def wandb_summary(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a summary's numbers for W&B, which imports pandas where there are texts or missing values."""
    found = {name: summary[name] for name in ("objective", "last_finite_step", "flops_per_step", "seconds")}
    for kind in ("parameters", "bytes"):
        found |= {f"{name}_{kind}": count for name, count in (summary[kind] or {}).items()}
    if summary["moved"]:
        found |= {"rounded": summary["moved"]["rounded"], "frozen_changed": len(summary["moved"]["frozen_changed"])}
    if "stability" in summary:  # the sentences are in the record only
        found |= {**summary["stability"], "warnings": len(summary.get("warnings", ()))}
    shown = {**summary["metrics"], **summary["signals"], **found}
    return {name: value for name, value in shown.items() if value is not None}
