import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from src.analysis.export import history_table, jobs_table, load_sweep
from src.errors import UserError
from src.tracking.wandb_files import BLOCK, load_wandb_files, read_run
from tests.fabricate import write_job

CONFIG = {"seed": 3, "lr_fine": 0.01, "strategy": {"name": "frozen", "layers": [1, 2], "decay": None}}
FAST: Any = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "disable_code": True, "silent": True}


def write_run(folder: Path, steps: int = 50, exit_code: int = 0, **init: Any) -> Path:
    """Write an offline run with wandb itself, and return its file."""
    before = set(folder.glob("wandb/offline-*/*.wandb"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off", disable_job_creation=True, **FAST)
    run = wandb.init(project="p", dir=folder, mode="offline", reinit="create_new", settings=settings, **init)
    for step in range(steps):
        run.log({"pretrain/step": step, "pretrain/loss": 1 / (step + 1)})
    for step in range(steps):
        loss = {1: math.inf, 2: math.nan}.get(step, 2 / (step + 1))
        run.log({"finetune/step": step, "finetune/val_loss": loss, "epoch": step, "text": "x", "layer": {"norm": 2.0}})
    run.log({"picture": wandb.Histogram([1, 2, 3])})
    run.summary["test_loss"] = 0.25
    run.finish(exit_code=exit_code)
    path = (set(folder.glob("wandb/offline-*/*.wandb")) - before).pop()
    deadline = time.monotonic() + 20
    while read_run(path).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)  # wandb's own process closes the file after finish() has returned
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    # 800 steps: some records then span two blocks of the file.
    path = write_run(tmp_path_factory.mktemp("wandb"), steps=800, id="abc", name="first", group="g", config=CONFIG)
    assert path.stat().st_size > 3 * BLOCK
    return path


def test_read_back_equal(file):
    (job,) = load_wandb_files([file])
    assert (job.name, job.job_id, job.status) == ("first", "abc", "completed")
    assert job.config == CONFIG
    assert job.metrics["test_loss"] == 0.25
    assert not any(name.startswith(("_", "pretrain/", "finetune/", "picture")) for name in job.metrics)
    rows = job.rows()
    assert [row for row in rows if row["stage"] == "pretrain"] == [
        {"stage": "pretrain", "step": step, "loss": 1 / (step + 1)} for step in range(800)
    ]
    values = [row["val_loss"] for row in rows if row["stage"] == "finetune"]
    assert values[0] == 2.0
    assert values[1] == math.inf
    assert math.isnan(values[2])
    assert values[3:] == [2 / (step + 1) for step in range(3, 800)]
    foreign = [row for row in rows if row["stage"] == ""]
    assert foreign == [{"stage": "", "step": 800 + n, "epoch": n, "layer.norm": 2.0} for n in range(800)]


def test_any_truncation_ends_cleanly(file, tmp_path):
    content, cut = file.read_bytes(), tmp_path / "run-cut.wandb"
    whole = len(read_run(file).history)
    counts = []
    for size in [0, 3, 7, 9, 20, *range(40, len(content), len(content) // 12), BLOCK - 3, BLOCK + 3, len(content) - 1]:
        cut.write_bytes(content[:size])
        run = read_run(cut)
        assert run.exit_code is None
        counts.append(len(run.history))
    assert max(counts) == whole
    (job,) = load_wandb_files([cut])
    assert job.status == "unfinished"


def test_a_flipped_bit_is_found_and_named(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[5000] ^= 4
    bad = tmp_path / "run-bad.wandb"
    bad.write_bytes(content)
    with pytest.raises(UserError, match=r"run-bad\.wandb is damaged: wrong checksum at byte \d+"):
        read_run(bad)
    jobs = load_wandb_files([bad, file])
    assert [job.status for job in jobs] == ["completed", "damaged"]
    assert "run-bad.wandb" in (jobs[1].error or "")


def test_another_file_is_named(tmp_path):
    (tmp_path / "x.wandb").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UserError, match=r"x\.wandb is not a \.wandb file"):
        read_run(tmp_path / "x.wandb")


@pytest.mark.parametrize(("exit_code", "status"), [(0, "completed"), (1, "failed")])
def test_the_exit_code_is_the_status(tmp_path, exit_code, status):
    file = write_run(tmp_path, steps=1, exit_code=exit_code)
    assert [job.status for job in load_wandb_files([file])] == [status]


def test_a_run_resumed_offline_is_one_job(tmp_path):
    first = write_run(tmp_path / "a", steps=3, id="same", name="x", config={"seed": 1, "old": 1}, exit_code=1)
    second = write_run(tmp_path / "b", steps=2, id="same", name="x", config={"seed": 2})
    other = write_run(tmp_path / "b", steps=1, id="other")
    jobs = load_wandb_files([second, first, other])
    assert [job.job_id for job in jobs] == ["same", "other"]
    assert jobs[0].status == "completed"
    assert jobs[0].config == {"seed": 2, "old": 1}
    rows = jobs[0].rows()
    assert [row["step"] for row in rows if row["stage"] == "pretrain"] == [0, 1, 2, 0, 1]
    assert [row["step"] for row in rows if row["stage"] == ""] == [3, 4, 5, 9, 10]  # `_step` continues


def test_a_folder_of_foreign_runs(tmp_path):
    write_run(tmp_path, steps=2, id="r1", name="one", config=CONFIG)
    write_run(tmp_path, steps=2, id="r2", name="two", config=CONFIG | {"seed": 4})
    (tmp_path / "wandb" / "latest-run").unlink(missing_ok=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(next(tmp_path.glob("wandb/offline-*")), target_is_directory=True)
    jobs = load_sweep(tmp_path)
    table = jobs_table(jobs)
    assert sorted(table["job"]) == ["one", "two"]
    assert sorted(table["seed"]) == [3, 4]
    assert set(table["strategy"]) == {"frozen"}
    assert len(history_table(jobs)) == 2 * 6


def test_a_jobs_own_record_wins_over_its_wandb_file(file, tmp_path):
    for name in ("done", "killed", "foreign"):
        rows = None if name == "foreign" else [{"stage": "pretrain", "step": 1, "loss": 1.0}]
        status = "completed" if name == "done" else None
        folder = write_job(tmp_path / name, {"seed": 0}, rows, status=status)
        (folder / "wandb" / "offline-run").mkdir(parents=True)
        shutil.copy(file, folder / "wandb" / "offline-run")
    jobs = load_sweep(tmp_path)
    # `foreign` is another project's Hydra job: it recorded nothing but its W&B run.
    assert [(job.name, job.status) for job in jobs] == [
        ("done", "completed"),
        ("killed", "unfinished"),
        ("first", "completed"),
    ]
