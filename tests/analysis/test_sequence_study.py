"""The report on sequences, on planted matrices."""

import json

import numpy as np
import pytest

from src.analysis.export import jobs_table
from src.analysis.studies.sequence import PICTURE, study
from src.errors import UserError
from src.metrics import continual
from src.tracking.record_reader import load_jobs
from tests.analysis.planted import first_table
from tests.fabricate import write_job

KEPT = {"none": 0.5, "ewc": 0.95}  # what is left of an earlier task's accuracy, a task later


def planted(folder, seeds=4):
    for retention, share in KEPT.items():
        for seed in range(seeds):
            noise = 0.001 * seed + 0.0002 * (seed == 1) * (retention == "ewc")
            own = np.array([[0.9 * share ** max(i - j, 0) + noise for j in range(3)] for i in range(3)])
            numbers = {
                "average_accuracy": continual.average_accuracy(own),
                "forgetting": continual.forgetting(own),
                "learning_accuracy": continual.learning_accuracy(own),
                "backward_transfer": continual.backward_transfer(own),
                "val_loss": 1 - own[-1].mean(),
                "test_accuracy": own[-1].mean(),
            }
            job = folder / f"{retention}_{seed}"
            config = {"strategy": {"name": "full"}, "retention": {"name": retention}, "seed": seed}
            write_job(job, config, objective=numbers["val_loss"], metrics=numbers)
            summary = json.loads((job / "summary.json").read_text())
            (job / "summary.json").write_text(json.dumps(summary | {"accuracy_matrix": own.tolist()}))
    return jobs_table(load_jobs(folder))


def test_planted_forgetting_is_found(tmp_path):
    report = study(planted(tmp_path), None, tmp_path)
    lines = first_table(report.body[0])
    means = {name: 0.9 * (share**2 + share + 1) / 3 + 0.0015 for name, share in KEPT.items()}
    for name, mean in means.items():
        assert float(lines[name][1].split("±")[0]) == pytest.approx(mean, abs=6e-4)
    forgotten = 0.9 * ((1 - 0.5**2) + (1 - 0.5)) / 2
    assert float(lines["none"][2].split("±")[0]) == pytest.approx(forgotten, abs=6e-4)
    assert report.conclusion.startswith("After 3 tasks, ewc has the lowest validation loss")
    assert "higher than that of none (+0.33" in report.conclusion
    assert (tmp_path / PICTURE).stat().st_size > 10_000


def test_the_winner_is_chosen_by_validation_and_reported_on_test(tmp_path):
    """By validation none is best; its test accuracy is lower by 0.33."""
    table = planted(tmp_path)
    table["val_loss"] = 0.1 + 0.1 * (table["retention"] == "ewc")
    report = study(table, None, tmp_path)
    mean = 0.9 * (0.5**2 + 0.5 + 1) / 3 + 0.0015
    words = "After 3 tasks, none has the lowest validation loss; its average test accuracy is "
    assert report.conclusion.startswith(words)
    assert float(report.conclusion.removeprefix(words).split(" ")[0]) == pytest.approx(mean, abs=1e-3)
    assert "lower than that of ewc (-0.33" in report.conclusion
    assert list(first_table(report.body[0]))[2:] == ["none", "ewc"]


def test_other_sweeps_are_refused(tmp_path):
    table = planted(tmp_path)
    with pytest.raises(UserError, match="report=sequence needs jobs of recipe=sequence"):
        study(table.drop(columns="forgetting"), None, tmp_path)
    (tmp_path / "ewc_0" / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="has no accuracy matrix"):
        study(table, None, tmp_path)
