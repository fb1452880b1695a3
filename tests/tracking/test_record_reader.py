import json
import math
import subprocess
import sys

import pytest

from src.errors import UserError
from src.tracking.record_reader import load_jobs, read_rows
from tests.fabricate import write_job


def test_a_record_is_read_back_as_written(tmp_path):
    config = {"seed": 3, "lr_fine": 0.01, "strategy": {"name": "frozen", "note": "NaN"}}
    rows = [
        {"stage": "pretrain", "step": 0, "val_loss": math.inf},
        {"stage": "finetune", "step": 1, "loss": math.nan, "lr": 0.5},
    ]
    write_job(tmp_path / "a", config, rows, objective=math.inf, metrics={"val_loss": -math.inf, "test_loss": 0.25})
    (job,) = load_jobs(tmp_path)
    assert (job.name, job.status, job.job_id) == ("a", "completed", "a000000000000000")
    assert job.config == config  # text in a configuration stays text, even where it reads "NaN"
    assert job.objective == math.inf
    assert job.metrics == {"val_loss": -math.inf, "test_loss": 0.25}
    assert (job.trainable_parameters, job.total_parameters, job.flops_per_step, job.seconds) == (9, 97, 32896.0, 0.41)
    assert (job.data_fingerprint, job.git_commit, job.versions["jax"]) == ("9f8e7d6c", "0123abcd", "0.10.2")
    read = job.rows()
    assert read[0] == rows[0]
    assert math.isnan(read[1].pop("loss"))
    assert read[1] == {"stage": "finetune", "step": 1, "lr": 0.5}


def test_jobs_at_any_depth_come_in_natural_order(tmp_path):
    for name in ("10", "2", "deep/er/1"):
        write_job(tmp_path / name, {"seed": 0})
    write_job(tmp_path / "2" / "inner", {"seed": 1})  # inside a job, so that job's own business
    assert [job.name for job in load_jobs(tmp_path)] == ["2", "10", "deep/er/1"]


def test_a_folder_that_is_one_job_is_called_by_its_own_name(tmp_path):
    write_job(tmp_path / "single", {"seed": 0})
    assert [job.name for job in load_jobs(tmp_path / "single")] == ["single"]


def test_a_killed_job_is_unfinished_and_keeps_its_config_and_rows(tmp_path):
    folder = write_job(tmp_path / "0", {"seed": 1}, [{"stage": "pretrain", "step": 1, "loss": 2.0}], status=None)
    (folder / ".hydra" / "config.yaml").write_text("lr_fine: 1.0e-05\nseed: 1\nhead:\n  lr: ${lr_fine}\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')  # killed while writing
    (job,) = load_jobs(tmp_path)
    assert (job.status, job.metrics, job.objective) == ("unfinished", {}, None)
    assert job.config == {"lr_fine": 1e-5, "seed": 1, "head": {"lr": 1e-5}}
    assert job.rows() == [{"stage": "pretrain", "step": 1, "loss": 2.0}]


def test_a_reference_only_the_running_job_could_resolve_stays_as_it_is(tmp_path):
    folder = write_job(tmp_path / "0", {}, status=None)
    (folder / ".hydra" / "config.yaml").write_text("folder: ${unknown:runtime.output_dir}\n")
    assert load_jobs(tmp_path)[0].config == {"folder": "${unknown:runtime.output_dir}"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"status": "great"}', '{"status": "completed", "metrics": 3}', '"NaN"']
)
def test_a_damaged_summary_costs_no_other_row(tmp_path, text):
    for name in ("0", "1", "2"):
        write_job(tmp_path / name, {"seed": 0})
    (tmp_path / "1" / "summary.json").write_text(text)
    jobs = load_jobs(tmp_path)
    assert [job.status for job in jobs] == ["completed", "damaged", "completed"]
    assert str(tmp_path / "1" / "summary.json") in (jobs[1].error or "")
    assert "\n" not in (jobs[1].error or "")


def test_a_damaged_line_before_the_last_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl"):
        read_rows(path)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="there is no sweep folder"):
        load_jobs(tmp_path / "nowhere")


def test_reading_records_imports_nothing_heavy():
    heavy = ["pandas", "numpy", "jax", "wandb", "matplotlib", "scipy"]
    code = f"import src.tracking.record_reader, sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
