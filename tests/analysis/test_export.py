# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import math

import numpy as np
import pandas as pd
import pytest

from src.analysis.export import flatten_config, history_table, jobs_table, load_sweep, read_table, write_table
from src.errors import UserError
from src.tracking.record_reader import Job, load_jobs
from tests.fabricate import write_job


def test_flat_names():
    config = {
        "seed": 1,
        "strategy": {"name": "lora", "rank": 4, "targets": ["a", "b"], "rules": [["head/.*", 1.0]]},
        "data": {"name": "digits", "source": {"name": "mnist", "path": None}},
        "name": "run",
        "empty": {},
    }
    assert flatten_config(config) == {
        "seed": 1,
        "strategy": "lora",
        "strategy.rank": 4,
        "strategy.targets": '["a", "b"]',
        "strategy.rules": '[["head/.*", 1.0]]',
        "data": "digits",
        "data.source": "mnist",
        "data.source.path": None,
        "name": "run",
    }


def test_every_row_equals_its_record(sweep):
    jobs = load_jobs(sweep)
    table = jobs_table(jobs)
    assert len(table) == len(jobs) == 48
    assert not table["job"].duplicated().any()
    for job, (_, row) in zip(jobs, table.iterrows(), strict=True):
        assert (row["job"], row["job_id"], row["status"]) == (job.name, job.job_id, job.status)
        assert row["objective"] == job.objective
        assert (row["strategy"], row["lr_fine"]) == (job.config["strategy"]["name"], job.config["lr_fine"])
        for name, value in job.metrics.items():
            assert row[name] == value or (math.isnan(row[name]) and math.isnan(value))
        assert row["trainable_parameters"] == job.trainable_parameters
        assert row["version.jax"] == job.versions["jax"]


def test_the_configuration_stands_between_status_and_objective(sweep):
    names = list(jobs_table(load_jobs(sweep)).columns)
    between = names[names.index("status") + 1 : names.index("objective")]
    assert between == [
        "seed",
        "lr_fine",
        "strategy",
        "strategy.decay",
        "model",
        "model.widths",
        "pretrain",
        "pretrain.seed",
    ]


def test_nothing_is_overwritten():
    jobs = [
        Job(
            "a",
            "completed",
            config={"test_loss": "huber", "status": "x"},
            metrics={"test_loss": 1.0, "seconds": 3.0},
            seconds=9.0,
        ),
        Job("b", "completed", config={"test_loss": "mse"}),
    ]
    row = jobs_table(jobs).iloc[0]
    assert (row["test_loss"], row["config.test_loss"]) == (1.0, "huber")
    assert (row["status"], row["config.status"]) == ("completed", "x")
    assert (row["seconds"], row["metric.seconds"]) == (9.0, 3.0)
    assert jobs_table(jobs).columns.is_unique
    assert list(jobs_table(jobs)["config.test_loss"]) == ["huber", "mse"]  # the same name for every job


def test_history_has_one_row_a_logged_step(sweep):
    jobs = load_jobs(sweep)
    table = history_table(jobs)
    assert len(table) == sum(len(job.rows()) for job in jobs)
    assert list(table.columns[:8]) == [
        "job",
        "job_id",
        "seed",
        "lr_fine",
        "strategy",
        "strategy.decay",
        "pretrain.seed",
        "stage",
    ]
    assert "model" not in table  # it does not vary
    last = table[(table["job"] == "17") & (table["stage"] == "finetune")].iloc[-1]
    row = jobs[17].rows()[-1]
    assert (last["step"], last["val_loss"], last["lr_fine"]) == (
        row["step"],
        row["val_loss"],
        jobs[17].config["lr_fine"],
    )


def test_history_without_rows_and_with_a_shared_name():
    assert list(history_table([Job("a", "unfinished")]).columns) == ["job", "job_id", "stage", "step"]
    jobs = [
        Job(n, "completed", config={"lr": n}, rows=lambda: [{"stage": "finetune", "step": 1, "lr": 0.5}]) for n in "ab"
    ]
    table = history_table(jobs)
    assert list(table["config.lr"]) == ["a", "b"]
    assert list(table["lr"]) == [0.5, 0.5]


MIXED = [
    Job(
        "0",
        "completed",
        config={"warmup": 10, "clip": 1, "on": True, "k": "none"},
        metrics={"loss": math.inf},
        error='a, "b"',
    ),
    Job(
        "1",
        "diverged",
        config={"warmup": "auto", "clip": None, "on": None, "k": "NA"},
        metrics={"loss": math.nan},
    ),
    Job(
        "007",
        "unfinished",
        job_id="12345e67",
        config={"warmup": 0.1, "clip": 0.1 + 0.2, "on": False, "k": "x"},
    ),
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_round_trip(tmp_path, suffix):
    table = jobs_table(MIXED)
    path = tmp_path / "new" / "folder" / f"table{suffix}"
    write_table(table, path)
    back = read_table(path)
    assert list(back.columns) == list(table.columns)
    assert list(back["job"]) == ["0", "1", "007"]
    assert back["job_id"].isna().tolist() == [True, True, False]
    assert back["job_id"].iloc[2] == "12345e67"
    assert list(back["warmup"]) == ["10", "auto", "0.1"]  # mixed kinds are text
    assert back["clip"].tolist()[::2] == [1.0, 0.30000000000000004]  # every bit
    assert math.isnan(back["clip"][1])
    assert back["on"].tolist()[::2] == [True, False]
    assert list(back["k"]) == ["none", "NA", "x"]  # names, not missing values
    assert back["loss"][0] == math.inf
    assert back["loss"].isna().tolist() == [False, True, True]
    assert back["error"][0] == 'a, "b"'
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no draft is left


def test_both_formats_say_the_same(sweep, tmp_path):
    table = jobs_table(load_jobs(sweep))
    write_table(table, tmp_path / "a.csv")
    write_table(table, tmp_path / "a.parquet")
    csv, parquet = (read_table(tmp_path / name).dropna(axis="columns", how="all") for name in ("a.csv", "a.parquet"))
    pd.testing.assert_frame_equal(csv, parquet)


def test_any_table_can_be_written(tmp_path):
    table = pd.DataFrame({"x": pd.Series([1, "a", None, 2.5], dtype=object), "y": np.arange(4)})
    write_table(table, tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet")["x"].dropna().tolist() == ["1", "a", "2.5"]


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_table(pd.DataFrame({"a": [1]}), path)
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        write_table(pd.DataFrame({"a": [2]}), path)
    assert path.read_text() == "a\n1\n"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["table.xlsx", "table"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"\.parquet or \.csv"):
        write_table(pd.DataFrame(), tmp_path / name)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no table .*none\.csv"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"bad\.parquet"):
        read_table(tmp_path / "bad.parquet")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_table(pd.DataFrame({"a": [1]}), tmp_path / "file" / "t.csv")


def test_a_folder_without_jobs_is_empty(tmp_path):
    assert load_sweep(tmp_path) == []


def test_unfinished_jobs_have_their_configuration(tmp_path):
    write_job(tmp_path / "0", {"seed": 0}, metrics={"test_loss": 1.0})
    write_job(tmp_path / "1", {"seed": 1}, status=None)
    table = jobs_table(load_sweep(tmp_path))
    assert list(table["seed"]) == [0, 1]
    assert table["test_loss"].isna().tolist() == [False, True]
    assert table["trainable_parameters"].isna().tolist() == [False, True]
