"""The monitor's report on sweeps whose ill runs were planted: it names them, says why, and draws every course."""

import math
import re

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from src.analysis.export import load_sweep
from src.analysis.reports import write_study
from src.analysis.studies import stability
from src.errors import UserError
from tests.analysis.planted import nested
from tests.fabricate import write_job

EQUAL, EVEN = math.log(127), 1 / math.sqrt(64)
SPIKED = "The gradient norm reached 320 before step 10 at temperature 0.05, above 100 in the first epoch."
COLLAPSED = "Different samples end at a cosine similarity of 0.999, above 0.95: the embeddings have collapsed."


def course(seed, cold, collapsed=False, looks=True):
    rows = []
    for step in range(0, 101, 10):
        fall = math.exp(-step / 40)
        row = {"stage": "pretrain", "step": step}
        if step:
            row |= {"loss": EQUAL - 2 * (1 - fall) + 0.02 * seed, "grad_norm": 5.0, "grad_norm_max": 9.0 + seed}
            row |= {"temperature": cold, "pos_similarity": 0.9, "neg_similarity": 0.999 if collapsed else 0.3 * fall}
            row |= {"spread": 0.001 if collapsed else 0.9 * EVEN}
        if looks and step % 50 == 0:
            row |= {"knn": 0.8 - 0.3 * fall + 0.01 * seed, "probe": 0.85 - 0.3 * fall, "rankme": 20.0, "lidar": 9.0}
            row |= {"knn_pixels": 0.6, "probe_pixels": 0.7} if step == 0 else {}
        rows.append(row)
    rows[1]["grad_norm_max"] = 320.0 if cold < 0.1 else 9.0
    return [*rows, {"stage": "finetune", "step": 1, "loss": 1.0}]


def sweep(folder, colds=(0.05, 0.5), seeds=2, rates=(0.01,), ill=True, looks=True, learned=0.8):
    for cold in colds:
        for seed in range(seeds):
            for rate in rates:
                settings = {"seed": seed, "lr_fine": rate, "report": None, "pretrain.name": "simclr"}
                settings |= {"pretrain.temperature.cold": cold, "strategy": "linear_probe", "batch_size": 64}
                spiked, collapsed = ill and cold < 0.1, ill and cold < 0.1 and seed == 1
                warnings = [SPIKED] * spiked + [COLLAPSED] * collapsed
                metrics = {"source_test_knn": learned, "source_test_knn_random": 0.5, "source_test_knn_pixels": 0.7}
                write_job(
                    folder / f"cold={cold},seed={seed},rate={rate}",
                    nested(settings),
                    course(seed, cold, collapsed, looks),
                    metrics=metrics | {"test_loss": 1.0, "val_loss": 1.0, "source_test_rankme": 20.0},
                    stability={
                        "equal_loss": EQUAL,
                        "even_spread": EVEN,
                        "first_epoch_grad_norm": 320.0 if spiked else 9.0,
                    },
                    **({"warnings": warnings} if warnings else {}),
                )
    return folder


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Writing a picture takes most of a study's time: only the tests marked so do it."""
    if "written" not in request.node.name:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path: path.touch())


def metrics_of(folder):
    report, page = write_study("stability", folder)
    text = page.read_text()
    assert report.conclusion in text
    assert "nan" not in text.lower()
    assert text.count(f"]({stability.PICTURE})") == 1
    return report, text


def test_healthy_runs_are_all_healthy(tmp_path):
    report, text = metrics_of(sweep(tmp_path, ill=False))
    assert report.conclusion.startswith("None of 4 runs has a warning; of 4 runs, nearest neighbours")
    assert "beat those of an untrained network in 4 and of pixels in 4." in report.conclusion
    assert "No run has a warning." in text
    assert report.notes == []


def test_ill_runs_are_named_with_their_reasons(tmp_path):
    report, text = metrics_of(sweep(tmp_path))
    reasons = f"{SPIKED.rstrip('.')}; {COLLAPSED.split(':')[0]}"
    said = f"2 of 4 runs have warnings: temperature.cold 0.05 at 2 of 2 seeds ({reasons}); "
    assert report.conclusion.startswith(said)
    assert f"- **temperature.cold 0.05, seed 1**: {SPIKED} {COLLAPSED}" in text
    assert "- **temperature.cold 0.5" not in text
    line = next(line for line in text.splitlines() if line.startswith("| temperature.cold 0.05 |"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["2", "2"]
    assert re.search(r"\| 320 \|", line)
    assert re.search(rf"\| {EQUAL:.4g} \|", line)


def test_features_that_are_no_better_than_pixels_are_said_to_be(tmp_path):
    report, _ = metrics_of(sweep(tmp_path, ill=False, learned=0.65))
    assert report.conclusion.endswith("beat those of an untrained network in 4 and of pixels in 0.")


def test_fine_tunings_of_one_pre_training_are_one_run(tmp_path):
    report, _ = metrics_of(sweep(tmp_path, rates=(0.1, 0.01), ill=False))
    assert report.conclusion.startswith("None of 4 runs has a warning")


def test_a_single_run_is_reported_too(tmp_path):
    folder = sweep(tmp_path, colds=(0.5,), seeds=1)
    report, text = metrics_of(next(folder.iterdir()))
    assert report.conclusion.startswith("The run has no warning; of 1 run, ")
    assert "| simclr | 1 | 0 |" in text
    report, _ = metrics_of(next(sweep(tmp_path / "ill", colds=(0.05,), seeds=1).iterdir()))
    assert report.conclusion.startswith("1 of 1 run has warnings: simclr, seed 0 (The gradient norm")


def test_a_pre_training_that_diverged_is_ill(tmp_path):
    folder = sweep(tmp_path, ill=False)
    settings = {"seed": 2, "lr_fine": 0.01, "report": None, "pretrain.name": "simclr", "batch_size": 64}
    config = nested(settings | {"pretrain.temperature.cold": 0.5, "strategy": "linear_probe"})
    rows = [row for row in course(2, 0.5) if row["stage"] == "pretrain" and row["step"] <= 30]
    write_job(folder / "lost", config, rows, status="diverged", objective=math.inf, metrics={}, last_finite_step=30)
    report, _ = metrics_of(folder)
    (reason,) = re.findall(
        r"^1 of 5 runs has warnings: temperature.cold 0.5 at 1 of 3 seeds \((.*)\);", report.conclusion
    )
    assert reason == "The loss stopped being finite after update 30"


def test_rows_without_looks_say_how_to_have_them(tmp_path):
    report, _ = metrics_of(sweep(tmp_path, looks=False, ill=False))
    assert "pretrain.eval_every" in report.notes[0]


def test_a_sweep_without_a_monitor_is_refused(tmp_path):
    rows = [{"stage": "pretrain", "step": 10, "loss": 1.0}, {"stage": "finetune", "step": 1, "knn": 1.0}]
    write_job(tmp_path / "0", nested({"seed": 0, "pretrain.name": "supervised"}), rows, metrics={"val_loss": 1.0})
    with pytest.raises(UserError, match="report=stability needs rows of a monitored pre-training"):
        write_study("stability", tmp_path)


def test_the_picture_has_a_panel_for_each_number_and_lines_to_compare_with(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (figures.append(figure), path.touch()))
    write_study("stability", sweep(tmp_path))
    panels = {ax.get_title(loc="left").split("\n")[0]: ax for ax in figures[0].axes}
    assert [name for name, ax in panels.items() if ax.get_visible()] == [panel.title for panel in stability.PANELS]

    def levels(name):
        return {
            round(float(line.get_ydata()[0]), 6)
            for line in panels[name].lines
            if len(line.get_ydata()) == 2 and line.get_xdata()[1] == 1  # across the axes
        }

    assert levels("loss") == {round(EQUAL, 6)}
    assert levels("spread") == {EVEN}
    assert levels("gradient norm") == {100.0}
    assert panels["gradient norm"].get_yscale() == "log"
    assert levels("accuracy of nearest neighbours") == {0.6, 0.505}  # pixels, and the mean of the untrained networks
    (curve,) = [line for line in panels["loss"].lines if line.get_label() == "temperature.cold 0.5"]
    expected = [EQUAL - 2 * (1 - math.exp(-step / 40)) + 0.01 for step in range(10, 101, 10)]
    assert list(curve.get_ydata()) == pytest.approx(expected)
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["temperature.cold 0.05", "temperature.cold 0.5"]


def test_a_picture_is_written(tmp_path):
    write_study("stability", sweep(tmp_path))
    pixels = matplotlib.image.imread(tmp_path / stability.PICTURE)
    assert pixels.shape[1] == 1600
    assert pixels.std() > 0.02


def test_the_record_s_warnings_and_numbers_are_read(tmp_path):
    jobs = {job.name: job for job in load_sweep(sweep(tmp_path))}
    assert jobs["cold=0.05,seed=1,rate=0.01"].warnings == (SPIKED, COLLAPSED)
    assert jobs["cold=0.5,seed=1,rate=0.01"].warnings == ()
    assert jobs["cold=0.5,seed=1,rate=0.01"].stability["even_spread"] == EVEN
