"""Runs jobs in child processes, several at a time; one that is killed does not affect the others.

A child writes its own ``summary.json`` when it ends normally; for one that dies, the summary is written here.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..config.hparams import COUNT, NATURAL, NON_NEGATIVE, POSITIVE, hparam
from ..errors import UserError
from ..tracking.job import now
from ..tracking.record_reader import Job, load_job
from ..tracking.record_writer import SUMMARY, write_summary

CONSOLE = "console.log"
POLL = 0.05  # seconds between two checks of the children
GRACE = 2.0  # seconds from SIGTERM to SIGKILL
TAIL_LINES, TAIL_BYTES, MAX_ERROR_LENGTH = 20, 1 << 14, 300

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the keyboard, a scheduler, a closed terminal

# Lines that libraries print after the one that names the error, and lines without a word.
NOISE = re.compile(r"\W*$|Set the environment variable HYDRA_FULL_ERROR|For simplicity, JAX has removed")

# A program that asks Linux to kill it when its parent dies, even by SIGKILL, then executes the command that follows the
# parent's id in its arguments. It is a program and not a `preexec_fn`, because code between fork and exec can deadlock
# where the parent has threads, as JAX does. Linux watches the parent's *thread*; therefore children are started in the
# main one. Other systems leave the request out.
_BIND_TO_PARENT = """
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG
except (ImportError, OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent died before the request
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
os.execvp(sys.argv[2], sys.argv[2:])
"""


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs ``command`` and is killed when this process dies (on Linux)."""
    return [sys.executable, "-ISc", _BIND_TO_PARENT, str(os.getpid()), *command]


OnError = Enum("OnError", {"continue": 1, "stop": 2})  # in this form because `continue` is a Python keyword


@dataclass(frozen=True)
class JobCommand:
    """A job as a command line."""

    label: str  # for the console, for instance "#3 lr_fine=0.1 seed=0"
    command: tuple[str, ...]  # the child's arguments, the program first
    folder: Path  # where the child writes its summary.json unless it dies
    summary: Mapping[str, Any]  # the fields of the summary that are known beforehand


@dataclass(frozen=True)
class IsolatedSettings:
    """Settings of ``hydra/launcher=isolated``, described in ``hydra_plugins/thaw_launcher/launchers.py``."""

    slots: int = hparam(1, COUNT)
    devices: tuple[str, ...] = hparam(())
    stagger: float = hparam(0.0, NON_NEGATIVE)
    on_error: OnError = hparam(OnError["continue"])
    retries: int = hparam(0, NATURAL)
    timeout: float | None = hparam(None, POSITIVE)

    def __post_init__(self) -> None:
        if self.devices and len(self.devices) != self.slots:
            given = f"devices has {len(self.devices)} entries and slots is {self.slots}"
            raise UserError(f"{given}; allowed: one per slot, or none")


# Called once per job when it ends, with its record and the number of attempts: 0 if it was skipped.
OnEnd = Callable[[JobCommand, Job, int], None]


def run_commands(jobs: Sequence[JobCommand], settings: IsolatedSettings, on_end: OnEnd) -> None:
    """Run every job in its own process, started in order. Must be called in the main thread.

    Ctrl-C, SIGTERM and SIGHUP end every child with its whole process group and are then handled as they were before;
    jobs that were running count as unfinished. A signal that this process ignores (``nohup``) stays ignored.
    """
    pool = _ProcessPool(jobs, settings, on_end)
    with _recorded_signals(STOPPING) as received:
        try:
            while (pool.waiting or pool.running) and not received:
                pool.advance()
                time.sleep(POLL)
        finally:
            pool.end_all()
    if received:
        pool.skip_waiting()
        signal.raise_signal(received[0])
        raise KeyboardInterrupt  # if the caller's handler returned


@contextlib.contextmanager
def _recorded_signals(signals: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """Record signals instead of being interrupted by them, so that no child is started and then lost."""
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in signals}
    replaced = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield received
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class _ProcessPool:
    """The jobs that wait and run."""

    def __init__(self, jobs: Sequence[JobCommand], settings: IsolatedSettings, on_end: OnEnd) -> None:
        self.settings, self.on_end = settings, on_end
        self.waiting = deque((job, 1) for job in jobs)  # with the number of the next attempt
        self.free_slots = deque(range(settings.slots))
        self.running: list[_Attempt] = []
        self._next_start = -math.inf

    def advance(self) -> None:
        """Collect the jobs that have ended and start those that can be started."""
        for attempt in self._ended():
            self.running.remove(attempt)
            self.free_slots.append(attempt.slot)
            self._collect(attempt)
        while self.waiting and self.free_slots and time.monotonic() >= self._next_start:
            job, number = self.waiting.popleft()
            self.running.append(_Attempt(job, number, self.free_slots.popleft(), self.settings))
            self._next_start = time.monotonic() + self.settings.stagger

    def _ended(self) -> list[_Attempt]:
        return [attempt for attempt in self.running if attempt.ended()]

    def _collect(self, attempt: _Attempt) -> None:
        record = attempt.result()
        if record.status == "failed" and attempt.number <= self.settings.retries:
            attempt.remove_failed_summary()  # until its last attempt, a job is unfinished
            self.waiting.appendleft((attempt.job, attempt.number + 1))
            return
        self.on_end(attempt.job, record, attempt.number)
        if record.status == "failed" and self.settings.on_error is OnError["stop"]:
            self.skip_waiting()

    def skip_waiting(self) -> None:
        """Skip the jobs that were never started; a job between two attempts keeps its next one."""
        unstarted = [job for job, number in self.waiting if number == 1]
        self.waiting = deque((job, number) for job, number in self.waiting if number > 1)
        for job in unstarted:
            self.on_end(job, Job(job.label, "skipped"), 0)

    def end_all(self) -> None:
        """End every child; those that had not finished keep no summary."""
        for attempt in self.running:
            attempt.end()
        deadline = time.monotonic() + 2 * GRACE  # a process that hangs in a driver cannot be killed
        while self.running and time.monotonic() < deadline:
            for attempt in self._ended():
                self.running.remove(attempt)
                attempt.remove_failed_summary()
            time.sleep(POLL)


class _Attempt:
    """One child process, the leader of its own process group."""

    def __init__(self, job: JobCommand, number: int, slot: int, settings: IsolatedSettings) -> None:
        self.job, self.number, self.slot, self.timeout = job, number, slot, settings.timeout
        self.started = now()
        self.timed_out = False
        self._kill_at = math.inf
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        if settings.devices:
            environment["CUDA_VISIBLE_DEVICES"] = settings.devices[slot]
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / SUMMARY).unlink(missing_ok=True)  # of an earlier attempt
        with (job.folder / CONSOLE).open("ab") as log:
            if number == 1:
                log.truncate(0)
            else:
                log.write(f"\n--- attempt {number} of {settings.retries + 1} ---\n".encode())
            self._log_start = log.tell()
            log.flush()
            self.start_time = time.monotonic()
            self.process = subprocess.Popen(
                bound_to_parent(job.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def end(self) -> None:
        """Send SIGTERM to the process group; :meth:`ended` sends SIGKILL after :data:`GRACE`."""
        if self._kill_at == math.inf:
            self._kill_at = time.monotonic() + GRACE
            self._signal(signal.SIGTERM)

    def ended(self) -> bool:
        """Tell whether the child and its group have ended; end one that takes longer than the timeout."""
        exited = self.process.poll() is not None
        now = time.monotonic()
        if not exited and self.timeout is not None and now > self.start_time + self.timeout:
            self.timed_out = True
            self.end()
        if now >= self._kill_at:
            self._signal(signal.SIGKILL)
        elif self._kill_at < math.inf and self._signal(0):
            return False  # the rest of the group has until `_kill_at`, too
        if exited:
            self._signal(signal.SIGKILL)  # processes that it left behind would keep its accelerator
        return exited

    def _signal(self, number: int) -> bool:
        """Send a signal to the process group; tell whether the group exists."""
        try:
            os.killpg(self.process.pid, number)
        except OSError:
            return False
        return True

    def remove_failed_summary(self) -> None:
        """Remove the summary if its status is ``failed``, because the job will run again."""
        if self._recorded().status == "failed":
            (self.job.folder / SUMMARY).unlink()

    def result(self) -> Job:
        """Return the child's record, whose summary is written here if the child died without one."""
        record = self._recorded()
        if record.status in ("completed", "diverged") or (record.status == "failed" and not self.timed_out):
            return record
        with (self.job.folder / CONSOLE).open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        last_line = next((line.strip() for line in reversed(lines) if not NOISE.match(line.strip())), "")
        end = {
            "status": "failed",
            "error": self._cause(last_line),
            "seconds": round(time.monotonic() - self.start_time, 4),
            "started": self.started,
            "log_tail": lines,
        }
        write_summary(self.job.folder, {**self.job.summary, **end})
        return self._recorded()

    def _recorded(self) -> Job:
        return load_job(self.job.folder, self.job.label)

    def _cause(self, last_line: str) -> str:
        code = self.process.returncode
        detail = f": {last_line[:MAX_ERROR_LENGTH]}" if last_line else ""
        if self.timed_out:
            return f"took longer than {self.timeout:g} s"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (out of memory?)"
        if code == -signal.SIGSEGV:
            return "segmentation fault"
        if code < 0:
            names = {int(number): number.name for number in signal.Signals}
            return f"killed by {names.get(-code, f'signal {-code}')}{detail}"
        return f"exit code {code}{detail}" if code else f"ended without a summary{detail}"
