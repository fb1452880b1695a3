"""Running the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(*arguments: str, module: str = "src.train", timeout: float = 180, **environment: str):
    """Run ``python -m <module> <arguments>`` from the project's root as a user would."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def train(folder: Path, *arguments: str, **environment: str):
    """Run one job whose record goes to ``folder``, without W&B unless asked for."""
    tracker = [] if any(a.startswith("tracker") for a in arguments) else ["tracker=disk"]
    return command(f"hydra.run.dir={folder}", *tracker, *arguments, **environment)


def sweep(folder: Path, *arguments: str, **environment: str):
    """Run a sweep into ``folder``, without W&B unless asked for."""
    tracker = [] if any(a.startswith("tracker") for a in arguments) else ["tracker=disk"]
    return command("-m", f"hydra.sweep.dir={folder}", *tracker, *arguments, **environment)


def summary(folder: Path) -> dict:
    """Return a job's summary."""
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path) -> list[dict]:
    """Return a job's logged rows."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
