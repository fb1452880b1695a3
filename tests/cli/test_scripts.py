"""The scripts as a user runs them: another process, from the repository's root, no login, no network."""

import json
import os
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import script
from tests.fabricate import make_sweep, write_job


def run(home: Path, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    hidden = ("WANDB_API_KEY", "PYTHONPATH", "HYDRA_FULL_ERROR")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(home), "NETRC": str(home / "none"), "COLUMNS": "80", "NO_COLOR": "1"}
    return script(name, *arguments, timeout=120, environment=environment)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("cli") / "sweep", ("frozen", "full"), (0.01, 0.1), 3)


def test_export_then_analyze(sweep, tmp_path):
    table, history = tmp_path / "out" / "sweep.parquet", tmp_path / "out" / "history.parquet"
    exported = run(tmp_path, "export_sweep", sweep, "--out", table, "--history", history)
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout.splitlines()[0] == "12 jobs: 11 completed, 1 diverged"
    assert str(table) in exported.stdout
    assert str(history) in exported.stdout
    assert len(pd.read_parquet(table)) == 12

    analyzed = run(tmp_path, "analyze_sweep", table)
    assert (analyzed.returncode, analyzed.stderr) == (0, "")
    assert "\x1b" not in analyzed.stdout
    tables = [line for line in analyzed.stdout.splitlines() if not line.startswith("wrote")]
    assert max(map(len, tables)) <= 80
    assert {path.name for path in table.parent.iterdir()} == {
        "sweep.parquet", "history.parquet", "analysis.md", "lr_sweep.png", "curves.png", "strategies.png",
    }  # fmt: skip


def test_options_of_the_analysis(sweep, tmp_path):
    assert run(tmp_path, "export_sweep", sweep, "--out", tmp_path / "s.csv").returncode == 0
    arguments = ["--metric", "test_loss", "--select", "val_loss", "--tune", "lr_fine", "--arm", "strategy"]
    arguments += ["--pair", "seed", "--reference", "full", "--lower", "--out", str(tmp_path / "report")]
    result = run(tmp_path, "analyze_sweep", tmp_path / "s.csv", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "minus full" in result.stdout
    assert (tmp_path / "report" / "analysis.md").exists()
    assert not (tmp_path / "report" / "curves.png").exists()  # no history was exported


def test_failed_and_damaged_jobs_are_named(tmp_path):
    write_job(tmp_path / "s" / "0", {"seed": 0})
    write_job(tmp_path / "s" / "1", {"seed": 1}, status="failed", error="ValueError: no")
    write_job(tmp_path / "s" / "2", {"seed": 2})
    (tmp_path / "s" / "2" / "summary.json").write_text("{")
    result = run(tmp_path, "export_sweep", tmp_path / "s", "--out", tmp_path / "t.csv")
    assert result.returncode == 0
    counts, failed, damaged = result.stdout.splitlines()[:3]
    assert counts == "3 jobs: 1 completed, 1 failed, 1 damaged"
    assert failed == "failed: 1 (ValueError: no)"
    assert damaged.startswith("damaged: 2 (")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("export_sweep", ["nowhere", "--out", "{tmp}/a.csv"], "there is no sweep folder 'nowhere'"),
        ("export_sweep", ["{tmp}", "--out", "{tmp}/a.csv"], "no jobs in"),
        ("export_sweep", ["{tmp}", "--out", "{tmp}/a.xlsx"], ".parquet or .csv"),
        ("export_sweep", ["--wandb", "team", "--out", "{tmp}/a.csv"], "entity/project"),
        ("export_sweep", ["--wandb", "team/thaw", "--out", "{tmp}/a.csv"], "No API key configured"),
        ("analyze_sweep", ["{tmp}/none.parquet"], "there is no table"),
        ("create_dashboard", ["--project", "thaw"], "No API key configured"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path, script, arguments, message):
    result = run(tmp_path, script, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_wandb_file_is_named(tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    result = run(tmp_path, "export_sweep", tmp_path, "--out", tmp_path / "a.csv")
    assert result.returncode == 1
    assert "run-x.wandb" in result.stderr


def test_folder_and_wandb_exclude_each_other(tmp_path):
    assert run(tmp_path, "export_sweep", "a", "--wandb", "b/c", "--out", "x.csv").returncode == 2
    assert run(tmp_path, "export_sweep", "--out", "x.csv").returncode == 2


def test_a_dry_dashboard_needs_no_login(tmp_path):
    result = run(tmp_path, "create_dashboard", "--project", "thaw", "--group", "demo", "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["project"] == "thaw"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("export_sweep", ["SWEEP_DIR", "--wandb", "--out", "--history"]),
        ("analyze_sweep", ["--metric", "--select", "--tune", "--arm", "--pair", "--reference", "--higher", "--lower"]),
        ("create_dashboard", ["--project", "--entity", "--group", "--name", "--dry-run"]),
    ],
)
def test_help_explains_every_option(tmp_path, script, options):
    result = run(tmp_path, script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    described = result.stdout.split("options:")[1] + result.stdout.split("positional arguments:")[-1]
    for option in options:
        assert re.search(rf"^  {option}\b[^\n]*(\n {{20}}|  )\s*[a-zA-Z]", described, re.MULTILINE), option
