"""The report on forgetting, on planted answers."""

import pytest

from src.analysis.export import jobs_table
from src.analysis.studies.forgetting import PICTURE, pareto, study
from src.errors import UserError
from src.tracking.record_reader import load_jobs
from tests.analysis.planted import first_table
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
    lines = first_table(report.body[0])
    chosen, target, _, change, _ = lines["full (front)"]
    assert chosen == "0.01"  # 0.1 is better on test rows
    assert target.startswith("0.9500 ±")
    assert change.startswith("-0.3000 ±")
    assert change.endswith("\\*")
    assert lines["probe (front)"][3] == "0 (identical)"
    assert "bad" in lines  # lp_ft is better at both tasks


def test_the_winner_is_chosen_by_validation_and_reported_on_test(tmp_path):
    """Lp_ft has the lowest validation loss, and full the highest test accuracy of the target."""
    table = planted(tmp_path)
    table["val_loss"] -= 0.05 * (table["strategy"] == "lp_ft")
    report = study(table, None, tmp_path)
    assert report.conclusion.startswith("By validation, lp_ft learns the target best (test accuracy 0.940)")
    assert "no arm is chosen for both tasks together" in report.conclusion  # the source has no validation rows


VALIDATION = {"full": (0.7, 0.9), "lp_ft": (0.9, 0.5), "probe": (0.6, 0.6)}  # accuracy of the target, of the source


def test_both_tasks_are_judged_by_validation_where_the_source_has_such_rows(tmp_path):
    """On test rows lp_ft has the best mean of both (0.895); on validation rows full has (0.8), lp_ft learns best."""
    table = planted(tmp_path, {name: PLANTED[name] for name in VALIDATION})
    target, source = (table["strategy"].map({name: pair[i] for name, pair in VALIDATION.items()}) for i in (0, 1))
    report = study(table.assign(val_accuracy=target, source_val_after_accuracy=source), None, tmp_path)
    assert report.conclusion.startswith("By validation, lp_ft learns the target best (test accuracy 0.940)")
    assert "full is best on both tasks together (test accuracies 0.950 and 0.600)" in report.conclusion
    # On test rows the probe is on the front, on validation rows full is better at both tasks.
    assert [name for name in first_table(report.body[0]) if name.endswith("(front)")] == [
        "full (front)",
        "lp_ft (front)",
    ]


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
    assert first_table(report.body[0])["full (front)"][0] == "0.1"


def test_jobs_without_a_source_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs jobs whose source task"):
        study(planted(tmp_path).drop(columns="source_after_accuracy"), None, tmp_path)
