"""Sends each job's rows to the process that talks to W&B, and waits for it only at the end."""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..environment import PACKAGE, ROOT
from .options import Wandb, WandbMode


class Publisher:
    """The connection to one W&B process, which serves all jobs of this process one after the other."""

    def __init__(self) -> None:
        # W&B refuses an empty WANDB_MODE, which is meant as unset.
        environment = {key: value for key, value in os.environ.items() if (key, value) != ("WANDB_MODE", "")}
        environment["WANDB_SILENT"] = "true"
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        # A file, because the answers are read at the end only and those of some 400 runs would fill a pipe.
        self._answers = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.tracking.wandb_process"],
            stdin=subprocess.PIPE,
            stdout=self._answers,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C ends the training; this process must still finish its run
        )

    def start(self, options: Wandb, run: Mapping[str, Any]) -> None:
        """Begin a run; ``run`` are keyword arguments of ``wandb.init``."""
        self._send(op="start", mode=_mode(options), timeout=options.timeout, run=dict(run))

    def log(self, stage: str, row: Mapping[str, float]) -> None:
        """Log a row under its stage's own step axis."""
        self._send(op="log", row=_staged(stage, row))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """End the current run."""
        self._send(op="finish", summary=dict(summary), exit_code=exit_code)

    def record(
        self,
        options: Wandb,
        run: Mapping[str, Any],
        rows: Iterable[tuple[str, Mapping[str, float]]],
        summary: Mapping[str, Any],
        exit_code: int,
    ) -> None:
        """Make the complete run of a job that has ended; the arguments are those of the other methods."""
        lines = [_staged(stage, row) for stage, row in rows]
        end = {"rows": lines, "summary": dict(summary), "exit_code": exit_code}
        self._send(op="record", mode=_mode(options), timeout=options.timeout, run=dict(run), **end)

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        line = json.dumps(message) + "\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the process has died, which close() reports; the record on disk is complete

    def close(self) -> list[dict[str, Any]]:
        """Wait until everything is written; return the process's answers: folders, addresses, warnings."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.communicate()
        self._answers.seek(0)
        found = [json.loads(line) for line in self._answers]
        self._answers.close()
        if self._process.returncode:
            found.append({"warning": f"the W&B process ended with exit code {self._process.returncode}"})
        return found


def _mode(options: Wandb) -> str:
    """Return the options' mode; ``auto`` defers to ``WANDB_MODE``."""
    modes = {"offline": "offline", "dryrun": "offline", "online": "online"}
    mode = options.mode.name
    return modes.get(os.environ.get("WANDB_MODE", ""), mode) if options.mode is WandbMode.auto else mode


def _staged(stage: str, row: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in row.items()}


_publisher: Publisher | None = None


def publisher() -> Publisher:
    """Return this process's publisher, started at the first call and closed at exit."""
    global _publisher
    if _publisher is None:
        _publisher = Publisher()
        atexit.register(_report, _publisher)
    return _publisher


def enabled(options: Any) -> bool:
    """Tell whether a tracker uses W&B."""
    if not isinstance(options, Wandb) or options.mode is WandbMode.disabled:
        return False
    return not (options.mode is WandbMode.auto and os.environ.get("WANDB_MODE") == "disabled")


def _report(closing: Publisher) -> None:
    from .console import echo

    answers = closing.close()
    for warning in dict.fromkeys(answer["warning"] for answer in answers if "warning" in answer):
        echo(f"warning: {warning}", style="yellow")
    runs = [answer for answer in answers if "folder" in answer]
    online = [answer["url"] for answer in runs if answer["url"]]
    offline = [answer["folder"] for answer in runs if not answer["url"]]
    if online:
        echo(f"W&B: {online[0]}" + (f" and {len(online) - 1} more runs" if len(online) > 1 else ""))
    if offline:
        echo(
            f"W&B: {len(offline)} run{'s' * (len(offline) > 1)} kept offline; to upload: wandb sync {_pattern(offline)}"
        )


def _pattern(folders: list[str]) -> str:
    """Return a path, or the shell pattern of several jobs' runs, relative to the current folder if inside it."""
    from .console import relative_path

    if len(folders) == 1:
        return shell_word(relative_path(Path(folders[0])))
    jobs = os.path.commonpath([str(Path(folder).parents[1]) for folder in folders])
    return f"{shell_word(relative_path(Path(jobs)))}/*/wandb/offline-run-*"


def shell_word(path: str) -> str:
    """Quote a path for a shell if necessary."""
    return shlex.quote(glob.escape(path) if "[" in path else path)
