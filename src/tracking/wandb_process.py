"""The process that talks to W&B: reads JSON lines from stdin, makes one run per job, answers on stdout.

Training therefore neither waits for W&B nor fails because of it. The input ends when the training process ends, however
that happens; a run that was not finished by then is marked as failed.

Messages: ``start`` with the run's settings, ``log`` with a row, ``finish`` with the summary and exit code; or, between
two such runs, ``record`` with all of these for a job that has ended. Answers: each run's location, and warnings.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from ..errors import first_line
from .record_reader import STAGES

SERVICE_SETTINGS = {  # switches off what the record on disk contains already
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "quiet": True,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class RunWriter:
    """Makes W&B runs from messages."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.online: bool | None = None  # decided once, at the first run
        self.run: Any = None

    def handle(self, message: dict[str, Any]) -> None:
        """Act on one message."""
        op = message.pop("op")
        if op in ("start", "record"):
            getattr(self, op)(**message)
        elif self.run is not None and op == "log":
            self.run.log(message["row"])
        elif self.run is not None and op == "finish":
            self.run.summary.update(message["summary"])
            self.finish(message["exit_code"])

    def record(
        self,
        mode: str,
        timeout: float,
        run: dict[str, Any],
        rows: list[dict[str, float]],
        summary: dict[str, float],
        exit_code: int,
    ) -> None:
        """Make a complete run: offline by writing its file directly, which is much faster than W&B's client."""
        from .wandb_files import write_offline_run

        if not self.goes_online(mode, timeout) and (completed := with_wandb_settings(run)) is not None:
            self.answer(folder=str(write_offline_run(completed, rows, summary, exit_code)), url=None)
            return
        self.start(mode, timeout, run)
        for row in rows:
            self.run.log(row)
        self.run.summary.update(summary)
        self.finish(exit_code)

    def start(self, mode: str, timeout: float, run: dict[str, Any]) -> None:
        """Begin a run, online if requested and possible, else offline."""
        import wandb

        settings: Any = {**SERVICE_SETTINGS, "init_timeout": timeout, "finish_timeout": 6 * timeout}
        # create_new: by default a second init in a process returns the first run and ignores the new settings.
        options: Any = {**run, "reinit": "create_new", "settings": wandb.Settings(**settings)}
        if self.goes_online(mode, timeout):
            try:
                self.run = wandb.init(mode="online", **options)
            except (wandb.Error, TimeoutError, OSError) as error:
                self.online = False
                self.answer(warning=f"W&B's server cannot be used ({first_line(error)}): continuing offline")
        if not self.online:
            self.run = wandb.init(mode="offline", **options)
        for stage in STAGES:
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.answer(folder=os.path.dirname(self.run.dir), url=self.run.url if self.online else None)  # noqa: PTH120

    def goes_online(self, mode: str, timeout: float) -> bool:
        """Tell whether runs are online; never prompts."""
        import wandb

        if self.online is None:
            self.online = False
            try:
                self.online = mode != "offline" and wandb.login(prompt=False, verify=False, timeout=int(timeout) or 1)
                if mode == "online" and not self.online:
                    self.answer(warning="W&B has no API key here (set one with `wandb login`): continuing offline")
            except (wandb.Error, TimeoutError, OSError, ValueError) as error:
                self.answer(warning=f"W&B cannot log in ({first_line(error)}): continuing offline")
        return self.online

    def finish(self, exit_code: int) -> None:
        """End the current run, if there is one."""
        run, self.run = self.run, None
        if run is not None:
            run.finish(exit_code=exit_code)

    def answer(self, **fields: Any) -> None:
        """Send an answer to the training process, if it is still running."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(fields), file=self.answers, flush=True)


def with_wandb_settings(run: dict[str, Any]) -> dict[str, Any] | None:
    """Add entity and group from the environment and W&B's settings files to a run.

    Returns ``None`` if the run needs W&B's client: under W&B's sweep agent, which has chosen the run's id, and where
    the run is to be resumed or has notes.
    """
    import wandb

    settings = wandb.setup().settings
    if any((settings.run_id, settings.sweep_id, settings.resume, settings.resume_from, settings.run_notes)):
        return None
    found = {"entity": settings.entity, "group": settings.run_group}
    return {**run, **{name: run.get(name) or value for name, value in found.items()}}


def main() -> None:
    """Handle messages until the input ends."""
    # W&B's own output must not be read as answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    writer = RunWriter(answers)
    # The pipe is read by a thread, so that the training process never waits for W&B.
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: [*map(inbox.put, sys.stdin), inbox.put("")], daemon=True).start()
    import wandb

    wandb.setup()  # starts W&B's service now, while the training process is still importing JAX
    for line in iter(inbox.get, ""):
        try:
            writer.handle(json.loads(line))
        except Exception as error:  # noqa: BLE001  (W&B may fail; the training continues)
            writer.answer(warning=f"W&B: {first_line(error)}")
    writer.finish(exit_code=1)
    wandb.teardown()  # waits until everything is on disk, or uploaded
    os._exit(0)  # the training process waits for this one, and a normal exit would take another 0.2 s


if __name__ == "__main__":
    main()
