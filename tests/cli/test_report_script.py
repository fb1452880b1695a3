"""A sweep's report at its end and again, through the real command lines."""

import json
import re

import pytest

from src.analysis.reports import study_names
from tests.analysis.planted import plant
from tests.cli.test_scripts import run
from tests.commands import sweep
from tests.fabricate import make_sweep

SMALL = ("strategy=frozen,full", "seed=0,1", "pretrain_steps=4", "finetune_steps=4", "cache=off")
GRID = {"strategy": ("linear_probe", "full"), "data.train_rows": (10, 100)}


def score(strategy, train_rows):
    """Full crosses the probe half way between 10 and 100."""
    return 0.8 + (0.1 if train_rows > 50 else -0.1) * (strategy == "full")


def test_a_sweep_ends_with_its_report_and_the_script_writes_it_again(tmp_path):
    folder = tmp_path / "sweep"
    done = sweep(folder, *SMALL, "report=strategies")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    page = folder / "report.md"
    assert lines[-1] == f"report: {page}"
    text = page.read_text()
    assert text.startswith("# Which strategy is best?")
    assert f"**{lines[-2]}**" in text
    assert {"report.md", "strategies.png", "curves.png"} <= {path.name for path in folder.iterdir()}

    page.unlink()
    again = run(tmp_path, "report_sweep", folder)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[0] == lines[-2]
    assert page.read_text() == text

    other = sweep(folder, *SMALL, "report=null")  # the same jobs: a report is no part of what they are
    assert "4 jobs, 4 of them already done" in other.stdout
    assert "report" not in other.stdout


@pytest.mark.parametrize("launcher", ["fused", "isolated", "basic"])
def test_an_unknown_report_is_refused_before_anything_is_trained(tmp_path, launcher):
    done = sweep(tmp_path / "sweep", *SMALL, "report=strategys", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert "report is 'strategys' (did you mean 'strategies'?); allowed: crossover, " in done.stderr
    assert not any(file.stat().st_size for file in tmp_path.rglob("metrics.jsonl"))


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_cost_the_sweep(tmp_path):
    folder = tmp_path / "sweep"
    done = sweep(folder, *SMALL, "report=crossover")
    assert done.returncode == 0, done.stderr
    assert "4 jobs: 4 completed" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("report=crossover could not be written")]
    assert "compares strategy=linear_probe, which is not in this sweep; it has frozen, full" in line
    assert line.endswith("all records are kept; repeat the command to try again")
    assert "Traceback" not in done.stdout + done.stderr
    assert len(list(folder.glob("*/summary.json"))) == 4


@pytest.mark.slow
def test_jobs_that_failed_are_counted(tmp_path):
    folder = tmp_path / "sweep"
    done = sweep(folder, *SMALL, "report=strategies", "batch_size=null,0")
    assert done.returncode == 1
    assert "4 of 8 jobs did not complete (4 failed): the report uses the other 4." in done.stdout
    assert (folder / "report.md").exists()


@pytest.mark.slow
def test_the_script_takes_any_report_and_says_what_it_wrote(tmp_path):
    folder = plant(
        tmp_path / "s", GRID, score, own=0.01, status=lambda c, rate, seed: "failed" if seed > 3 else "completed"
    )
    done = run(tmp_path, "report_sweep", folder, "--report", "crossover")
    assert (done.returncode, done.stderr) == (0, "")
    remark, conclusion, *wrote = done.stdout.splitlines()
    assert remark == "4 of 20 jobs did not complete (4 failed): the report uses the other 16."
    assert conclusion.startswith(
        "full overtakes linear_probe on test accuracy at about 31."
    )  # without one seed no more 31.6
    assert wrote == [f"wrote {folder / name}" for name in ("report.md", "crossover.png")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no sweep folder 'nowhere'"),
        (["nowhere", "--report", "crossover"], "there is no sweep folder 'nowhere'"),
        (["{sweep}"], "name no report: give --report, one of crossover, decision_matrix"),
        (["{sweep}", "--report", "warm_up"], "report is 'warm_up' (did you mean 'warmup'?)"),
        (["{sweep}", "--report", "lora_rank"], "have no 'strategy.rank', which the report compares"),
        (["{several}"], "name several reports (crossover, warmup): give --report"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path, arguments, message):
    places = {"sweep": make_sweep(tmp_path / "sweep", ("frozen", "full"), (0.01,), 2), "several": tmp_path / "several"}
    make_sweep(places["several"], ("frozen",), (0.01,), 2)
    for file, name in zip(sorted(places["several"].glob("*/summary.json")), ("crossover", "warmup"), strict=True):
        record = json.loads(file.read_text())
        record["config"]["report"] = name
        file.write_text(json.dumps(record))
    done = run(tmp_path, "report_sweep", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_lists_the_reports(tmp_path):
    done = run(tmp_path, "report_sweep", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(study_names()) <= set(re.split(r"[\s,]+", done.stdout))
