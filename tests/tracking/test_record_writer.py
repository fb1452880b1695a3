"""The record: strict JSON, complete or absent."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from src.environment import git_state, versions
from src.files import atomic_write, to_json
from src.tracking.job import blank_summary, wandb_summary
from src.tracking.record_writer import RecordWriter, as_lines


def strict(text):
    """Parse JSON as other languages do: no NaN, no Infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_stay_readable():
    text = to_json({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 0.1, "e": None})
    assert strict(text) == {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 0.1, "e": None}


def test_a_row_is_on_disk_when_it_is_logged(tmp_path):
    record = RecordWriter(tmp_path / "job")
    record.log(as_lines("pretrain", [{"step": 1, "loss": 0.5}]))
    assert strict((tmp_path / "job/metrics.jsonl").read_text()) == {"stage": "pretrain", "step": 1, "loss": 0.5}
    assert not (tmp_path / "job/summary.json").exists()
    record.finish({"status": "completed"})
    assert strict((tmp_path / "job/summary.json").read_text()) == {"status": "completed"}


def test_a_second_attempt_removes_the_first(tmp_path):
    first = RecordWriter(tmp_path)
    first.log(as_lines("pretrain", [{"step": 1}]))
    first.finish({"status": "failed"})
    RecordWriter(tmp_path).close()
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_atomic_write_replaces_completely_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_parameters_are_restored(tmp_path):
    params = {"Dense_0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    record = RecordWriter(tmp_path)
    record.save_params(params, {"strategy": "full"})
    record.close()
    loaded = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded["Dense_0/kernel"], params["Dense_0/kernel"])


def test_versions_and_commit():
    assert {"thaw", "jax", "flax", "optax"} <= set(versions())
    state = git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))


def test_the_table_of_runs_has_the_stability_numbers_and_the_number_of_warnings():
    stability = {"first_epoch_grad_norm": 320.0, "collapsed": 1.0}
    whole = blank_summary({}) | {"stability": stability, "warnings": ["One.", "Two."]}
    assert wandb_summary(whole).items() >= {**stability, "warnings": 2}.items()
    assert wandb_summary(blank_summary({}) | {"stability": stability})["warnings"] == 0
    assert "warnings" not in wandb_summary(blank_summary({}))
