"""Runs the real command line, in processes forked from one that has already imported the libraries.

Importing takes a run two to four seconds, and there are some two hundred runs. A forked process has the libraries but
no module of the project; its arguments, environment, streams and exit code are its own.

Every process that is started here ends with the test that started it, and with the test process.
"""

import atexit
import contextlib
import ctypes
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARIES = ("jax", "flax.linen", "optax", "hydra.main", "pandas", "rich.progress", "safetensors", "matplotlib.pyplot")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(LIBRARIES))


def command(*arguments: str, module: str = "src.train", timeout: float = 180, **environment: str):
    """Run ``python -m <module> <arguments>`` from the project's root."""
    return python("-m", module, *arguments, timeout=timeout, environment={**os.environ, **environment})


def script(name: str, *arguments: str | Path, timeout: float = 180, environment: Mapping[str, str] | None = None):
    """Run ``python scripts/<name>.py <arguments>`` from the project's root."""
    return python(f"scripts/{name}.py", *map(str, arguments), timeout=timeout, environment=environment or os.environ)


def python(*line: str, timeout: float, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python <line>`` and return its exit code and output."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("stdout", "stderr"))
        process = FORKS.Process(target=_python, args=(ROOT, line, dict(environment), out, err))
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(line, timeout, out.read_text(), err.read_text())
        finally:
            end_group(process.pid)
            process.join()
        return subprocess.CompletedProcess(list(line), process.exitcode, out.read_text(), err.read_text())


def _python(root: Path, line: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    """Do in a forked process what the interpreter does with ``python <line>``."""
    os.setsid()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGKILL))  # PR_SET_PDEATHSIG: end with the fork server
    for path, stream in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(root)
    try:
        if line[0] == "-m":
            sys.argv, sys.path[0] = list(line[1:]), str(root)
            runpy.run_module(line[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = list(line), str(root / "scripts")
            runpy.run_path(line[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


@contextlib.contextmanager
def running(*line: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run ``python <line>`` from the project's root during the block, then kill its process group."""
    from src.launch.process_pool import bound_to_parent  # not at the top: forked processes import this module

    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
    command = bound_to_parent([sys.executable, *line])
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        end_group(process.pid)
        process.communicate()


def end_group(leader: int | None) -> None:
    """Kill the processes of a group that are still running."""
    if leader is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def train(folder: Path, *arguments: str, **environment: str):
    """Run one job whose record goes to ``folder``, without W&B unless ``arguments`` name a tracker."""
    tracker = [] if any(a.startswith("tracker") for a in arguments) else ["tracker=disk"]
    return command(f"hydra.run.dir={folder}", *tracker, *arguments, **environment)


def sweep(folder: Path, *arguments: str, **environment: str):
    """Run a sweep into ``folder``, without W&B unless ``arguments`` name a tracker."""
    tracker = [] if any(a.startswith("tracker") for a in arguments) else ["tracker=disk"]
    return command("-m", f"hydra.sweep.dir={folder}", *tracker, *arguments, **environment)


def summary(folder: Path) -> dict:
    """Return a job's summary."""
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path) -> list[dict]:
    """Return a job's logged rows."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
