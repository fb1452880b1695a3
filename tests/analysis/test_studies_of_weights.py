"""The reports that read finished weights again: on small real sweeps, against the jobs' own records."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from src.analysis.export import load_sweep
from src.analysis.reports import write_study
from src.analysis.studies import fisher_estimators, wise_ft
from src.errors import UserError
from tests.analysis.planted import first_table
from tests.commands import sweep

pytestmark = pytest.mark.slow  # two sweeps, and their weights read again
SMALL = ("pretrain_steps=60", "finetune_steps=12", "model.widths=[12]", "progress=false", "report=null", "seed=0,1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    common = [*SMALL, f"cache_folder={folder / 'cache'}"]
    for name, more in {
        "wise_ft": ["lr_fine=0.01,0.1"],
        "fisher_estimators": ["retention.fisher=exact,batched", "retention.strength=0,1,100", "lr_fine=0.02"],
    }.items():
        done = sweep(folder / name, f"experiment={name}", *common, *more)
        assert done.returncode == 0, done.stderr
    return folder


def test_both_ends_of_the_path_are_what_the_jobs_recorded(finished):
    report, page = write_study("wise_ft", finished / "wise_ft")
    table = first_table(page.read_text())
    jobs = [job for job in load_sweep(finished / "wise_ft") if job.config["lr_fine"] == chosen_rate(finished)]
    target = np.mean([job.metrics["test_accuracy"] for job in jobs])
    kept = np.mean([job.metrics["source_after_accuracy"] for job in jobs])
    before = np.mean([job.metrics["source_test_accuracy"] for job in jobs])
    assert cell_text(table["fine-tuned, the chosen rate"][0]) == rounded(
        target, table["fine-tuned, the chosen rate"][0]
    )
    assert cell_text(table["fine-tuned, the chosen rate"][2]) == rounded(kept, table["fine-tuned, the chosen rate"][2])
    assert cell_text(table["pre-trained"][2]) == rounded(before, table["pre-trained"][2])
    assert (finished / "wise_ft" / wise_ft.PICTURE).stat().st_size > 10_000
    assert "(2 seeds)" in report.conclusion


def chosen_rate(finished):
    jobs = load_sweep(finished / "wise_ft")
    losses = pd.Series({(j.config["lr_fine"], j.config["seed"]): j.metrics["val_loss"] for j in jobs})
    return losses.groupby(level=0).mean().idxmin()


def cell_text(cell):
    """Return the number that a cell begins with."""
    found = re.match(r"[-+]?[\d.]+(e-?\d+)?", cell)
    assert found is not None
    return float(found[0])


def rounded(value, cell):
    """Return what a cell would show of a value: its interval decides how many digits."""
    return pytest.approx(value, abs=0.51 * 10.0 ** -len(cell.split()[0].partition(".")[2]))


def test_estimates_are_compared_at_the_jobs_own_weights(finished):
    report, page = write_study("fisher_estimators", finished / "fisher_estimators")
    table = first_table(page.read_text())
    assert table["exact"][:3] == ["1", "1", "1"]
    assert 0 < cell_text(table["batched"][0]) < 0.5  # a mean gradient's square, over batches of 32
    assert "batched estimate" in report.conclusion
    assert (finished / "fisher_estimators" / fisher_estimators.PICTURE).stat().st_size > 10_000


def test_numbers_of_two_diagonals():
    rng = np.random.default_rng(0)
    exact = rng.gamma(0.5, size=500)
    other = 3.0 * exact * rng.uniform(0.5, 1.5, size=500)
    other[:50] = 0.0  # ties
    found = fisher_estimators.compare_diagonals(exact, other)
    assert found["size"] == pytest.approx(other.sum() / exact.sum(), rel=1e-12)
    assert found["rank"] == pytest.approx(spearmanr(exact, other).statistic, abs=1e-12)
    best = {*np.argsort(exact)[-50:]} & {*np.argsort(other)[-50:]}
    assert found["top"] == len(best) / 50
    assert fisher_estimators.compare_diagonals(exact, 7.0 * exact) == pytest.approx(
        {"size": 7.0, "rank": 1.0, "top": 1.0}
    )


@pytest.mark.parametrize("name", ["wise_ft", "fisher_estimators"])
def test_another_sweep_is_refused(finished, name):
    other = {"wise_ft": "fisher_estimators", "fisher_estimators": "wise_ft"}[name]
    study = {"wise_ft": wise_ft, "fisher_estimators": fisher_estimators}[name].study
    from src.analysis.export import jobs_table

    table = jobs_table(load_sweep(finished / other))
    if name == "wise_ft":
        table = table.drop(columns="source_val_accuracy")
    with pytest.raises(UserError, match=f"report={name} needs"):
        study(table, None, finished / other)
