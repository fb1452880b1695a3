"""``recipe=sequence`` as a user runs it: records, the terminal, sweeps over retention, the scripts that read them."""

import math
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from src.config.schema import build
from src.errors import UserError
from tests.commands import ROOT, rows, summary, sweep, train
from tests.data.test_mnist import write
from tests.data.test_sequences import TEST, TRAIN, images

SMALL = (
    "recipe=sequence", "strategy=full", "optimizer=adam", "lr_fine=0.02", "batch_size=16", "model.widths=[8]",
    "finetune_steps=6", "log_every=3", "progress=false",
)  # fmt: skip
FEW = ("data.train_rows=20", "data.test_rows=20")
RETENTION = ("none", "l2_sp", "ewc", "replay")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four ways of retention, two seeds."""
    folder = tmp_path_factory.mktemp("sequences") / "study"
    chosen = ("data=rotated_digits", "data.tasks=2", *FEW, f"retention={','.join(RETENTION)}", "seed=0,1")
    done = sweep(folder, *SMALL, *chosen)
    assert done.returncode == 0, done.stderr
    assert "8 jobs: 8 completed" in done.stdout
    return folder


@pytest.fixture
def script(monkeypatch, capsys):
    """A script in this process: another one costs seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def call(name, *arguments):
        main = runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="not_main")["main"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return call


def jobs_of(folder):
    return [path.parent for path in sorted(folder.glob("*/summary.json"))]


def data_of(folder):
    return build("data", OmegaConf.load(folder / ".hydra" / "config.yaml").data).load()


def by_hand(params, part):
    """The accuracy of a perceptron of one hidden layer, in float64."""
    hidden = np.maximum(part.x.astype(np.float64) @ params["Dense_0/kernel"] + params["Dense_0/bias"], 0)
    outputs = hidden @ params["Dense_1/kernel"] + params["Dense_1/bias"]
    return np.mean(outputs.argmax(axis=1) == part.y)


def check_record(folder):
    """Compare a sequence's record with NumPy: its matrix with the weights, its metrics with the matrix."""
    record, data = summary(folder), data_of(folder)
    matrix, found, tasks = np.array(record["accuracy_matrix"]), record["metrics"], len(data.tasks)
    assert (record["status"], matrix.shape) == ("completed", (tasks, tasks))
    assert ((matrix >= 0) & (matrix <= 1)).all()
    params = load_file(folder / "model.safetensors")
    for j in range(tasks) if data.shared_head else [tasks - 1]:  # whose head is kept beside the weights
        assert matrix[-1, j] == pytest.approx(by_hand(params, data.tasks[j]["test"]), abs=1e-6)
    best = np.array([matrix[j : tasks - 1, j].max() for j in range(tasks - 1)])
    expected = {
        "average_accuracy": matrix[-1].mean(),
        "learning_accuracy": np.diag(matrix).mean(),
        "backward_transfer": np.mean(matrix[-1, :-1] - np.diag(matrix)[:-1]),
        "forgetting": np.mean(best - matrix[-1, :-1]),
        "test_accuracy": matrix[-1].mean(),
        **{f"task_{j + 1}_accuracy": matrix[-1, j] for j in range(tasks)},
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert record["objective"] == found["val_loss"]
    steps = [(row["stage"], row["task"], row["step"]) for row in rows(folder)]
    assert steps == [("finetune", t + 1, 6 * t + step) for t in range(tasks) for step in (0, 3, 6)]
    return matrix


def test_a_sequence_from_start_to_record(tmp_path):
    done = train(tmp_path, *SMALL, "data=rotated_digits", "data.tasks=2", *FEW, "retention=replay")
    assert (done.returncode, done.stderr) == (0, "")
    matrix = check_record(tmp_path)
    said = done.stdout.splitlines()
    (after,) = (number for number, line in enumerate(said) if "after task" in line)
    shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in said[after + 2 : after + 4]]
    assert shown == [[str(i + 1), *(f"{value:.3f}" for value in row)] for i, row in enumerate(matrix)]
    for words in (
        "recipe = sequence",
        "retention = replay",
        "610 of 610 parameters are trainable",
        "backward transfer",
    ):
        assert words in done.stdout
    assert f"│ forgetting        │        │ {summary(tmp_path)['metrics']['forgetting']:.4f}" in done.stdout


@pytest.mark.slow
def test_tasks_of_two_digits_with_one_head_and_with_one_each(tmp_path):
    done = sweep(tmp_path, *SMALL, "data=split_digits", "data.heads=one,each", "retention=l2_sp", *FEW)
    assert done.returncode == 0, done.stderr
    heads = {summary(folder)["config"]["data"]["heads"]: check_record(folder) for folder in jobs_of(tmp_path)}
    assert {name: matrix.shape for name, matrix in heads.items()} == {"one": (5, 5), "each": (5, 5)}
    # One head of ten outputs knows nothing of digits it has not been shown; one of two outputs guesses between two.
    ahead = np.triu_indices(5, k=1)
    assert heads["one"][ahead].max() < 0.3 < heads["each"][ahead].mean()


@pytest.mark.parametrize("name", ["permuted_mnist", pytest.param("split_mnist", marks=pytest.mark.slow)])
def test_the_user_s_own_images(tmp_path, name):
    folder = tmp_path / "files"
    write(folder, *images(TRAIN, test=False))
    write(folder, *images(TEST, test=True), name="t10k", zipped=True)
    chosen = (f"data={name}", f"data.path={folder}", "data.train_rows=20", "data.test_rows=10", "retention=l2_sp")
    done = train(tmp_path / "run", *SMALL, *chosen)
    assert done.returncode == 0, done.stderr
    assert check_record(tmp_path / "run").shape == (5, 5)


def test_with_isolation_nothing_is_forgotten(tmp_path):
    done = train(
        tmp_path, *SMALL, "data=rotated_digits", "data.tasks=3", *FEW, "strategy=lora", "strategy.rank=2",
        "retention=isolate",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    matrix = np.array(summary(tmp_path)["accuracy_matrix"])
    for j in range(3):
        assert len(set(matrix[j:, j])) == 1
    assert summary(tmp_path)["metrics"]["forgetting"] == 0


def test_a_sweep_over_retention(study):
    """Every job's record holds; the first task knows of no retention, so its accuracy is a seed's own."""
    first = {}
    for folder in jobs_of(study):
        matrix, config = check_record(folder), summary(folder)["config"]
        first.setdefault(config["seed"], set()).add(tuple(matrix[0]))
    assert {seed: len(seen) for seed, seen in first.items()} == {0: 1, 1: 1}


def test_the_scripts_read_a_sweep_of_sequences(study, tmp_path, script):
    table, history = tmp_path / "table.csv", tmp_path / "history.csv"
    assert "8 jobs: 8 completed" in script("export_sweep", study, "--out", table, "--history", history)
    jobs: Any = pd.read_csv(table)
    for _, job in jobs.iterrows():
        assert job["forgetting"] == summary(study / job["job"])["metrics"]["forgetting"]
    assert set(pd.read_csv(history)["task"]) == {1, 2}
    lowest = jobs.groupby(jobs["retention"].fillna("none"))["val_loss"].mean().idxmin()
    # Whether more is better follows from the name: of what is forgotten less, of accuracy and transfer more.
    for metric, better in (("average_accuracy", "higher"), ("forgetting", "lower"), ("backward_transfer", "higher")):
        said = " ".join(script("analyze_sweep", table, "--metric", metric, "--reference", "none").split())
        assert f"For {metric}, {better} is better" in said
        assert said.split()[0 if said.startswith(lowest) else 1].startswith(lowest)  # "replay has", or "Use replay"
    page = (tmp_path / "analysis.md").read_text()
    assert all(f"| {name} |" in page for name in RETENTION)


def test_settings_that_an_arm_does_not_have_are_dashes(study, tmp_path, script):
    """Plain fine-tuning has no strength to tune."""
    table = tmp_path / "table.csv"
    script("export_sweep", study, "--out", table)
    said = script("analyze_sweep", table, "--tune", "retention.strength", "--reference", "none")
    assert "nan" not in said + (tmp_path / "analysis.md").read_text()
    found = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in tables(tmp_path / "analysis.md")}
    assert {name: found[name] for name in RETENTION} == {"none": "-", "l2_sp": "0.01", "ewc": "100", "replay": "1"}


def tables(page: Path):
    """Return the lines of a page's first table."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| arm"))
    return [line for line in lines[start : start + 6] if line.startswith("|")]


def test_a_report_of_a_sweep_of_sequences(study, script):
    said = script("report_sweep", study, "--report", "strategies")
    assert said.splitlines()[-1].startswith("wrote")
    assert all(name in (study / "report.md").read_text() for name in RETENTION)


def test_a_sweep_goes_on_where_it_ended(study, tmp_path):
    """What has ended is not run again, sequences like other jobs; a sequence that cannot be is one that failed."""
    study = shutil.copytree(study, tmp_path / "study")
    before = {folder: (folder / "summary.json").stat().st_mtime_ns for folder in jobs_of(study)}
    chosen = ("data=rotated_digits", "data.tasks=2", *FEW, "retention=none,isolate", "seed=0")
    done = sweep(study, *SMALL, *chosen)
    assert done.returncode == 1
    assert "2 jobs, 1 of them already done" in done.stdout
    assert "retention.name is 'isolate', and the strategy moves Dense_0/bias, Dense_0/kernel of" in done.stderr
    assert "Traceback" not in done.stderr
    assert {folder: (folder / "summary.json").stat().st_mtime_ns for folder in before} == before


def test_divergence_in_the_first_task_is_a_result(tmp_path):
    done = train(
        tmp_path, *SMALL, "data=rotated_digits", *FEW, "optimizer=sgd", "lr_fine=1e30", "model.activation=gelu"
    )
    assert done.returncode == 0, done.stderr
    record = summary(tmp_path)
    assert (record["status"], record["objective"], record["accuracy_matrix"]) == ("diverged", "Infinity", [])
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path) if "loss" in row)
    assert "diverged: the loss was not finite" in done.stdout
    assert "after task" not in done.stdout  # there is no accuracy to show


def test_tools_of_one_fine_tuning_say_that_a_sequence_is_not_for_them(study, script, tmp_path):
    job = jobs_of(study)[0]
    for arguments in (("wise", job), ("soup", job, jobs_of(study)[1])):
        with pytest.raises(UserError, match=r"learned a sequence of tasks; allowed: a job of recipe=transfer$"):
            script("average_weights", *arguments, "--out", tmp_path)
    with pytest.raises(UserError, match=r"there is no job to average in .*learned a sequence of tasks"):
        script("average_weights", "soup", study, "--out", tmp_path)
    with pytest.raises(UserError, match=r"^recipe is 'sequence'; allowed: transfer, because"):
        script("lr_find", "recipe=sequence", "data=rotated_digits", "--out", tmp_path)
    assert not list(tmp_path.iterdir())
