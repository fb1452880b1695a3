"""``tracker=disk`` and ``tracker=wandb``: their options, and the connection to the process that talks to W&B."""

from __future__ import annotations

import atexit
import contextlib
import functools
import glob
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..config.hparams import POSITIVE, hparam
from ..environment import PACKAGE, ROOT
from .console import echo, relative_path

WandbMode = Enum("WandbMode", ["auto", "online", "offline", "disabled"])


@dataclass(frozen=True)
class Disk:
    """Only the record on disk."""


@dataclass(frozen=True)
class Wandb:
    """One W&B run per job. ``mode=auto`` is online if an API key is found, else offline; it never prompts."""

    mode: WandbMode = hparam(WandbMode.auto)
    project: str = hparam("thaw")
    entity: str | None = hparam(None)
    group: str | None = hparam(None)
    tags: tuple[str, ...] = hparam(())
    timeout: float = hparam(10.0, POSITIVE)

    def effective_mode(self) -> str:
        """Return the mode; ``auto`` defers to ``WANDB_MODE``."""
        given = os.environ.get("WANDB_MODE", "").replace("dryrun", "offline")
        return given if self.mode is WandbMode.auto and given in WandbMode.__members__ else self.mode.name


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

    def send(self, op: str, **message: Any) -> None:
        """Send a message (see ``wandb_process.py``)."""
        assert self._process.stdin is not None
        line = json.dumps({"op": op, **message}) + "\n"
        with contextlib.suppress(BrokenPipeError, ValueError):  # a process that died is reported by close()
            self._process.stdin.write(line)
            self._process.stdin.flush()

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


@functools.cache
def publisher() -> Publisher:
    """Return this process's publisher, started at the first call and closed at exit."""
    started = Publisher()
    atexit.register(_report, started)
    return started


def _report(closing: Publisher) -> None:
    answers = closing.close()
    for warning in dict.fromkeys(answer["warning"] for answer in answers if "warning" in answer):
        echo(f"warning: {warning}", style="yellow")
    runs = [answer for answer in answers if "folder" in answer]
    online = [answer["url"] for answer in runs if answer["url"]]
    offline = [answer["folder"] for answer in runs if not answer["url"]]
    if online:
        echo(f"W&B: {online[0]}" + (f" and {len(online) - 1} more runs" if len(online) > 1 else ""))
    if offline:
        several = len(offline) > 1
        folder = os.path.commonpath([Path(run).parents[1] for run in offline]) if several else offline[0]
        path = relative_path(Path(folder))
        word = shlex.quote(glob.escape(path) if "[" in path else path)
        pattern = f"{word}/*/wandb/offline-run-*" if several else word
        echo(f"W&B: {len(offline)} run{'s' * several} kept offline; to upload: wandb sync {pattern}")
