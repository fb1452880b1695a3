"""What a run's numbers depend on besides its configuration: library versions, the commit, the code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from . import __version__

PACKAGE_DIR = Path(__file__).parent
PACKAGE = __name__.partition(".")[0]  # "src" in a checkout, "thaw" where a wheel is installed
ROOT = PACKAGE_DIR.parent


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
    root = ROOT
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


# What cannot change a job's numbers: how results are read, watched and scheduled.
ASIDE = ("analysis", "tracking", "launch", "finished")


@functools.cache
def code_digest() -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the sources that a job's numbers can depend on."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE_DIR.rglob("*.py")):
        if path.relative_to(PACKAGE_DIR).parts[0] not in ASIDE:
            digest.update(f"{path.relative_to(PACKAGE_DIR)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


SWEEP_VARIABLE = "THAW_SWEEP"  # tells a job that runs in a process of its own which sweep it belongs to
