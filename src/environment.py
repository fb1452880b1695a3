"""What a run's numbers depend on besides its configuration: library versions, the commit, the code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import __version__

PACKAGE_DIR = Path(__file__).parent
PACKAGE = __name__.partition(".")[0]  # "src" in a checkout, "thaw" in a wheel
ROOT = PACKAGE_DIR.parent
SWEEP_VARIABLE = "THAW_SWEEP"  # the name of the sweep that a job in its own process belongs to

# Packages and modules that cannot change a job's numbers: they run jobs, record them, and read their results.
WITHOUT_NUMBERS = ("analysis", "finished", "launch", "tracking", "predict.py", "train.py")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "omegaconf")
    return {
        "thaw": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Return the project's commit and whether its files differ from it; ``None`` outside a git checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


@functools.cache
def file_digest(path: Path) -> str:
    """Return the SHA-256 of a source file, read once per process: later edits do not change the code that runs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_digest(files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over source files, independent of where the package is installed."""
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(PACKAGE_DIR) if path.is_relative_to(PACKAGE_DIR) else path
        digest.update(f"{name.as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()[:16]


def numeric_sources() -> list[Path]:
    """Return the source files of this package that a job's numbers can depend on."""
    files = PACKAGE_DIR.rglob("*.py")
    return [path for path in files if path.relative_to(PACKAGE_DIR).parts[0] not in WITHOUT_NUMBERS]
