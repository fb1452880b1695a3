"""The training process's side of W&B: sends each job's rows to the writer process, waits for it only at the end."""

from __future__ import annotations

import atexit
import contextlib
import glob
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..environment import PACKAGE, ROOT
from .options import Mode, Wandb


class Publisher:
    """One writer process, which serves every job of this process one after the other."""

    def __init__(self) -> None:
        # An empty WANDB_MODE is an error to W&B; whoever sets one means that none is set.
        environment = {key: value for key, value in os.environ.items() if (key, value) != ("WANDB_MODE", "")}
        environment["WANDB_SILENT"] = "true"
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        # A file and no pipe: nobody reads before the end, and the answers of some 400 runs would fill a pipe.
        self._answers = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.tracking.wandb_writer"],
            stdin=subprocess.PIPE,
            stdout=self._answers,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training; the writer still has to end its run
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
        """Make a whole run that is finished already, between two runs of :meth:`start` to :meth:`finish`.

        Args:
            options: as of :meth:`start`.
            run: as of :meth:`start`.
            rows: each as of :meth:`log`: a stage and its row.
            summary: as of :meth:`finish`.
            exit_code: as of :meth:`finish`.
        """
        self._send(
            op="record",
            mode=_mode(options),
            timeout=options.timeout,
            run=dict(run),
            rows=[_staged(stage, row) for stage, row in rows],
            summary=dict(summary),
            exit_code=exit_code,
        )

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        line = json.dumps(message) + "\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the writer is gone and close() says so; the record on disk has everything

    def close(self) -> list[dict[str, Any]]:
        """Wait until everything is written; return the writer's answers: folders, addresses, warnings."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.communicate()
        self._answers.seek(0)
        found = [json.loads(line) for line in self._answers]
        self._answers.close()
        if self._process.returncode:
            found.append({"warning": f"W&B's writer process ended with exit code {self._process.returncode}"})
        return found


def _mode(options: Wandb) -> str:
    """Return the mode that options ask for, or the one that the environment does where they leave it open."""
    asked = {"offline": "offline", "dryrun": "offline", "online": "online"}
    mode = options.mode.name
    return asked.get(os.environ.get("WANDB_MODE", ""), mode) if options.mode is Mode.auto else mode


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
    """Tell whether a tracker wants W&B at all."""
    if not isinstance(options, Wandb) or options.mode is Mode.disabled:
        return False
    return not (options.mode is Mode.auto and os.environ.get("WANDB_MODE") == "disabled")


def _report(closing: Publisher) -> None:
    from .console import say

    answers = closing.close()
    for warning in dict.fromkeys(answer["warning"] for answer in answers if "warning" in answer):
        say(f"warning: {warning}", style="yellow")
    runs = [answer for answer in answers if "folder" in answer]
    online = [answer["url"] for answer in runs if answer["url"]]
    offline = [answer["folder"] for answer in runs if not answer["url"]]
    if online:
        say(f"W&B: {online[0]}" + (f" and {len(online) - 1} more runs" if len(online) > 1 else ""))
    if offline:
        say(
            f"W&B: {len(offline)} run{'s' * (len(offline) > 1)} kept offline; to upload: wandb sync {_pattern(offline)}"
        )


def _pattern(folders: list[str]) -> str:
    """Return a path, or the shell pattern of several jobs' runs, relative to the working folder where it lies below."""
    from .console import near

    if len(folders) == 1:
        return shell_word(near(Path(folders[0])))
    jobs = os.path.commonpath([str(Path(folder).parents[1]) for folder in folders])
    return f"{shell_word(near(Path(jobs)))}/*/wandb/offline-run-*"


def shell_word(path: str) -> str:
    """Quote a path for a shell where it needs that."""
    import shlex

    return shlex.quote(glob.escape(path) if "[" in path else path)
