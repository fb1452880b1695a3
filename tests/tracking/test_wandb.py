"""The W&B client: offline runs on disk, and a server that cannot be reached."""

import time

import pytest

from src.tracking.wandb_files import read_run
from tests.commands import rows, running, summary, sweep, train


def wandb_files(folder):
    return sorted(folder.glob("**/offline-run-*/run-*.wandb"))


def test_a_run_has_the_rows_and_the_summary_of_the_record(tmp_path):
    done = train(tmp_path, "tracker=wandb", "tracker.tags=[a,b]", "finetune_steps=20", "strategy=full")
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    (file,) = wandb_files(tmp_path)
    run = read_run(file)
    record = summary(tmp_path)
    assert run.exit_code == 0
    assert run.config["strategy"] == {"name": "full"}
    assert run.config["job_id"] == record["job_id"]
    assert run.summary["test_loss"] == record["metrics"]["test_loss"]
    assert (run.project, run.job_type, sorted(run.tags)) == ("thaw", "full", ["a", "b"])
    for stage in ("pretrain", "finetune"):
        logged = [row for row in run.history if f"{stage}/step" in row]
        recorded = [row for row in rows(tmp_path) if row["stage"] == stage]
        assert [row[f"{stage}/step"] for row in logged] == [row["step"] for row in recorded]
        key = {"pretrain": "loss", "finetune": "val_loss"}[stage]
        assert [row[f"{stage}/{key}"] for row in logged] == [row[key] for row in recorded]


def test_a_sweep_is_a_group_of_separate_runs(tmp_path):
    done = sweep(tmp_path / "study", "tracker=wandb", "lr_fine=0.01,-1", "seed=0,1", "finetune_steps=10")
    assert done.returncode == 1
    assert "lr_fine is -1.0; allowed: a finite number > 0" in done.stderr
    runs = [read_run(file) for file in wandb_files(tmp_path)]
    assert len(runs) == 2  # the two jobs that could not start have a record and no run
    assert {run.group for run in runs} == {"study"}
    assert {run.config["seed"] for run in runs} == {0, 1}
    assert len({run.run_id for run in runs}) == 2
    states = sorted(summary(p.parent)["status"] for p in (tmp_path / "study").glob("*/summary.json"))
    assert states == ["completed", "completed", "failed", "failed"]


def test_a_killed_training_is_a_failed_run(tmp_path):
    with running("-m", "src.train", f"hydra.run.dir={tmp_path}", "finetune_steps=100000000") as process:
        deadline = time.monotonic() + 60
        while not wandb_files(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.kill()
    while time.monotonic() < deadline:  # the W&B process finishes the run when its input ends
        if wandb_files(tmp_path) and read_run(wandb_files(tmp_path)[0]).exit_code is not None:
            break
        time.sleep(0.2)
    assert read_run(wandb_files(tmp_path)[0]).exit_code == 1
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("mode", ["auto", pytest.param("online", marks=pytest.mark.slow)])
def test_a_server_that_cannot_be_reached_is_a_warning(tmp_path, mode):
    started = time.monotonic()
    done = train(
        tmp_path,
        "tracker=wandb",
        f"tracker.mode={mode}",
        "tracker.timeout=2",
        WANDB_MODE="",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 40
    assert "continuing offline" in done.stdout
    assert summary(tmp_path)["status"] == "completed"
    assert len(wandb_files(tmp_path)) == 1


def test_without_a_key_the_run_is_offline_and_nothing_prompts(tmp_path):
    done = train(tmp_path, "tracker=wandb", "tracker.mode=online", WANDB_MODE="", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "W&B has no API key here" in done.stdout
    assert len(wandb_files(tmp_path)) == 1


def test_disabled_means_no_process_and_no_file(tmp_path):
    done = train(tmp_path, "tracker=wandb", "tracker.mode=disabled")
    assert done.returncode == 0, done.stderr
    assert "W&B" not in done.stdout
    assert not wandb_files(tmp_path)
