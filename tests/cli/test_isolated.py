"""``hydra/launcher=isolated`` through the real command line: a job that dies hurts no other."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.test_fused import jobs, running_sweep
from tests.commands import summary, sweep

ISOLATED = ("hydra/launcher=isolated", "hydra.launcher.slots=2")


def process_of(*words: str) -> int | None:
    """Return a running process whose command line holds all the words."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if all(word in line for word in words) and "-m src.train" in line:
                return int(entry.name)
    return None


@pytest.mark.slow
def test_the_same_records_as_fused(tmp_path):
    arguments = ("strategy=frozen,full", "seed=0", "finetune_steps=20", "cache=off")
    for name, launcher in (("fused", ()), ("isolated", ISOLATED)):
        done = sweep(tmp_path / name, *arguments, *launcher)
        assert done.returncode == 0, done.stderr
    assert list(jobs(tmp_path / "fused")) == list(jobs(tmp_path / "isolated"))
    for name, job in jobs(tmp_path / "isolated").items():
        other = tmp_path / "fused" / name
        assert (job / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        assert summary(job)["job_id"] == summary(other)["job_id"]
        assert summary(job)["overrides"] == summary(other)["overrides"]


def test_one_raises_one_diverges_one_is_killed(tmp_path):
    endless = "finetune_steps=2000000000"
    grid = (*ISOLATED, "lr_fine=0.01,-1,1e9", "finetune_steps=20,2000000000")
    with running_sweep(tmp_path, *grid, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 90
        victim = None
        while victim is None and time.monotonic() < deadline:
            victim = process_of("lr_fine=0.01 ", endless, "hydra.mode=RUN", str(tmp_path))
            time.sleep(0.1)
        assert victim
        time.sleep(3)  # well into its training
        os.kill(victim, signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "6 jobs: 1 completed, 2 diverged, 3 failed" in out
    assert "failed: killed by SIGKILL" in out
    assert out.count("failed: lr_fine is -1.0; allowed: a finite number > 0") == 2
    assert out.count("diverged after update") == 2
    assert "3 of 6 jobs did not complete" in err
    assert "Traceback" not in err


def test_ctrl_c_ends_every_child(tmp_path):
    with running_sweep(tmp_path, *ISOLATED, "seed=0,1", "finetune_steps=2000000000") as process:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not all(process_of(str(tmp_path), f"seed={s} ") for s in (0, 1)):
            time.sleep(0.1)
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert process_of(str(tmp_path)) is None
    assert not jobs(tmp_path)  # unfinished, not failed: the same command runs them


def test_settings_are_checked(tmp_path):
    for argument, message in [
        ("hydra.launcher.slots=0", "hydra.launcher.slots is 0; allowed: a whole number >= 1"),
        ("hydra.launcher.on_error=explode", "expected one of [continue, stop]"),
    ]:
        done = sweep(tmp_path, "seed=0,1", "hydra/launcher=isolated", argument)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
