"""Runs commands in child processes, several at a time; one that is killed does not affect the others.

A child writes its own ``summary.json`` when it ends normally; for one that dies, the summary is written here. One loop
in the main thread starts, watches and ends all children.
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

from ..config.hparams import COUNT, NATURAL, NON_NEGATIVE, POSITIVE, check_values, hparam
from ..errors import UserError
from ..files import atomic_write, to_json_page
from ..tracking.job import now
from ..tracking.record_reader import Job, load_job
from ..tracking.record_writer import SUMMARY

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
    """A job as a command line.

    Attributes:
        label: its name on the console, for instance ``"#3 lr_fine=0.1 seed=0"``.
        command: the child's arguments, the program first.
        folder: the job's folder, where the child writes its ``summary.json`` unless it dies.
        summary: the fields of the summary that are known beforehand (``job_id``, ``config``, ``overrides``).
    """

    label: str
    command: tuple[str, ...]
    folder: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class IsolatedSettings:
    """Settings of ``hydra/launcher=isolated``.

    Attributes:
        slots: jobs at a time.
        devices: ``CUDA_VISIBLE_DEVICES`` of each slot (``"0"``, or ``"0,1"`` for two devices per job); empty leaves the
            environment unchanged.
        stagger: seconds between two starts.
        on_error: after a failure, ``continue`` with the other jobs or ``stop``: start no further job.
        retries: further attempts at a job that failed or was killed.
        timeout: seconds per attempt; one that takes longer is ended and counts as failed.

    Raises:
        UserError: the number of devices is neither 0 nor the number of slots.
    """

    slots: int = hparam(1, COUNT)
    devices: tuple[str, ...] = hparam(())
    stagger: float = hparam(0.0, NON_NEGATIVE)
    on_error: OnError = hparam(OnError["continue"])
    retries: int = hparam(0, NATURAL)
    timeout: float | None = hparam(None, POSITIVE)

    def __post_init__(self) -> None:
        if self.devices and len(self.devices) != self.slots:
            raise UserError(
                f"devices has {len(self.devices)} entries and slots is {self.slots}; allowed: one per slot, or none"
            )


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        status: ``completed``, ``diverged``, ``failed``, or ``skipped`` when it was never started.
        objective: the job's objective, infinite unless it completed.
        error: the reason of a failure, in one line.
        attempts: how often it was started.
    """

    status: str
    objective: float = math.inf
    error: str | None = None
    attempts: int = 0


def run_commands(
    jobs: Sequence[JobCommand], settings: IsolatedSettings, on_end: Callable[[JobCommand, JobResult], None]
) -> list[JobResult]:
    """Run every job in its own process. Must be called in the main thread.

    Ctrl-C, SIGTERM and SIGHUP end every child with its whole process group and are then handled as they were before;
    jobs that were running are left without a summary, so that they count as unfinished. A signal that this process
    ignores, such as SIGHUP under ``nohup``, stays ignored.

    Args:
        jobs: the jobs, started in this order.
        settings: how many at a time, and what happens when one fails.
        on_end: called once per job when it ends, except for jobs that a signal cut short.

    Returns:
        The results in the order of ``jobs``.

    Raises:
        UserError: a setting outside what is allowed.
    """
    check_values(settings)
    pool = _ProcessPool(jobs, settings, on_end)
    with _recorded_signals(STOPPING) as received:
        try:
            while pool.busy() and not received:
                pool.advance()
                time.sleep(POLL)
        finally:
            pool.end_all()
    if received:
        pool.skip_waiting()
        signal.raise_signal(received[0])
        raise KeyboardInterrupt  # if the caller's handler returned
    return [pool.results[index] for index in range(len(jobs))]


@contextlib.contextmanager
def _recorded_signals(signals: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """Record signals instead of being interrupted by them, so that no child is started and then lost."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in signals}
    replaced = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield received
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class _ProcessPool:
    """The jobs that wait, run and have ended, by their index."""

    def __init__(
        self, jobs: Sequence[JobCommand], settings: IsolatedSettings, on_end: Callable[[JobCommand, JobResult], None]
    ) -> None:
        self.jobs, self.settings, self.on_end = jobs, settings, on_end
        self.waiting = deque((index, 1) for index in range(len(jobs)))  # with the number of the next attempt
        self.free_slots = deque(range(settings.slots))
        self.running: dict[int, _Attempt] = {}
        self.results: dict[int, JobResult] = {}
        self._next_start = -math.inf

    def busy(self) -> bool:
        """Tell whether any job waits or runs."""
        return bool(self.waiting or self.running)

    def advance(self) -> None:
        """Collect the jobs that have ended and start those that can be started."""
        for index in self._ended():
            attempt = self.running.pop(index)
            self.free_slots.append(attempt.slot)
            self._collect(index, attempt)
        while self.waiting and self.free_slots and time.monotonic() >= self._next_start:
            index, number = self.waiting.popleft()
            self.running[index] = _Attempt(self.jobs[index], number, self.free_slots.popleft(), self.settings)
            self._next_start = time.monotonic() + self.settings.stagger

    def _ended(self) -> list[int]:
        return [index for index, attempt in self.running.items() if attempt.ended()]

    def _collect(self, index: int, attempt: _Attempt) -> None:
        result = attempt.result()
        if result.status == "failed" and attempt.number <= self.settings.retries:
            attempt.remove_failed_summary()  # until its last attempt, a job is unfinished
            self.waiting.appendleft((index, attempt.number + 1))
            return
        self._finish(index, result)
        if result.status == "failed" and self.settings.on_error is OnError["stop"]:
            self.skip_waiting()

    def _finish(self, index: int, result: JobResult) -> None:
        self.results[index] = result
        self.on_end(self.jobs[index], result)

    def skip_waiting(self) -> None:
        """Skip the jobs that were never started; a job between two attempts keeps its next one."""
        unstarted = [index for index, number in self.waiting if number == 1]
        self.waiting = deque((index, number) for index, number in self.waiting if number > 1)
        for index in unstarted:
            self._finish(index, JobResult("skipped"))

    def end_all(self) -> None:
        """End every child; those that had not finished keep no summary."""
        for attempt in self.running.values():
            attempt.end()
        deadline = time.monotonic() + 2 * GRACE  # a process that hangs in a driver cannot be killed
        while self.running and time.monotonic() < deadline:
            for index in self._ended():
                self.running.pop(index).remove_failed_summary()
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

    def result(self) -> JobResult:
        """Return the result from the child's summary, which is written here if the child died without one."""
        job = self._recorded()
        if job.status == "completed":
            return JobResult("completed", math.inf if job.objective is None else job.objective, None, self.number)
        if job.status == "diverged" or (job.status == "failed" and not self.timed_out):
            return JobResult(job.status, error=job.error, attempts=self.number)
        lines = self._log_lines()
        error = self._cause(next((line.strip() for line in reversed(lines) if not NOISE.match(line.strip())), ""))
        self._write_summary(error, lines)
        return JobResult("failed", error=error, attempts=self.number)

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

    def _log_lines(self) -> list[str]:
        """Return the last lines that this attempt printed."""
        with (self.job.folder / CONSOLE).open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]

    def _write_summary(self, error: str, lines: list[str]) -> None:
        unknown = dict.fromkeys(("objective", "last_finite_step", "parameters", "flops_per_step", "data"))
        known = {
            "status": "failed",
            "error": error,
            "metrics": {},
            "seconds": round(time.monotonic() - self.start_time, 4),
            "started": self.started,
            "log_tail": lines,
        }
        with atomic_write(self.job.folder / SUMMARY) as file:
            file.write(to_json_page({**self.job.summary, **unknown, **known}).encode())
