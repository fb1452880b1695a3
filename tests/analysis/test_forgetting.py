"""The report on forgetting, on planted answers."""

import pytest

from src.analysis.export import jobs_table
from src.analysis.studies.forgetting import PICTURE, pareto, study
from src.errors import UserError
from src.tracking.records import load_jobs
from tests.fabricate import write_job

PLANTED = {"full": (0.95, -0.30), "lp_ft": (0.94, -0.05), "probe": (0.80, 0.0), "bad": (0.70, -0.20)}


def planted(folder, arms=PLANTED, seeds=5, **more):
    """Write jobs at two rates; the higher is worse on validation, and better on test."""
    for strategy, (target, change) in arms.items():
        for rate in (0.01, 0.1):
            for seed in range(seeds):
                noise = 0.002 * (seed - (seeds - 1) / 2)
                metrics = {
                    "val_loss": 0.1 + rate,
                    "test_accuracy": target + noise + (rate > 0.05) * 0.04,
                    "source_test_accuracy": 0.9,
                    "source_after_accuracy": 0.9 + change + noise * (change != 0),
                    **{name: value(rate) for name, value in more.items()},
                }
                config = {"strategy": {"name": strategy}, "lr_fine": rate, "seed": seed}
                write_job(folder / f"{strategy}_{rate}_{seed}", config, objective=0.1 + rate, metrics=metrics)
    return jobs_table(load_jobs(folder))


def test_planted_losses_are_found_and_validation_chooses(tmp_path):
    report = study(planted(tmp_path), None, tmp_path)
    assert (tmp_path / PICTURE).stat().st_size > 10_000
    lines = {line.split("|")[1].strip(): line for line in report.body.splitlines() if line.startswith("| ")}
    assert "0.01" in lines["full (front)"]
    cells = [cell.strip() for cell in lines["full (front)"].split("|")]
    assert cells[3].startswith("0.9500 ±")
    assert cells[5].startswith("-0.3000 ±")
    assert lines["probe (front)"].split("|")[5].strip() == "0"
    assert "bad" in lines  # beaten by lp_ft in both numbers: not on the front
    assert "full has the highest target accuracy" in report.conclusion
    assert "lp_ft" in report.conclusion


def test_the_front_is_what_nobody_beats():
    points = {"a": (1.0, 0.0), "b": (0.5, 0.5), "c": (0.4, 0.4), "d": (0.0, 1.0), "e": (0.5, 0.5)}
    assert pareto(points) == {"a", "b", "d", "e"}


def test_where_the_source_has_validation_rows_both_tasks_choose(tmp_path):
    jobs = planted(
        tmp_path,
        {"full": (0.9, -0.1)},
        val_accuracy=lambda _rate: 0.9,
        source_val_after_accuracy=lambda rate: 0.95 if rate > 0.05 else 0.2,  # against the validation loss
    )
    report = study(jobs, None, tmp_path)
    line = next(line for line in report.body.splitlines() if line.startswith("| full"))
    assert "0.1" in line.split("|")[2]


def test_jobs_without_a_source_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs jobs whose source task"):
        study(planted(tmp_path).drop(columns="source_after_accuracy"), None, tmp_path)
