"""Jobs that are too big to share a process: each runs as a child, and one that is killed takes no other with it.

A child writes its own record when it ends normally; for one that dies, its record is written here. One loop in the main
thread starts, watches and ends them all.
"""

from __future__ import annotations

import contextlib
import datetime
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
from ..tracking.record import SUMMARY
from ..tracking.records import Job, load_job

CONSOLE = "console.log"
POLL = 0.05  # seconds between two looks at the children
GRACE = 2.0  # seconds from SIGTERM to SIGKILL
TAIL_LINES, TAIL_BYTES, LONGEST_ERROR = 20, 1 << 14, 300

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the keyboard, a scheduler, a closed terminal

# What libraries print after the line that says what went wrong, and lines without a word.
NOISE = re.compile(r"\W*$|Set the environment variable HYDRA_FULL_ERROR|For simplicity, JAX has removed")

# Asks Linux to kill this process when its parent dies, even by SIGKILL, then becomes the command given behind the
# parent's id. It is a program and no `preexec_fn`, because code between fork and exec can deadlock where the parent has
# threads, as JAX does. Linux watches the parent's *thread*, hence the main one. Elsewhere the request is left out.
BOUND_TO_PARENT = """
import os, signal, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG
except (ImportError, OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # it died before the request
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
os.execvp(sys.argv[2], sys.argv[2:])
"""

OnError = Enum("OnError", {"continue": 1, "stop": 2})  # in this form because `continue` is a word of Python's


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        label: what people see, ``"#3 lr_fine=0.1 seed=0"`` for instance.
        command: the child's arguments, the program first.
        folder: the job's folder, where the child writes its ``summary.json`` unless it dies.
        summary: what of the summary is known beforehand (``job_id``, ``config``, ``overrides``).
    """

    label: str
    command: tuple[str, ...]
    folder: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """How jobs share the machine, and what happens when one fails.

    Attributes:
        slots: jobs at a time.
        devices: the accelerator of each slot, as its children's ``CUDA_VISIBLE_DEVICES`` (``"0"``, or ``"0,1"`` for two
            a job); empty leaves the environment alone.
        stagger: seconds between two starts.
        on_error: after a failure, ``continue`` with the other jobs or ``stop``: start no further job.
        retries: further tries of a job that failed or was killed.
        timeout: seconds a try may take; then it is ended and counts as failed.

    Raises:
        UserError: devices, but not one a slot.
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
                f"devices has {len(self.devices)} entries for slots={self.slots}; allowed: one a slot, or none"
            )


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: ``completed``, ``diverged``, ``failed``, or ``skipped`` when it was never started.
        objective: the job's objective, infinite unless it completed.
        error: what went wrong, in one line.
        tries: how often it was started.
    """

    status: str
    objective: float = math.inf
    error: str | None = None
    tries: int = 0


def run_isolated(tasks: Sequence[Task], settings: Settings, tell: Callable[[Task, Ended], None]) -> list[Ended]:
    """Run every task in a process of its own. Must be called in the main thread.

    Ctrl-C, SIGTERM and SIGHUP end every child with its whole process group and then take their usual course; jobs that
    were running are left without a summary, so that they count as unfinished.

    Args:
        tasks: the jobs, started in this order.
        settings: how they share the machine.
        tell: called once a job, as it ends; not for those that an interrupt cut short.

    Returns:
        How each ended, in the order of ``tasks``.

    Raises:
        UserError: a setting outside what is allowed.
    """
    check_values(settings)
    pool = _Pool(tasks, settings, tell)
    with _noted(STOPPING) as received:
        try:
            while pool.busy() and not received:
                pool.advance()
                time.sleep(POLL)
        finally:
            pool.end_all()
    if received:
        pool.skip_waiting()
        signal.raise_signal(received[0])
        raise KeyboardInterrupt  # where the caller's own handler came back
    return [pool.ended[index] for index in range(len(tasks))]


@contextlib.contextmanager
def _noted(signals: Sequence[signal.Signals]) -> Iterator[list[int]]:
    """Note signals instead of being interrupted, so that no child is started and then forgotten.

    Those that the caller ignores, as under ``nohup``, stay ignored.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in signals}
    heard = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in heard:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield received
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


class _Pool:
    """Who waits, who runs in which slot, who has ended. Tasks are known by their place."""

    def __init__(self, tasks: Sequence[Task], settings: Settings, tell: Callable[[Task, Ended], None]) -> None:
        self.tasks, self.settings, self.tell = tasks, settings, tell
        self.waiting = deque((index, 1) for index in range(len(tasks)))  # and which try it will be
        self.free = deque(range(settings.slots))
        self.running: dict[int, _Try] = {}
        self.ended: dict[int, Ended] = {}
        self._next_start = -math.inf

    def busy(self) -> bool:
        """Tell whether anything waits or runs."""
        return bool(self.waiting or self.running)

    def advance(self) -> None:
        """Take in what has ended and start what can be started."""
        for index in [index for index, run in self.running.items() if run.over()]:
            run = self.running.pop(index)
            self.free.append(run.slot)
            self._take_in(index, run)
        while self.waiting and self.free and time.monotonic() >= self._next_start:
            index, number = self.waiting.popleft()
            self.running[index] = _Try(self.tasks[index], number, self.free.popleft(), self.settings)
            self._next_start = time.monotonic() + self.settings.stagger

    def _take_in(self, index: int, run: _Try) -> None:
        ended = run.result()
        if ended.status == "failed" and run.number <= self.settings.retries:
            run.forget_failure()  # until its last try, a job is unfinished
            self.waiting.appendleft((index, run.number + 1))
            return
        self._end(index, ended)
        if ended.status == "failed" and self.settings.on_error is OnError["stop"]:
            self.skip_waiting()

    def _end(self, index: int, ended: Ended) -> None:
        self.ended[index] = ended
        self.tell(self.tasks[index], ended)

    def skip_waiting(self) -> None:
        """Give up the jobs that were never started; one between two tries still gets its next."""
        unstarted = [index for index, number in self.waiting if number == 1]
        self.waiting = deque((index, number) for index, number in self.waiting if number > 1)
        for index in unstarted:
            self._end(index, Ended("skipped"))

    def end_all(self) -> None:
        """End every child; those that had not finished keep no summary."""
        for run in self.running.values():
            run.end()
        patience = time.monotonic() + 2 * GRACE  # a process stuck in a driver cannot even be killed
        while self.running and time.monotonic() < patience:
            for index in [index for index, run in self.running.items() if run.over()]:
                self.running.pop(index).forget_failure()
            time.sleep(POLL)


class _Try:
    """One child, at the head of a process group of its own."""

    def __init__(self, task: Task, number: int, slot: int, settings: Settings) -> None:
        self.task, self.number, self.slot, self.timeout = task, number, slot, settings.timeout
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.timed_out = False
        self._kill_at = math.inf
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        if settings.devices:
            environment["CUDA_VISIBLE_DEVICES"] = settings.devices[slot]
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / SUMMARY).unlink(missing_ok=True)  # of an earlier try
        with (task.folder / CONSOLE).open("ab") as log:
            if number == 1:
                log.truncate(0)
            else:
                log.write(f"\n--- try {number} of {settings.retries + 1} ---\n".encode())
            self._log_start = log.tell()
            log.flush()
            self.clock = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, "-ISc", BOUND_TO_PARENT, str(os.getpid()), *task.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def end(self) -> None:
        """Ask the child and all that it started to end; :meth:`over` insists after a grace."""
        if self._kill_at == math.inf:
            self._kill_at = time.monotonic() + GRACE
            self._signal(signal.SIGTERM)

    def over(self) -> bool:
        """Tell whether the try has ended; ends one that takes too long."""
        exited = self.process.poll() is not None
        now = time.monotonic()
        if not exited and self.timeout is not None and now > self.clock + self.timeout:
            self.timed_out = True
            self.end()
        if now >= self._kill_at:
            self._signal(signal.SIGKILL)
        elif self._kill_at < math.inf and self._signal(0):
            return False  # the rest of the group has its grace, too
        if exited:
            self._signal(signal.SIGKILL)  # what it left behind would keep its accelerator
        return exited

    def _signal(self, number: int) -> bool:
        """Send a signal to the process group; tell whether there still is one."""
        try:
            os.killpg(self.process.pid, number)
        except OSError:
            return False
        return True

    def forget_failure(self) -> None:
        """Remove a summary that says failed: this was not the job's last word."""
        if self._recorded().status == "failed":
            (self.task.folder / SUMMARY).unlink()

    def result(self) -> Ended:
        """Return how the try ended by its own record, which is written for it if it died without one."""
        job = self._recorded()
        if job.status == "completed":
            return Ended("completed", math.inf if job.objective is None else job.objective, None, self.number)
        if job.status == "diverged" or (job.status == "failed" and not self.timed_out):
            return Ended(job.status, error=job.error, tries=self.number)
        lines = self._log_lines()
        error = self._cause(next((line.strip() for line in reversed(lines) if not NOISE.match(line.strip())), ""))
        self._write_summary(error, lines)
        return Ended("failed", error=error, tries=self.number)

    def _recorded(self) -> Job:
        return load_job(self.task.folder, self.task.label)

    def _cause(self, last_line: str) -> str:
        code = self.process.returncode
        said = f": {last_line[:LONGEST_ERROR]}" if last_line else ""
        if self.timed_out:
            return f"took longer than {self.timeout:g} s"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL (out of memory?)"
        if code == -signal.SIGSEGV:
            return "segmentation fault"
        if code < 0:
            names = {int(number): number.name for number in signal.Signals}
            return f"killed by {names.get(-code, f'signal {-code}')}{said}"
        return f"exit code {code}{said}" if code else f"ended without a summary{said}"

    def _log_lines(self) -> list[str]:
        """Return the last lines that this try printed."""
        with (self.task.folder / CONSOLE).open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]

    def _write_summary(self, error: str, lines: list[str]) -> None:
        unknown = dict.fromkeys(("objective", "last_finite_step", "parameters", "flops_per_step", "data"))
        facts = {
            "status": "failed",
            "error": error,
            "metrics": {},
            "seconds": round(time.monotonic() - self.clock, 4),
            "started": self.started,
            "log_tail": lines,
        }
        with atomic_write(self.task.folder / SUMMARY) as file:
            file.write(to_json_page({**self.task.summary, **unknown, **facts}).encode())
