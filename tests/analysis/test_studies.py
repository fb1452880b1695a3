# pyright: reportOptionalMemberAccess=false
"""The studies on sweeps whose answer was planted: they find it, say "undecided" where nothing was, and draw it."""

import itertools
import json
import math
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

from src.analysis.factors import compare_factors
from src.analysis.plots import COLOURS, IntervalRow, draw_rows, style_of
from src.analysis.reports import check_report, find_study, recorded_report, study_names, write_study
from src.analysis.statistics import ConfidenceInterval, bootstrap, crossing, mean_interval
from src.analysis.studies import (
    crossover,
    decision_matrix,
    label_efficiency,
    lora_rank,
    pretrained_vs_scratch,
    pretraining,
    warmup,
)
from src.config.schema import CONF
from src.errors import UserError
from tests.analysis.planted import RATES, plant, tables_of

LABELS = (10, 20, 40, 80, 160, 400)
PROBE_AND_FULL = {"strategy": ("linear_probe", "full"), "data.train_rows": LABELS}


def log2(value):
    return math.log2(value)


def crossing_at(where, slope=0.05):
    """Score of both arms: full rises by ``slope`` a doubling and meets the probe at ``where`` labels."""
    return lambda strategy, train_rows: 0.8 + (strategy == "full") * slope * log2(train_rows / where)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Writing a picture takes most of a study's time: only the tests marked so do it."""
    if "written" not in request.node.name:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path: path.touch())


@pytest.fixture
def figures(quick, monkeypatch):
    """The figures that a study would write."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: kept.append(figure))
    return kept


def run(name, folder):
    """Return the report and its page's text."""
    report, page = write_study(name, folder)
    text = page.read_text()
    assert report.conclusion in text
    assert set(re.findall(r"!\[.*\]\((.*)\)", text)) == set(report.pictures)
    assert all((folder / picture).exists() for picture in report.pictures)
    assert "nan" not in text.lower()
    return report, text


def row(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start} |"))


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "first", "last"),
    [
        ([-1, -1, 1, 1], 10**1.5, 10**1.5),  # half way between 10 and 100 on a logarithmic axis
        ([-3, 1, 1, 1], 10**0.75, 10**0.75),
        ([1, 1, 1, 1], -math.inf, -math.inf),
        ([-1, -1, -1, -1], math.inf, math.inf),
        ([-1, 1, -1, 1], 10**0.5, 10**2.5),
        ([-1, 1, 1, -1], 10**0.5, math.inf),
        ([1, -1, 1, 1], -math.inf, 10**1.5),
        ([-1, 0, 1, 1], 10.0, 10.0),
        ([0, 0, 0, 0], -math.inf, -math.inf),
    ],
)
def test_a_crossing_is_found_on_a_logarithmic_axis(y, first, last):
    x = [1, 10, 100, 1000]
    assert crossing(x, y) == pytest.approx(first)
    assert crossing(x, y, last=True) == pytest.approx(last)


def test_the_bootstrap_of_a_mean_is_its_t_interval_where_values_are_normal():
    """The expanded percentiles are made for that; plain ones would be a fifth narrower at 10 seeds."""
    values = stats.norm.ppf((np.arange(10) + 0.5) / 10)
    low, high = bootstrap(lambda drawn: values[drawn].mean(), 10)
    expected = mean_interval(values)
    assert low == pytest.approx(expected.low, rel=0.06)
    assert high == pytest.approx(expected.high, rel=0.06)
    assert bootstrap(lambda drawn: values[drawn].mean(), 10) == (low, high)


def test_the_bootstrap_s_bounds_are_those_of_all_resamples():
    """Against the whole distribution over the 5^5 resamples of five values."""
    values = np.array([0.0, 1.0, 3.0, 4.0, 10.0])
    exact = np.sort([values[list(drawn)].mean() for drawn in itertools.product(range(5), repeat=5)])
    place = int(len(exact) * stats.norm.cdf(-math.sqrt(5 / 4) * 2.7764))  # Student's t for 4 degrees of freedom
    low, high = bootstrap(lambda drawn: values[drawn].mean(), 5)
    assert low == pytest.approx(exact[place], abs=0.21)  # the means lie 0.2 apart there
    assert high == pytest.approx(exact[-1 - place], abs=0.81)


def test_a_bootstrap_ranks_infinities_and_needs_two_seeds():
    low, high = bootstrap(lambda drawn: math.inf if 0 in drawn else 1.0, 5)
    assert (low, high) == (1.0, math.inf)
    assert all(map(math.isnan, bootstrap(lambda drawn: 1.0, 1)))


# --- the machinery --------------------------------------------------------------------------------------------------


def test_every_study_can_be_found_and_a_typo_is_named():
    assert {*QUESTIONS, "strategies", "lora_compose", "forgetting", "sequence", "stability", *OF_WEIGHTS} == set(
        study_names()
    )
    assert all(callable(find_study(name)) for name in study_names())
    check_report(None)
    with pytest.raises(
        UserError, match=r"report is 'crosover' \(did you mean 'crossover'\?\); allowed: crossover, dec"
    ):
        check_report("crosover")


def test_failed_jobs_are_left_out_and_counted(tmp_path):
    """A failure costs its seed, not the report: seed 4 of every job at 20 labels failed or was killed."""

    def status(condition, rate, seed):
        if condition["data.train_rows"] != 20 or seed != 4:
            return "completed"
        return "failed" if rate > 0.001 else "unfinished"

    folder = plant(tmp_path, PROBE_AND_FULL, crossing_at(50), rates=RATES, status=status, own=0.005)
    report, text = run("crossover", folder)
    assert report.remarks == (
        "6 of 180 jobs did not complete (4 failed, 2 unfinished): the report uses the other 174.",
    )
    assert report.remarks[0] in text
    assert "over 4 seeds" in report.conclusion  # the crossing needs the same seeds everywhere


def test_nothing_completed_is_said(tmp_path):
    plant(tmp_path, PROBE_AND_FULL, crossing_at(50), status=lambda *_: "failed")
    with pytest.raises(UserError, match=r"no job of .* has completed, so there is nothing to report"):
        write_study("crossover", tmp_path)
    with pytest.raises(UserError, match="there is no sweep folder"):
        write_study("crossover", tmp_path / "nowhere")


def test_the_rate_is_chosen_on_validation_for_every_condition(tmp_path):
    """The best rate moves with the condition, and test would choose another."""
    folder = plant(tmp_path, PROBE_AND_FULL, crossing_at(50), rates=RATES, own=0.001)
    for file in folder.glob("*/summary.json"):
        record = json.loads(file.read_text())
        few = record["config"]["data"]["train_rows"] <= 40
        best = 0.001 if few else 0.1
        record["metrics"]["val_loss"] = 0.3 + abs(math.log10(record["config"]["lr_fine"] / best))
        file.write_text(json.dumps(record))
    found = compare_factors(tables_of(folder)[0], ["strategy"], ["data.train_rows"])
    chosen = {(arm.label, *arm.level): arm.chosen["lr_fine"] for arm in found.arms}
    assert chosen == {(s, n): 0.001 if n <= 40 else 0.1 for s in ("linear_probe", "full") for n in LABELS}
    report, _ = write_study("crossover", folder)
    assert any(note.startswith("Chosen at the edge of the grid") for note in report.notes)


def test_what_differs_besides_is_tuned_unless_it_is_the_task(tmp_path):
    grid = {"strategy": ("linear_probe", "full"), "data.train_rows": (10, 100), "optimizer.weight_decay": (0.0, 0.1)}
    score = lambda strategy, train_rows, weight_decay: 0.7 + weight_decay  # noqa: E731
    table, _ = tables_of(plant(tmp_path / "a", grid, score, seeds=2, rates=RATES))
    found = compare_factors(table, ["strategy"], ["data.train_rows"])
    assert found.spec.tune == ("lr_fine", "optimizer.weight_decay")
    assert all(arm.chosen == {"lr_fine": 0.01, "optimizer.weight_decay": 0.1} for arm in found.arms)
    other = {"strategy": ("linear_probe", "full"), "data.train_rows": (10, 100), "data.similarity": (0.1, 0.9)}
    plant(tmp_path / "b", other, lambda strategy, train_rows, similarity: 0.7, seeds=2)
    with pytest.raises(UserError, match=r"differ in 'data.similarity' too, which validation cannot choose"):
        write_study("crossover", tmp_path / "b")


def test_a_sweep_gone_on_with_under_another_report_is_one_sweep(tmp_path):
    folder = plant(tmp_path, {"strategy": ("frozen", "full")}, lambda strategy: 0.8 + 0.1 * (strategy == "full"))
    for file in sorted(folder.glob("*/summary.json"))[:9]:
        record = json.loads(file.read_text())
        record["config"] |= {"report": "strategies", "name": "other", "tracker": {"name": "disk"}}
        file.write_text(json.dumps(record))
    report, _ = write_study("strategies", folder)
    assert report.title == "Which strategy is best?"
    assert recorded_report(folder) == "strategies"


# --- crossover ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [14, 50, 250])
def test_a_planted_crossing_is_found(tmp_path, where):
    """Both arms are straight lines in log labels, so the interpolation is exact where no noise is each arm's own."""
    report, text = run("crossover", plant(tmp_path / "exact", PROBE_AND_FULL, crossing_at(where), rates=RATES))
    assert f"full overtakes linear_probe on test accuracy at about {where:.3g} labels" in report.conclusion
    assert f"{where:.3g} to {where:.3g})" in report.conclusion  # what the seeds share takes no part in differences
    assert len(re.findall(r"\| [^|]* \(0.01\) \| [^|]* \(0.01\) \|", text)) == len(LABELS)
    report, _ = run("crossover", plant(tmp_path / "noisy", PROBE_AND_FULL, crossing_at(where), own=0.01))
    at, low, high = map(float, re.search(r"about (\S+) labels .*: (\S+) to (\S+)\)", report.conclusion).groups())
    assert low < where < high
    assert low <= at <= high


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (1, "No crossing from 10 to 400 labels: full has the better mean test accuracy at every number of labels; the "
            "paired 95 % interval excludes 0 at 6 of 6 numbers of labels (5 seeds)."),
        (1e5, "linear_probe has the better mean test accuracy at the largest number of labels"),
    ],
)  # fmt: skip
def test_no_crossing_is_said(tmp_path, where, words):
    report, _ = run("crossover", plant(tmp_path, PROBE_AND_FULL, crossing_at(where), own=0.005))
    assert words in report.conclusion


def test_a_tie_is_undecided(tmp_path):
    report, _ = run("crossover", plant(tmp_path, PROBE_AND_FULL, crossing_at(50, slope=0), own=0.02))
    assert report.conclusion.startswith("Undecided: ")


def test_an_exact_tie_and_one_seed_are_undecided(tmp_path):
    report, _ = run("crossover", plant(tmp_path / "tie", PROBE_AND_FULL, crossing_at(50, slope=0)))
    assert report.conclusion.startswith("Undecided: at 10 to 400 labels, no paired interval")
    report, _ = run("crossover", plant(tmp_path / "one", PROBE_AND_FULL, crossing_at(50), seeds=1))
    assert report.conclusion.startswith("Undecided: 1 seed common to all points")


def test_a_diverged_condition_is_skipped_and_named(tmp_path):
    """Full diverges at every rate with 40 labels: the crossing is interpolated between 20 and 80."""

    def status(condition, rate, seed):
        lost = condition == {"strategy": "full", "data.train_rows": 40} and seed == 1
        return "diverged" if lost else "completed"

    report, text = run("crossover", plant(tmp_path, PROBE_AND_FULL, crossing_at(50), status=status))
    assert "about 50 labels" in report.conclusion
    assert not any(line.startswith("| 40 labels |") for line in text.splitlines())
    assert any("diverged" in note and "full, train_rows=40" in note for note in report.notes)


def test_what_the_crossover_needs_is_named(tmp_path):
    plant(tmp_path / "a", {"strategy": ("full", "frozen"), "data.train_rows": LABELS}, crossing_at(5))
    with pytest.raises(
        UserError, match="compares strategy=linear_probe, which is not in this sweep; it has frozen, full"
    ):
        write_study("crossover", tmp_path / "a")
    plant(tmp_path / "b", {"strategy": ("full", "linear_probe")}, lambda strategy: 0.5)
    with pytest.raises(UserError, match=r"have no 'data.train_rows', which the report compares"):
        write_study("crossover", tmp_path / "b")
    one = {"strategy": ("full", "linear_probe"), "data.train_rows": (10,)}
    plant(tmp_path / "c", one, crossing_at(5))
    with pytest.raises(UserError, match=r"needs at least 2 values of data.train_rows .*; this sweep has 1"):
        write_study("crossover", tmp_path / "c")


def test_the_picture_of_a_crossing_shows_it(tmp_path, figures):
    table, _ = tables_of(plant(tmp_path, PROBE_AND_FULL, crossing_at(50), own=0.01))
    found = compare_factors(table, ["strategy"], ["data.train_rows"])
    report = crossover.study(table, None, tmp_path)
    left, right = figures[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    for name in ("linear_probe", "full"):
        assert list(lines[name].get_xdata()) == list(LABELS)
        np.testing.assert_allclose(lines[name].get_ydata(), [found.at(n)[name].test.mean for n in LABELS])
    assert lines["full"].get_color() != lines["linear_probe"].get_color()
    assert lines["full"].get_marker() != lines["linear_probe"].get_marker()
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlabel() == "labelled rows to fine-tune on"
    assert left.get_ylabel() == "test accuracy (share of rows)\nhigher is better"
    upright = [line for line in right.get_lines() if line.get_linestyle() == ":"]
    assert [f"{line.get_xdata()[0]:.3g}" for line in upright] == re.findall(r"about (\S+) labels", report.conclusion)
    assert {text.get_text() for text in figures[0].legends[0].get_texts()} >= {"linear_probe", "full"}


# --- label efficiency -----------------------------------------------------------------------------------------------

START = {"strategy": ("scratch", "linear_probe", "lora", "full"), "data.train_rows": (20, 40, 80, 160, 320)}


def shifted(**times):
    """Every arm is scratch's line with so many times fewer labels."""
    return lambda strategy, train_rows: 0.4 + 0.05 * log2(train_rows / 20 * times.get(strategy, 1))


def test_planted_factors_are_found(tmp_path):
    report, text = run("label_efficiency", plant(tmp_path, START, shifted(linear_probe=0.5, lora=3, full=8)))
    assert report.conclusion.startswith("To reach scratch's best test accuracy of 0.6, full needs 8 times fewer labels")
    assert "lora needs 3 times fewer labels (3 to 3)" in report.conclusion
    assert "linear_probe needs more labels or never reaches it" in report.conclusion
    assert "| linear_probe | not reached |" in text


def test_where_pre_training_is_swept_arms_are_told_apart_by_it(tmp_path):
    """SimCLR needs 4 times fewer labels than scratch under full, supervised 2 times; scratch is the same under both."""
    grid = {"pretrain.name": ("simclr", "supervised"), **START, "strategy": ("scratch", "full")}
    gain = {"scratch": {"simclr": 1, "supervised": 1}, "full": {"simclr": 4, "supervised": 2}}

    def score(name, strategy, train_rows):
        return 0.1 * log2(gain[strategy][name] * train_rows / 320) + 0.6

    report, text = run("label_efficiency", plant(tmp_path, grid, score))
    assert "simclr + full needs 4 times fewer labels" in report.conclusion
    assert "supervised + full needs 2 times fewer labels" in report.conclusion
    assert "| level | scratch | simclr + full | supervised + full |" in text


def test_a_factor_that_the_range_cuts_off_says_so(tmp_path):
    report, _ = run("label_efficiency", plant(tmp_path, START, shifted(full=100)))
    assert "full needs at least 16 times fewer labels" in report.conclusion
    assert "undecided for linear_probe, lora" in report.conclusion


def test_equal_arms_are_undecided_and_noise_is_in_the_interval(tmp_path):
    report, _ = run("label_efficiency", plant(tmp_path / "tie", START, shifted(), own=0.01))
    assert report.conclusion.startswith("Undecided whether ")
    folder = plant(tmp_path / "noisy", START, shifted(lora=3), own=0.01)
    report, text = run("label_efficiency", folder)
    low, high = map(float, re.search(r"\| lora \| [0-9.]+ \(([0-9.]+) to ([0-9.]+)\)", text).groups())
    assert 1 < low < 3 < high
    report, _ = run("label_efficiency", plant(tmp_path / "one", START, shifted(lora=3), seeds=1))
    assert report.conclusion.startswith("Undecided: 1 seed")


def test_a_loss_is_reached_from_above(tmp_path):
    """Without an accuracy the reported metric is a loss, of which less is better."""
    folder = plant(tmp_path, START, shifted(full=4))
    for file in folder.glob("*/summary.json"):
        record = json.loads(file.read_text())
        del record["metrics"]["test_accuracy"]
        file.write_text(json.dumps(record))
    report, _ = run("label_efficiency", folder)
    assert "scratch's best test loss of 0.5, full needs 4 times fewer labels (4 to 4)" in report.conclusion


def test_the_picture_of_label_efficiency_has_the_line_to_reach(tmp_path, figures):
    table, _ = tables_of(plant(tmp_path, START | {"strategy": ("scratch", "full")}, shifted(full=4)))
    label_efficiency.study(table, None, tmp_path)
    (ax,) = figures[0].axes
    (goal,) = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert list(goal.get_ydata()) == pytest.approx([0.6, 0.6])
    assert len(ax.collections) == 2  # a band an arm
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["20", "40", "80", "160", "320"]


# --- rank -----------------------------------------------------------------------------------------------------------

RANKS = {"strategy": ("lora",), "strategy.rank": (1, 2, 4, 8, 16)}


def elbow_at(where):
    return lambda strategy, rank: 0.9 - 0.1 * max(0, log2(where / rank)) + 1e-5 * rank


@pytest.mark.parametrize("where", [2, 4, 8])
def test_a_planted_elbow_is_found(tmp_path, where):
    folder = plant(tmp_path, RANKS, elbow_at(where), own=0.004)
    report, text = run("lora_rank", folder)
    assert report.conclusion.startswith(f"The elbow is rank {where} ({100 * where:,} trainable parameters)")
    assert row(text, where // 2).count("\\*") == 1
    assert row(text, where).count("\\*") == 0


def test_ranks_that_tie_or_never_level_off(tmp_path):
    report, _ = run("lora_rank", plant(tmp_path / "tie", RANKS, lambda strategy, rank: 0.9, own=0.01))
    assert report.conclusion.startswith("Undecided which rank is best")
    assert "rank 1 (100 trainable parameters) is the cheapest choice" in report.conclusion
    report, _ = run("lora_rank", plant(tmp_path / "rise", RANKS, elbow_at(64), own=0.004))
    assert report.conclusion.startswith("Rank 16 (1,600 trainable parameters) is needed")
    assert "the largest that was tried" in report.conclusion
    report, _ = run("lora_rank", plant(tmp_path / "one", RANKS, elbow_at(4), seeds=1))
    assert report.conclusion.startswith("Undecided: 1 common seed")
    plant(tmp_path / "few", {"strategy": ("lora",), "strategy.rank": (4,)}, elbow_at(4))
    with pytest.raises(UserError, match=r"needs at least 2 values of strategy.rank with a result; this sweep has 1"):
        write_study("lora_rank", tmp_path / "few")


def test_other_strategies_beside_lora_are_left_out_and_named(tmp_path):
    plant(tmp_path / "lora", RANKS, elbow_at(4), own=0.004)
    plant(tmp_path / "full", {"strategy": ("full",)}, lambda strategy: 0.95)
    report, _ = run("lora_rank", tmp_path)
    assert "5 jobs without strategy.rank left out." in report.notes
    assert "elbow is rank 4 " in report.conclusion


def test_the_picture_of_ranks_rings_the_elbow(tmp_path, figures):
    table, _ = tables_of(plant(tmp_path, RANKS, elbow_at(4), own=0.004))
    lora_rank.study(table, None, tmp_path)
    axes = figures[0].axes
    sizes = next(line for line in axes[1].get_lines() if line.get_label() == "trainable parameters")
    assert list(sizes.get_ydata()) == [100, 200, 400, 800, 1600]
    for ax, value in ((axes[0], table[table["strategy.rank"] == 4]["test_accuracy"].mean()), (axes[1], 400)):
        ring = ax.get_lines()[-1]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (4, pytest.approx(value))
        assert ring.get_markerfacecolor() == "none"


# --- warm-up --------------------------------------------------------------------------------------------------------

WARMUP = {"strategy": ("full", "linear_probe"), "schedule": ("warmup_linear",), "schedule.warmup": (0.0, 0.1)}


def warm_curve(condition, rate, seed, steps=100):
    """The loss climbs by 0.5 (0.05 with a warm-up) until update 6; a much later peak is none of the first tenth."""
    peak = 0.05 if condition.get("schedule.warmup") else 0.5 + 0.01 * seed
    values = {0: 1.0, 2: 1 + 0.4 * peak, 6: 1 + peak, 10: 0.9, 40: 9.0, steps: 0.3}
    return [
        {"stage": "finetune", "step": step, "val_loss": value} | ({"loss": 2 * value} if step else {})
        for step, value in values.items()
    ]


def helps(strategy, schedule, warmup):
    return 0.8 + 0.03 * (strategy == "full" and warmup > 0)


def test_a_planted_help_is_found_with_its_early_rise(tmp_path):
    report, text = run("warmup", plant(tmp_path, WARMUP, helps, own=0.003, curve=warm_curve))
    assert report.conclusion.startswith(
        "Compared with no warm-up on test accuracy, better: warm-up 0.1 under full; undecided: warm-up 0.1 under "
        "linear_probe"
    )
    assert "smaller with warm-up 0.1 under full, warm-up 0.1 under linear_probe." in report.conclusion
    # val_loss: mean of 0.50 to 0.54; loss, from update 2 on: twice (peak - 0.4 peak), 0.624 and 0.06
    cells = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| full |")}
    assert "| 0.520 ± 0.020 | 0.624 ± 0.024 |" in cells["no warm-up"]
    assert "| 0.05, -0.470 ± 0.020 \\* | 0.06, -0.564 ± 0.024 \\* |" in cells["warm-up 0.1"]


def test_without_rows_there_is_no_rise_but_a_verdict(tmp_path):
    report, text = run("warmup", plant(tmp_path, WARMUP, lambda **_: 0.8, own=0.01))
    assert report.conclusion.startswith("Undecided: on test accuracy no difference between no warm-up and warm-up 0.1")
    assert "fewer than two logged rows" in text
    report, _ = run("warmup", plant(tmp_path / "one", WARMUP, helps, seeds=1))
    assert report.conclusion.startswith("Undecided: 1 common seed")


def test_only_the_same_decay_is_compared(tmp_path):
    plant(tmp_path / "constant", {"strategy": ("full",), "schedule": ("constant",)}, lambda **_: 0.99)
    plant(tmp_path / "cosine", WARMUP | {"schedule": ("warmup_cosine",), "schedule.warmup": (0.1,)}, lambda **_: 0.99)
    with pytest.raises(UserError, match=r"results at schedule.warmup=0 and at another, same schedule"):
        write_study("warmup", tmp_path)
    plant(tmp_path / "linear", WARMUP, helps, own=0.003)
    report, text = run("warmup", tmp_path)
    assert "better: warm-up 0.1" in report.conclusion
    assert "0.99" not in text
    assert "5 jobs without schedule.warmup or strategy or schedule left out." in report.notes


def test_the_picture_of_a_warmup_has_both_panels(tmp_path, figures):
    table, history = tables_of(plant(tmp_path, WARMUP, helps, own=0.003, curve=warm_curve))
    warmup.study(table, history, tmp_path)
    left, right = figures[0].axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ["full,\nwarm-up 0.1", "linear_probe,\nwarm-up 0.1"]
    assert left.get_xlabel() == "test accuracy, minus no warm-up, paired by seed\n(right of 0 is better)"
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["full", "linear_probe"]
    means = [line.get_xdata()[0] for line in right.get_lines() if line.get_markersize() == 9 and len(line.get_xdata())]
    np.testing.assert_allclose(means, [0.52, 0.05, 0.52, 0.05])
    assert right.get_legend_handles_labels()[1] == ["no warm-up", "warm-up 0.1"]


# --- the decision matrix --------------------------------------------------------------------------------------------

ARMS = ("linear_probe", "freeze_bottom", "freeze_middle", "lora", "full", "discriminative")
CELLS = {"strategy": ARMS, "data.similarity": (0.3, 0.95), "data.train_rows": (32, 1000)}
PLANTED = {(0.95, 32): "freeze_bottom", (0.95, 1000): "linear_probe", (0.3, 32): "lora"}  # (0.3, 1000): a tie


def winners(strategy, similarity, train_rows):
    return 0.8 + 0.1 * (PLANTED.get((similarity, train_rows)) == strategy)


def test_planted_winners_are_found_and_held_against_the_rule(tmp_path):
    report, text = run("decision_matrix", plant(tmp_path, CELLS, winners, own=0.004))
    lines = {
        tuple(map(float, line.split("|")[1:3])): line for line in text.splitlines() if re.match(r"\| 0\.\d+ \|", line)
    }
    verdicts = {cell: line.split("|")[-2].strip() for cell, line in lines.items()}
    assert verdicts == {(0.95, 32): "agrees", (0.95, 1000): "disagrees", (0.3, 32): "agrees", (0.3, 1000): "undecided"}
    for cell, winner in PLANTED.items():
        assert f"| {winner} |" in lines[cell]
        assert ", decided |" in lines[cell]
        assert f"{winner} at similarity {cell[0]} and {cell[1]} labels" in report.conclusion
    assert ", undecided |" in lines[0.3, 1000]
    assert "(undecided in 1 of 4 cells)" in report.conclusion
    assert "confirmed in 2, refuted in 1 and undecided in 1 of 4 cells" in report.conclusion


def test_a_lead_in_a_loss_is_positive_too(tmp_path):
    folder = plant(tmp_path, CELLS, winners, own=0.004)
    for file in folder.glob("*/summary.json"):
        record = json.loads(file.read_text())
        del record["metrics"]["test_accuracy"]
        file.write_text(json.dumps(record))
    _, text = run("decision_matrix", folder)
    line = next(line for line in text.splitlines() if line.startswith("| 0.95 | 32 | freeze_bottom |"))
    assert re.search(r"\| \+0.10*\b[^|]*, decided \| freeze_bottom \| agrees \|", line)


def test_ties_one_seed_and_missing_arms_are_undecided(tmp_path):
    report, _ = run("decision_matrix", plant(tmp_path / "tie", CELLS, lambda **_: 0.8, seeds=3))  # to the bit
    assert report.conclusion.startswith("Undecided: in no cell")
    report, _ = run("decision_matrix", plant(tmp_path / "one", CELLS, winners, seeds=1))
    assert report.conclusion.startswith("Undecided: in no cell")
    alone = CELLS | {"strategy": ("linear_probe",)}
    _, text = run("decision_matrix", plant(tmp_path / "alone", alone, winners, seeds=2))
    assert text.count("| no other arm | not run | not run |") == 4


def test_a_cell_whose_jobs_diverged_stays_empty(tmp_path):
    def status(condition, rate, seed):
        return "diverged" if (condition["data.similarity"], condition["data.train_rows"]) == (0.3, 32) else "completed"

    report, text = run("decision_matrix", plant(tmp_path, CELLS, winners, own=0.004, status=status))
    assert "of 3 cells" in report.conclusion
    assert not re.search(r"\| 0.3 \| 32 \|", text)
    assert any("diverged" in note for note in report.notes)


def test_the_picture_of_the_matrix_names_the_winners(tmp_path, figures):
    table, _ = tables_of(plant(tmp_path, CELLS, winners, own=0.004))
    decision_matrix.study(table, None, tmp_path)
    (ax,) = figures[0].axes
    names = {text.get_position(): text.get_text() for text in ax.texts if text.get_weight() == "bold"}
    assert {(x, round(y)): name for (x, y), name in names.items() if (x, round(y)) != (1, 0)} == {
        (0, 0): "lora", (0, 1): "freeze_bottom", (1, 1): "linear_probe",
    }  # fmt: skip
    tiles = {(round(tile.get_x() + 0.48), round(tile.get_y() + 0.48)): tile for tile in ax.patches}
    assert to_hex(tiles[0, 0].get_facecolor()).upper() == COLOURS[ARMS.index("lora")]
    assert [at for at, tile in tiles.items() if tile.get_hatch()] == [(1, 0)]  # the tie
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("labelled rows to fine-tune on", "similarity of the tasks")


# --- pre-trained against scratch ------------------------------------------------------------------------------------

RACE = {"strategy": ("scratch", "full", "linear_probe")}


def fall(condition, rate, seed, steps=200):
    """Straight lines down: scratch 2.0 to 1.0 at update 200, full 1.8 to 0.8 at 50, the probe 1.9 to 1.1 at 100."""
    start, end, until = {"scratch": (2.0, 1.0, 200), "full": (1.8, 0.8, 50), "linear_probe": (1.9, 1.1, 100)}[
        condition["strategy"]
    ]
    shift, own = 0.02 * seed, 0.002 * ((seed * 7 + len(condition["strategy"])) % 5)
    return [
        {"stage": "finetune", "step": step, "val_loss": start + (end - start) * min(1, step / until) + shift + own}
        for step in range(0, steps + 1, 10)
    ]


def test_the_planted_number_of_updates_is_found(tmp_path):
    """Full reaches 1.0 after 50 * (1.8 - 1.0) / (1.8 - 0.8) = 40 updates, give or take 0.4 for the seeds' own noise."""
    score = lambda strategy: 0.8 + 0.05 * (strategy == "full")  # noqa: E731
    report, text = run("pretrained_vs_scratch", plant(tmp_path, RACE, score, own=0.01, curve=fall))
    assert report.conclusion.startswith("full ends better than scratch (+0.05")
    found = re.search(r"lowest value after (\S+) ± \S+ updates, scratch after 200", report.conclusion)
    assert float(found[1]) == pytest.approx(40, abs=0.4)
    assert "| not reached |" in row(text, "linear_probe")
    cells = row(text, "full").split("|")
    assert float(cells[5].split("±")[0]) == pytest.approx(-0.2, abs=0.01)  # at the start
    assert float(cells[6].split("±")[0]) == pytest.approx(-0.2, abs=0.01)  # at the end
    assert cells[4].strip().endswith("\\*")
    assert "*" not in cells[6]  # the validation rows chose the rate, so they give no verdict


def test_the_verdict_is_that_of_test_where_validation_disagrees(tmp_path):
    """On the rows that chose its rate full ends 0.2 lower; on test rows it is worse by 0.05."""
    score = lambda strategy: 0.8 - 0.05 * (strategy == "full")  # noqa: E731
    folder = plant(tmp_path, RACE, score, own=0.005, curve=fall)
    for file in folder.glob("*/summary.json"):
        record = json.loads(file.read_text())
        record["metrics"]["val_loss"] = {"full": 0.5}.get(record["config"]["strategy"]["name"], 1.0)
        file.write_text(json.dumps(record))
    report, _ = run("pretrained_vs_scratch", folder)
    assert report.conclusion.startswith("full ends worse than scratch (-0.05")


def test_late_equal_and_single_seed_are_undecided(tmp_path):
    same = {"strategy": ("scratch", "full")}
    level = lambda condition, rate, seed: fall({"strategy": "scratch"}, rate, seed)  # noqa: E731
    report, _ = run("pretrained_vs_scratch", plant(tmp_path / "same", same, lambda strategy: 0.8, curve=level))
    assert report.conclusion.startswith("Undecided whether full ends better than scratch")
    late = {"strategy": ("scratch", "linear_probe")}
    report, _ = run("pretrained_vs_scratch", plant(tmp_path / "late", late, lambda strategy: 0.8, curve=fall))
    assert "it does not reach scratch's lowest value at 5 of 5 seeds" in report.conclusion
    report, _ = run("pretrained_vs_scratch", plant(tmp_path / "one", RACE, lambda strategy: 0.8, seeds=1, curve=fall))
    assert report.conclusion.startswith("Undecided: 1 common seed")
    plant(tmp_path / "bare", RACE, lambda strategy: 0.8)
    with pytest.raises(UserError, match="needs logged values of val_loss of scratch and of another arm"):
        write_study("pretrained_vs_scratch", tmp_path / "bare")


def test_a_damaged_history_is_remarked_on(tmp_path):
    folder = plant(tmp_path, WARMUP, helps, own=0.003, curve=warm_curve)
    (folder / "000_0" / "metrics.jsonl").write_text("[\n[\n")
    report, _ = run("warmup", folder)
    assert report.remarks[0].startswith("There are no curves: line 1 of ")
    assert "better: warm-up 0.1 under full" in report.conclusion


def test_the_picture_of_the_race_has_bands_and_marks(tmp_path, figures):
    table, history = tables_of(plant(tmp_path, RACE, lambda strategy: 0.8, own=0.01, curve=fall))
    found = compare_factors(table, ["strategy"]).at()
    curves = {name: pretrained_vs_scratch.curve_of(history, found[name]) for name in RACE["strategy"]}
    pretrained_vs_scratch.study(table, history, tmp_path)
    (ax,) = figures[0].axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["full"].get_ydata(), curves["full"].mean(axis=1))
    (diamond,) = [line for line in ax.get_lines() if line.get_marker() == "D" and len(line.get_xdata()) == 1]
    assert diamond.get_xdata()[0] == pytest.approx(40, abs=0.4)
    band = ax.collections[0].get_paths()[0].vertices
    spread = mean_interval(curves["scratch"].iloc[0])
    edges = [y for x, y in np.asarray(band) if x == 0]
    assert (min(edges), max(edges)) == pytest.approx((spread.low, spread.high))
    assert ax.get_xlabel() == "updates of fine-tuning"


def test_curves_are_interpolated_between_rows():
    curve = pd.Series([4.0, 2.0, 3.0, 1.0], index=[0, 10, 20, 30])
    assert pretrained_vs_scratch.first_reach(curve, 3.0) == 5.0
    assert pretrained_vs_scratch.first_reach(curve, 4.0) == 0.0
    assert pretrained_vs_scratch.first_reach(curve, 1.5) == 27.5
    assert pretrained_vs_scratch.first_reach(curve, 0.5) == math.inf


# --- pre-training -------------------------------------------------------------------------------------------

PRETRAININGS = {"pretrain.name": ("mlm", "mlm_nsp", "mlm_sop"), "strategy": ("full", "linear_probe")}


def pretraining_score(name, strategy):
    """Under both strategies mlm_sop scores 0.05 more; under full alone mlm_nsp scores 0.03 less."""
    return 0.8 + 0.05 * (name == "mlm_sop") - 0.03 * (name == "mlm_nsp" and strategy == "full")


def test_the_better_pre_training_is_found_under_each_strategy(tmp_path):
    report, text = run("pretraining", plant(tmp_path, PRETRAININGS, pretraining_score, rates=RATES, own=0.003))
    assert report.title == "Which pre-training gives the better target task?"
    assert report.conclusion == (
        "Compared with mlm on test accuracy, better: mlm_sop; worse: mlm_nsp under full; undecided: mlm_nsp under "
        "linear_probe (paired 95 % intervals at 5 seeds, each arm at its own choice)."
    )
    assert re.search(r"\| full \| mlm_nsp \| 0.01 \| 0.23 \| 0.770 ± \S+ \| 0.33 \| -0.03\d* ± \S+ \\\* \| 5 \|", text)
    assert row(text, "mlm_sop").count("0.850 ±") == 2
    assert row(text, "mlm_sop").count("\\*") == 2
    assert "By validation, mlm_sop with full is best." in text


def test_numbers_are_compared_with_the_smallest_in_their_order(tmp_path):
    """0.05 is smaller than 0.4 and 0.15, whatever the folders' names say; 0.4 is best by 0.04."""
    grid = {"pretrain.mask_prob": (0.4, 0.05, 0.15)}
    report, text = run(
        "pretraining", plant(tmp_path, grid, lambda mask_prob: 0.8 + 0.04 * (mask_prob == 0.4), own=0.003)
    )
    assert report.title == "Which mask prob of pre-training gives the better target task?"
    words = "Compared with mask_prob=0.05 on test accuracy, better: mask_prob=0.4; undecided: mask_prob=0.15 ("
    assert report.conclusion.startswith(words)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| mask_prob=")]
    assert rows == ["mask_prob=0.05", "mask_prob=0.15", "mask_prob=0.4"]


def test_labels_are_what_the_others_are_compared_with(tmp_path):
    grid = {"pretrain.name": ("simclr", "supervised", "mae")}
    report, _ = run("pretraining", plant(tmp_path, grid, lambda name: 0.8 - 0.04 * (name == "mae"), own=0.003))
    assert report.conclusion.startswith("Compared with supervised on test accuracy, worse: mae; undecided: simclr (")


def test_batches_of_pre_training_are_compared_with_how_steady_their_losses_are(tmp_path):
    """Of losses 1 to 8, the last half deviates by 1.29."""

    def course(condition, rate, seed):
        scale = 16 / condition["pretrain.batch_size"]
        return [{"stage": "pretrain", "step": n, "loss": float(n * scale)} for n in range(1, 9)]

    grid = {"pretrain.batch_size": (16, 32)}
    report, text = run("pretraining", plant(tmp_path, grid, lambda batch_size: 0.8, own=0.01, curve=course))
    assert report.title == "Which batch size of pre-training gives the better target task?"
    expected = np.std([5, 6, 7, 8], ddof=1)
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| batch_size=")][-2:]
    assert [float(cell.split("±")[0]) for cell in cells] == pytest.approx([expected, expected / 2], rel=0.01)


def test_a_difference_is_the_paired_one(tmp_path):
    """Against scipy's paired t test on the records themselves."""
    table, _ = tables_of(plant(tmp_path, PRETRAININGS, pretraining_score, own=0.02))
    found = compare_factors(pretraining.with_labels(table, ["pretrain"]), ["pretraining"], ["strategy"]).against("mlm")
    one = found.at("full")["mlm_sop"]
    own = table[table["strategy"] == "full"].pivot_table("test_accuracy", "seed", "pretrain")
    low, high = stats.ttest_rel(own["mlm_sop"], own["mlm"]).confidence_interval(0.95)
    assert (one.difference.low, one.difference.high) == pytest.approx((low, high))


def test_settings_that_only_come_with_an_option_are_no_part_of_its_name(tmp_path):
    """The optimizer differs from option to option and a rate is mlm's alone: neither tells more than the option."""
    masked = {"pretrain.name": ("mlm",), "pretrain.mask_prob": (0.15, 0.4)}
    plant(tmp_path / "a", masked, lambda name, mask_prob: 0.8 + mask_prob / 10)
    other = {"pretrain.name": ("sop",), "pretrain.optimizer.name": ("sgd",)}
    plant(tmp_path / "b", other, lambda **_: 0.7)
    table, _ = tables_of(tmp_path)
    compared = pretraining.swept_settings(table)
    assert compared == ["pretrain", "pretrain.mask_prob"]
    assert pretraining.in_order(table, compared) == ["mlm, mask_prob=0.15", "mlm, mask_prob=0.4", "sop"]


def test_no_difference_one_seed_and_one_setting(tmp_path):
    report, _ = run("pretraining", plant(tmp_path / "tie", PRETRAININGS, lambda **_: 0.8, own=0.02))
    assert report.conclusion.startswith("Undecided: on test accuracy no difference between mlm and mlm_")
    report, _ = run("pretraining", plant(tmp_path / "one", PRETRAININGS, pretraining_score, seeds=1))
    assert report.conclusion.startswith("Undecided: 1 common seed give")
    plant(tmp_path / "same", {"strategy": ("full", "frozen")}, lambda strategy: 0.8)
    with pytest.raises(UserError, match=r"which do not vary; sweep pretrain=\.\.\., pretrain\.<setting>=\.\.\."):
        write_study("pretraining", tmp_path / "same")
    lost = lambda condition, rate, seed: "diverged" if condition["pretrain.mask_prob"] > 0.2 else "completed"  # noqa: E731
    plant(tmp_path / "lost", {"pretrain.mask_prob": (0.15, 0.4)}, lambda mask_prob: 0.8, status=lost)
    with pytest.raises(UserError, match="at least 2 settings of pre-training with a result; this sweep has 1"):
        write_study("pretraining", tmp_path / "lost")


def test_where_the_first_pre_training_diverged_there_is_no_difference(tmp_path):
    def status(condition, rate, seed):
        return "diverged" if condition == {"pretrain.name": "mlm", "strategy": "full"} else "completed"

    report, text = run("pretraining", plant(tmp_path, PRETRAININGS, pretraining_score, own=0.003, status=status))
    assert re.search(r"\| full \| mlm_sop \| .* \| - \| 5 \|", text)
    assert "better: mlm_sop under linear_probe" in report.conclusion
    assert row(text, "mlm").startswith("| mlm | - | 0.800")


def test_what_pre_training_reached_is_told_once_a_seed(tmp_path):
    folder = plant(tmp_path, PRETRAININGS, pretraining_score, rates=RATES, own=0.003)
    for file in folder.glob("*/summary.json"):
        record = json.loads(file.read_text())
        number, seed = len(record["config"]["pretrain"]["name"]), record["config"]["seed"]
        record["metrics"] |= {"source_test_perplexity": 10.0 * number + seed, "source_test_pair_accuracy": 0.5}
        file.write_text(json.dumps(record))
    _, text = run("pretraining", folder)
    spread = mean_interval(range(5))
    assert f"| mlm | 0.5 | {30 + spread.mean:.1f} ± {spread.half:.1f} |" in text


def test_a_batch_of_both_stages_is_noted(tmp_path):
    report, _ = run("pretraining", plant(tmp_path, {"batch_size": (32, 128)}, lambda batch_size: 0.8, own=0.01))
    assert report.title == "Which batch size of pre-training gives the better target task?"
    assert any(note.startswith("batch_size applies to fine-tuning too") for note in report.notes)


def test_the_picture_of_pre_trainings_has_a_row_each(tmp_path, figures):
    table, _ = tables_of(plant(tmp_path, PRETRAININGS, pretraining_score, own=0.003))
    pretraining.study(table, None, tmp_path)
    left, right = figures[0].axes
    means = [line for line in left.get_lines() if line.get_markersize() == 9 and len(line.get_ydata())]
    marks = {line.get_ydata()[0]: line.get_xdata()[0] for line in means}
    expected = table.groupby(["pretrain", "strategy"])["test_accuracy"].mean()  # one rate, so nothing is chosen
    assert marks == {place: pytest.approx(value) for place, value in enumerate(expected)}
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(PRETRAININGS["pretrain.name"])
    assert left.get_legend_handles_labels()[1] == ["full", "linear_probe"]
    assert right.get_xlabel() == "minus mlm, paired by seed\n(right of 0 is better)"


# --- what they share ------------------------------------------------------------------------------------------------


def test_rows_have_their_interval_and_their_values():
    ax = Figure().subplots()
    rows = [
        IntervalRow("a + b", "x", ConfidenceInterval(0.8, 0.7, 0.9, 5), [0.75, 0.85]),
        IntervalRow("a + b", "y", ConfidenceInterval(0.6, math.nan, math.nan, 1), [0.6]),
        IntervalRow("neither", "x", ConfidenceInterval(0.5, math.nan, math.nan, 1), []),
    ]
    draw_rows(ax, rows)
    lines = ax.get_lines()
    means = [line.get_xdata()[0] for line in lines if line.get_markersize() == 9 and len(line.get_xdata())]
    assert means == [0.8, 0.6, 0.5]
    bars = [list(line.get_xdata()) for line in lines if line.get_linewidth() == 2.5]
    assert bars == [[0.7, 0.9]]  # a single seed has no interval
    dots = [list(line.get_xdata()) for line in lines if line.get_marker() == "."]
    assert dots == [[0.75, 0.85], [0.6], []]
    assert list(ax.get_yticks()) == [0.5, 2.0]  # the band of two rows, then the third
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a + b", "neither"]
    assert ax.yaxis_inverted()
    assert ax.get_legend_handles_labels()[1] == ["x", "y"]


def test_each_arm_has_its_own_look():
    looks = [tuple(str(value) for value in style_of(place).values()) for place in range(20)]
    assert len(set(looks)) == 20


# --- presets --------------------------------------------------------------------------------------------------------


PRESETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / "experiment").glob("*.yaml"))}
ASKING = [name for name, preset in PRESETS.items() if "report" in preset]


def test_every_study_has_a_preset():
    assert {PRESETS[name]["report"] for name in ASKING} == set(study_names())


@pytest.mark.parametrize("name", ASKING)
def test_a_preset_asks_its_study_with_enough_seeds_and_few_programs(name):
    """At least 5 seeds; at most 40 distinct programs, 400 jobs: each ends within minutes on two cores.

    Those on files of the user's own take 3 seeds and as long as they take.
    """
    preset, text = PRESETS[name], (CONF / "experiment" / f"{name}.yaml").read_text()
    check_report(preset["report"])
    assert preset["name"] == name
    swept = preset["hydra"]["sweeper"]["params"]
    lines = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in swept.items()])
    counts = {line.key_or_group: len(list(line.sweep_iterator())) if line.is_sweep_override() else 1 for line in lines}
    own_files = "data.path=<folder>" in text
    assert counts["seed"] >= (3 if own_files else 5)
    assert math.prod(counts.values()) <= 400
    assert str(math.prod(counts.values())) + " jobs" in text.split("defaults:")[0].replace("\n# ", " ")
    traced = ("seed", "lr_fine", "lr_pre", "retention.strength")
    assert math.prod(count for key, count in counts.items() if key not in traced) <= 40


# --- the files ------------------------------------------------------------------------------------------------------

OF_WEIGHTS = ("fisher_estimators", "wise_ft")  # see test_studies_of_weights.py
QUESTIONS = {
    "crossover": (PROBE_AND_FULL, crossing_at(50), None),
    "decision_matrix": (CELLS, winners, None),
    "label_efficiency": (START, shifted(full=4), None),
    "lora_rank": (RANKS, elbow_at(4), None),
    "pretrained_vs_scratch": (RACE, lambda strategy: 0.8, fall),
    "pretraining": (PRETRAININGS, pretraining_score, None),
    "warmup": (WARMUP, helps, warm_curve),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_page_and_its_picture_are_written(tmp_path, name):
    grid, score, curve = QUESTIONS[name]
    report, _ = run(name, plant(tmp_path, grid, score, own=0.01, curve=curve))
    assert list(report.pictures) == [f"{name}.png"]
    image = matplotlib.image.imread(tmp_path / f"{name}.png")
    assert image.shape[1] == 1600
    assert len(np.unique(image[::4, ::4].reshape(-1, image.shape[-1]), axis=0)) > 50  # something is drawn
    border = np.concatenate([image[:, :2].reshape(-1, 4), image[:, -2:].reshape(-1, 4)])
    assert (border == 1).all()  # nothing runs out of the picture
