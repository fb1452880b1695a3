import itertools
import re

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from src.analysis.comparison import compare, make_spec
from src.analysis.export import history_table, jobs_table
from src.analysis.formatting import show_count, show_difference, show_interval
from src.analysis.pages import cost_columns, print_comparison, result_columns, write_comparison
from src.analysis.statistics import ConfidenceInterval, paired_difference
from src.tracking.record_reader import load_jobs
from tests.fabricate import make_sweep, write_job

PICTURES = {"lr_sweep.png", "curves.png", "strategies.png"}


def report(folder, out, **asked):
    jobs = load_jobs(folder)
    table = jobs_table(jobs)
    found = compare(table, make_spec(table, **asked))
    return found, write_comparison(found, history_table(jobs), out)


def test_the_page_and_its_pictures(sweep, tmp_path):
    _, files = report(sweep, tmp_path / "new")
    page = files[0].read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert PICTURES == set(pictures) == {path.name for path in files[1:]}
    for name in pictures:
        image = matplotlib.image.imread(tmp_path / "new" / name)
        assert image.shape[1] == 1600
        assert len(np.unique(image[::4, ::4].reshape(-1, image.shape[-1]), axis=0)) > 50  # something is drawn
    assert "| full | 0.01 |" in page
    assert "full at lr_fine=1 (3 of 3 seeds)" in page
    assert "paired by seed" in page


@pytest.mark.parametrize("width", [80, 120])
def test_the_console_fits(sweep, tmp_path, width):
    found, _ = report(sweep, tmp_path)
    with (tmp_path / "out.txt").open("w+") as file:
        print_comparison(found, Console(file=file, width=width))
        file.seek(0)
        text = file.read()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("discriminative"))
    arm = next(arm for arm in found.arms if arm.label == "discriminative")
    assert f"{arm.test.mean:.3f} ± {arm.test.half:.3f}" in row


@pytest.mark.parametrize(
    ("strategies", "rates", "seeds", "asked", "expected"),
    [
        (("frozen", "full"), (0.01,), 2, {}, {"curves.png", "strategies.png"}),
        (("frozen", "full"), (0.01, 0.1), 1, {}, PICTURES),
        (("full",), (1.0,), 1, {}, set()),  # nothing but divergence
        (("frozen", "lora"), (0.01, 0.1), 2, {"metric": "test_r2", "select": "val_loss"}, PICTURES),
    ],
)
def test_smaller_sweeps(tmp_path, strategies, rates, seeds, asked, expected):
    folder = make_sweep(tmp_path / "sweep", strategies, rates, seeds)
    found, files = report(folder, tmp_path / "out", **asked)
    assert {path.name for path in files[1:]} == expected
    assert found.recommendation in files[0].read_text()


def test_an_older_picture_does_not_stay(tmp_path):
    folder = make_sweep(tmp_path / "sweep", ("frozen", "full"), (0.01,), 1)
    (tmp_path / "lr_sweep.png").write_bytes(b"old")
    report(folder, tmp_path)
    assert not (tmp_path / "lr_sweep.png").exists()


def test_numbers_are_rounded_by_their_uncertainty():
    nan = float("nan")
    assert show_interval(ConfidenceInterval(0.51234, 0.4783, 0.5463, 3)) == "0.512 ± 0.034"
    assert show_interval(ConfidenceInterval(-12.3456, -14.4, -10.2, 3), sign=True) == "-12.3 ± 2.1"
    assert show_interval(ConfidenceInterval(1234.6, 1000, 1469.2, 3)) == "1235 ± 235"
    assert show_interval(ConfidenceInterval(0.5, nan, nan, 1)) == "0.5"
    assert show_interval(ConfidenceInterval(0.5, 0.5, 0.5, 3)) == "0.5"
    assert show_interval(ConfidenceInterval(nan, nan, nan, 0)) == "-"
    assert show_interval(ConfidenceInterval(1.0, 1 - 9e-9, 1 + 9e-9, 3)) == "1 ± 9e-09"


def test_large_numbers_are_short():
    shown = [show_count(value) for value in (9, 2880, 32896, 1.5e6, 2.2e9, 3.1e12)]
    assert shown == ["9", "2880", "32.9k", "1.5M", "2.2G", "3.1T"]
    for a, b in itertools.pairwise([1e3, 1e4, 1e5, 1e6, 1e7]):
        assert show_count(a) != show_count(b)


def test_a_difference_is_marked_where_its_interval_excludes_zero():
    """The values of seeds 0 to 2; only the first pair has a variance and a clear difference."""
    cases = {
        " *": ([2.0, 2.1, 2.2], [1.0, 1.1, 1.25]),
        " (identical)": ([2.0, 2.1, 2.2], [2.0, 2.1, 2.2]),
        " (same at every seed)": ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2]),  # to rounding
    }
    for mark, sides in cases.items():
        a, b = (dict(enumerate(values)) for values in sides)
        text = show_difference(paired_difference(a, b))
        assert text.endswith(mark)
        assert ("*" in text) == (mark == " *")
    undecided = show_difference(paired_difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 1.0}))
    assert "±" in undecided
    assert "*" not in undecided


COSTS = {"frozen": (9.0, 0.002, 4.0), "full": (3.0, 0.005, 1.0)}  # seconds of the job, per update, of compilation


def priced(folder, steady):
    """Frozen ran first, so its first job compiled; full is slower in every update."""
    for strategy, (seconds, update, compilation) in COSTS.items():
        for seed in range(2):
            more = {"seconds_per_update": update + 0.0002 * seed, "compile_seconds": compilation if seed == 0 else None}
            config = {"seed": seed, "strategy": {"name": strategy}}
            metrics = {"val_loss": 1.0, "test_loss": 1.0 + 0.3 * seed, "val_accuracy": 0.5, "test_accuracy": 0.25}
            cost = {"seconds": seconds} | (more if steady else {"seconds_per_update": None})
            write_job(folder / f"{strategy}{seed}", config, metrics=metrics, **cost)
    table = jobs_table(load_jobs(folder))
    return compare(table, make_spec(table))


def cells(columns, found, label):
    (arm,) = [arm for arm in found.arms if arm.label == label]
    return {name: cell(arm) for name, cell in columns.items()}


def test_the_cost_of_an_update_is_apart_from_compilation(tmp_path):
    found = priced(tmp_path, steady=True)
    for label, update, compilation in (("frozen", "0.0021", "4"), ("full", "0.0051", "1")):
        row = cells(cost_columns(found), found, label)
        assert (row["seconds per update"], row["compile seconds"]) == (update, compilation)
        assert "seconds per job, with compilation" not in row


def test_older_records_show_the_seconds_of_a_job(tmp_path):
    found = priced(tmp_path, steady=False)
    row = cells(cost_columns(found), found, "frozen")
    assert row["seconds per job, with compilation"] == "9"
    assert "seconds per update" not in row


def test_the_loss_is_beside_the_accuracy(tmp_path):
    found = priced(tmp_path, steady=True)
    row = cells(result_columns(found), found, "full")
    assert (row["test_accuracy"], row["test_loss"]) == ("0.25", "1.15")
