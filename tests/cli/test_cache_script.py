"""``scripts/cache.py`` as a user runs it."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from src.config.choices import CacheMode
from src.training.stage_cache import Entry, StageCache
from tests.commands import script

KEYS = [digit * 24 for digit in "abc"]
LABEL = "Mlp(widths=64x32, activation=relu), Regression, Sgd, lr 0.05, 200 steps, seed"


def run(*arguments: str | Path, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    where = [] if folder is None else ["--folder", folder]
    environment = {**os.environ, "COLUMNS": "80", **environment}
    return script("cache", *arguments, *where, timeout=60, environment=environment)


@pytest.fixture
def folder(tmp_path):
    """Three entries of about 40 kB, used in the order of their keys."""
    cache = StageCache(tmp_path / "cache", CacheMode.use, 10**9, pytest.fail)
    outcomes = [
        {"metrics": {"source_test_loss": 0.51234, "source_test_r2": float("nan")}},
        {"diverged": True, "last_finite_step": 37},
        {},
    ]
    for i, (key, outcome) in enumerate(zip(KEYS, outcomes, strict=True)):
        params = {"Dense_0/kernel": np.zeros(10_000, np.float32)}
        cache.put(key, Entry(params, [], {"stage": f"{LABEL} {i}", **outcome}))
        os.utime((tmp_path / "cache") / f"{key}.stage", (1.6e9 + i * 86400,) * 2)
    return tmp_path / "cache"


def test_ls(folder):
    done = run("ls", folder=folder, TZ="UTC")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    found = {key: next(line for line in lines if key in line) for key in KEYS}  # a line an entry, however long
    assert [line for line in lines if line in found.values()] == [found[key] for key in reversed(KEYS)]
    for i, key in enumerate(KEYS):
        assert f"{LABEL} {i}" in found[key]
        assert "kB" in found[key]
        assert f"2020-09-{13 + i} 12:26" in found[key]
    assert f"{LABEL} 0; source_test_loss 0.5123, source_test_r2 nan" in found[KEYS[0]]
    assert f"{LABEL} 1; diverged after update 37" in found[KEYS[1]]
    assert lines[-1] == f"3 entries, 121.0 kB in {folder}"


def test_ls_of_a_damaged_entry_and_of_nothing(folder, tmp_path):
    (folder / f"{KEYS[0]}.stage").write_bytes(b"")
    assert "damaged" in run("ls", folder=folder).stdout
    done = run("ls", folder=tmp_path / "none")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"0 entries, 0 bytes in {tmp_path / 'none'}\n", "")
    assert not (tmp_path / "none").exists()


def test_prune_to_a_limit_and_then_wholly(folder):
    (folder / "notes.txt").write_text("not an entry")
    done = run("prune", "--limit", "100 KB", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith(f"removed {KEYS[0]} (40.")
    assert first.endswith(f" kB) {LABEL} 0")
    assert last == f"removed 1 entry, 40.4 kB; left in {folder}: 2 entries, 80.6 kB"
    done = run("prune", folder=folder)
    assert done.stdout.splitlines()[-1].endswith("2 entries, 80.6 kB; left in " + f"{folder}: 0 entries, 0 bytes")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["prune", "--limit", "5 parsecs"], "error: --limit is '5 parsecs'; allowed: a size such as 500MB, 2GiB or 0\n"),
    (["ls", "--folder", "README.md"], "error: --folder is 'README.md', which is a file; allowed: a folder\n"),
])  # fmt: skip
def test_what_cannot_work_is_one_sentence(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_the_default_folder_is_that_of_the_runs():
    assert "outputs/cache" in run("ls", "--help").stdout
