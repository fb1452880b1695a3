import itertools
import re

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from src.analysis.analysis import analyze, make_question
from src.analysis.export import history_table, jobs_table
from src.analysis.report import print_analysis, show_count, show_interval, write_report
from src.analysis.statistics import Interval
from src.tracking.records import load_jobs
from tests.fabricate import make_sweep

PICTURES = {"lr_sweep.png", "curves.png", "strategies.png"}


def report(folder, out, **asked):
    jobs = load_jobs(folder)
    table = jobs_table(jobs)
    analysis = analyze(table, make_question(table, **asked))
    return analysis, write_report(analysis, history_table(jobs), out, folder / "sweep.parquet")


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
    analysis, _ = report(sweep, tmp_path)
    with (tmp_path / "out.txt").open("w+") as file:
        print_analysis(analysis, Console(file=file, width=width))
        file.seek(0)
        text = file.read()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("discriminative"))
    arm = next(arm for arm in analysis.arms if arm.label == "discriminative")
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
    analysis, files = report(folder, tmp_path / "out", **asked)
    assert {path.name for path in files[1:]} == expected
    assert analysis.recommendation in files[0].read_text()


def test_an_older_picture_does_not_stay(tmp_path):
    folder = make_sweep(tmp_path / "sweep", ("frozen", "full"), (0.01,), 1)
    (tmp_path / "lr_sweep.png").write_bytes(b"old")
    report(folder, tmp_path)
    assert not (tmp_path / "lr_sweep.png").exists()


def test_numbers_are_rounded_by_their_uncertainty():
    nan = float("nan")
    assert show_interval(Interval(0.51234, 0.4783, 0.5463, 3)) == "0.512 ± 0.034"
    assert show_interval(Interval(-12.3456, -14.4, -10.2, 3), sign=True) == "-12.3 ± 2.1"
    assert show_interval(Interval(1234.6, 1000, 1469.2, 3)) == "1235 ± 235"
    assert show_interval(Interval(0.5, nan, nan, 1)) == "0.5"
    assert show_interval(Interval(0.5, 0.5, 0.5, 3)) == "0.5"
    assert show_interval(Interval(nan, nan, nan, 0)) == "-"
    assert show_interval(Interval(1.0, 1 - 9e-9, 1 + 9e-9, 3)) == "1 ± 9e-09"


def test_large_numbers_are_short():
    shown = [show_count(value) for value in (9, 2880, 32896, 1.5e6, 2.2e9, 3.1e12)]
    assert shown == ["9", "2880", "32.9k", "1.5M", "2.2G", "3.1T"]
    for a, b in itertools.pairwise([1e3, 1e4, 1e5, 1e6, 1e7]):
        assert show_count(a) != show_count(b)
