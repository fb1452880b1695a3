"""The real command line: what one run prints and leaves behind, and every way to give it something it cannot use."""

import math
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import ROOT, command, rows, summary, sweep, train

FAST = ("pretrain_steps=20", "finetune_steps=20")


def test_a_run_from_start_to_record(tmp_path):
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "configuration",
        "strategy = frozen",
        "Dense_1/bias, Dense_1/kernel",
        "9 of 89 parameters are trainable (10.1%)",
    ):
        assert words in done.stdout
    assert "FLOPs per update" in done.stdout
    assert str(tmp_path) in done.stdout
    assert "\x1b" not in done.stdout  # neither colours nor a progress bar outside a terminal
    record = summary(tmp_path)
    assert record["status"] == "completed"
    assert record["parameters"] == {"trainable": 9, "total": 89}
    assert record["objective"] == record["metrics"]["val_loss"] == rows(tmp_path)[-1]["val_loss"]
    assert record["last_finite_step"] == 100
    assert record["data"]["fingerprint"]
    assert record["metrics"]["test_r2"] > 0.3  # half of the variance is about what linear regression explains here
    assert set(load_file(tmp_path / "model.safetensors")) == {
        "Dense_0/kernel",
        "Dense_0/bias",
        "Dense_1/kernel",
        "Dense_1/bias",
    }
    assert {path.name for path in (tmp_path / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    stages = [(row["stage"], row["step"]) for row in rows(tmp_path)]
    assert stages == [("pretrain", s) for s in range(10, 201, 10)] + [("finetune", s) for s in range(0, 101, 10)]


def test_a_run_imports_nothing_that_it_does_not_use(tmp_path):
    unused = ("pandas", "sklearn", "wandb", "matplotlib", "scipy.stats", "orbax")
    code = "import os, sys; os._exit = lambda _: None; import src.train; src.train.main(); "
    code += f"print('loaded', [name for name in {unused} if name in sys.modules])"
    arguments = [f"hydra.run.dir={tmp_path}", "tracker.mode=offline", *FAST]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "loaded []" in done.stdout


def test_the_same_command_gives_the_same_bits(tmp_path):
    for name in ("a", "b"):
        assert train(tmp_path / name, "batch_size=16", "strategy=full", "optimizer=adam").returncode == 0
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("data=synthetic", "data.similarity=0.3"),
        ("experiment=digits", *FAST),
        ("experiment=reference",),
        ("debug=fast", "optimizer=adamw", "schedule=warmup_cosine"),
        ("debug=nans",),
        ("strategy=masked", "strategy.trainable=[head,Dense_0/bias]", "schedule=warmup_linear"),
        ("finetune_steps=0",),
        ("pretrain_steps=0",),
    ],
    ids=" ".join,
)
def test_it_runs(tmp_path, arguments):
    done = train(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(summary(tmp_path)["objective"])


def test_the_user_s_own_tables(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("source", "target"):
        x = rng.standard_normal((400, 3))
        label = np.where(x @ [1, -1, 0.5] > 0, "yes", "no")
        lines = [",".join([*map(str, row), word]) for row, word in zip(x, label, strict=True)]
        (tmp_path / f"{name}.csv").write_text("a,b,c,answer\n" + "\n".join(lines))
    done = train(
        tmp_path / "run",
        "data=csv",
        f"data.source_path={tmp_path}/source.csv",
        f"data.target_path={tmp_path}/target.csv",
        "data.label=answer",
        "data.kind=classification",
        "optimizer=adam",
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["metrics"]["test_accuracy"] > 0.8


def test_divergence_is_a_result(tmp_path):
    done = train(tmp_path, "lr_fine=1e4", "strategy=full", "log_every=7")
    assert done.returncode == 0, done.stderr
    record = summary(tmp_path)
    assert record["status"] == "diverged"
    assert record["objective"] == "Infinity"
    assert record["metrics"] == {}
    last = rows(tmp_path)[-1]
    assert last["step"] == record["last_finite_step"] > 0
    assert math.isfinite(last["loss"])
    assert "diverged" in done.stdout


def test_divergence_while_pretraining(tmp_path):
    done = train(tmp_path, "lr_pre=1e6")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path)["status"] == "diverged"
    assert {row["stage"] for row in rows(tmp_path)} == {"pretrain"}


BAD = [
    (("strategy=frozzen",), "strategy=frozzen: there is no such option (did you mean 'frozen'?); allowed: "),
    (("data=diabetis",), "did you mean 'diabetes'"),
    (("lr_fin=0.1",), "there is no key 'lr_fin' (did you mean 'lr_fine'?)"),
    (("strat=frozen",), "there is no key 'strat' (did you mean 'strategy'?)"),
    (("strategy=discriminative", "strategy.decya=0.5"), "'strategy.decya' (did you mean 'decay'?)"),
    (("+lr_fin=0.1",), "there is no key 'lr_fin' (did you mean 'lr_fine'?)"),
    (("lr_fine=abc",), "lr_fine: Value 'abc' of type 'str' could not be converted to Float"),
    (("lr_fine=-0.1",), "lr_fine is -0.1; allowed: a finite number > 0"),
    (("lr_fine=0",), "lr_fine is 0.0; allowed: a finite number > 0"),
    (("lr_fine=nan",), "lr_fine is nan; allowed: a finite number > 0"),
    (("lr_pre=inf",), "lr_pre is inf; allowed: a finite number > 0"),
    (("lr_fine=0.1,0.2",), "--multirun"),
    (("finetune_steps=2.5",), "finetune_steps: Value '2.5' of type 'float' could not be converted to Integer"),
    (("finetune_steps=-1",), "finetune_steps is -1; allowed: a whole number >= 0"),
    (("pretrain_steps=-3",), "pretrain_steps is -3; allowed: a whole number >= 0"),
    (("batch_size=0",), "batch_size is 0; allowed: a whole number >= 1"),
    (("seed=-1",), "seed is -1; allowed: a whole number from 0"),
    (("model.widths=[8,0]",), "model.widths is (8, 0); allowed: a whole number >= 1"),
    (("model.activation=rleu",), "model.activation: Invalid value 'rleu', expected one of [relu, gelu, tanh, silu]"),
    (("strategy=masked", "strategy.trainable=[Dnse_1/.*]"), "matches no parameter"),
    (("strategy=masked", "strategy.trainable=[Dnse_1/.*]"), "Dense_0/bias, Dense_0/kernel, Dense_1/bias"),
    (("strategy=masked", "strategy.trainable=[]"), "strategy.trainable is empty: it leaves nothing to train"),
    (("data.val_fraction=0.7", "data.test_fraction=0.3"), "allowed: less than 1"),
    (("data=csv",), "data.source_path is missing: give it as data.source_path=..."),
    (("data=csv", "data.source_path=no.csv", "data.target_path=b", "data.label=y"), "no.csv: there is no such file"),
    (("lr_fine",), "lr_fine"),
    (("experiment=nothing",), "experiment=nothing: there is no such option"),
    (("strategy=lora", "strategy.rank=64"), "strategy.rank: rank 64 is above the 9 x 8 matrix of Dense_0/kernel"),
    (("schedule=warmup_linear", "schedule.warmup_steps=200"), "schedule.warmup_steps is 200; allowed: at most the 100"),
    (("batch_size=16", "trainer.accumulate=5"), "trainer.accumulate is 5, which does not divide a batch of 16 rows"),
    (
        ("strategy=gradual", "strategy.every=100"),
        "unfreezing 2 groups needs at least 101 updates, finetune_steps is 100",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:60])
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    done = train(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("metrics.jsonl")) or rows(tmp_path) == []  # nothing was trained


NUMBERS, CLASSES = ("data.features=[a,b]",), ("data.kind=classification",)
TABLES = [
    ("a,b,y\n1,2,3\n2,,4\n" * 1 + "1,2,3\n" * 9, NUMBERS, "1 missing or infinite values in x, the first in row 1"),
    ("a,b,y\n" + "1,oops,3\n" * 9, NUMBERS, "column 'b' holds 'oops'; allowed: numbers"),
    ("a,c,y\n" + "1,2,3\n" * 9, NUMBERS, "has no column 'b'"),
    ("a,c,y\n" + "1,2,3\n" * 9, NUMBERS, "it has a, c, y"),
    ("a,b,y\n", NUMBERS, "has no rows below its header"),
    ("a,y\n" + "1,3\n" * 9, (), "target.csv has no column b, which the other file has"),
    ("b,a,y\n" + "1,2,3\n" * 9, (), "target.csv has the column 'b' where data.source_path="),
    ("a,b,y\n" + "7,1,2,3\n" * 9, (), "target.csv has rows with more cells than its header"),
    ("a,a,y\n" + "1,2,3\n" * 9, (), "target.csv has the column 'a' twice"),
    ("a,b,y\n" + "1,2,0.5\n1,2,1.5\n" * 9, CLASSES, "target.csv: column 'y' holds 0.5"),
    ("a,b,y\n" + "1,2,0\n1,2,2\n" * 9, CLASSES, "(4, 6, 8 in data.source_path="),
]


@pytest.mark.parametrize(("target", "settings", "message"), TABLES)
def test_bad_tables_are_one_sentence(tmp_path, target, settings, message):
    (tmp_path / "source.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i % 3},{i % 5 * 2}" for i in range(20)))
    (tmp_path / "target.csv").write_text(target)
    arguments = ("data=csv", f"data.source_path={tmp_path}/source.csv", f"data.target_path={tmp_path}/target.csv")
    done = train(tmp_path / "run", *arguments, "data.label=y", *settings)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_whole_traceback_on_request(tmp_path):
    done = train(tmp_path, "lr_fine=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_misspelt_choice_stops_a_sweep_before_its_first_job(tmp_path):
    done = sweep(tmp_path, "strategy=frozen,frozzen", *FAST)
    assert done.returncode == 1
    assert "did you mean 'frozen'" in done.stderr
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_joblib_launches_the_same_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib launcher is an extra")
    arguments = ("seed=0,1", *FAST)
    assert sweep(tmp_path / "basic", *arguments).returncode == 0
    done = sweep(tmp_path / "joblib", *arguments, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent.name for path in (tmp_path / "basic").glob("*/summary.json"))
    assert len(folders) == 2
    for folder in folders:
        one, other = ((tmp_path / launcher / folder / "metrics.jsonl").read_text() for launcher in ("basic", "joblib"))
        assert one == other


def test_help_and_configuration_without_training():
    done = command("--cfg", "job")
    assert done.returncode == 0
    assert "lr_fine: 0.05" in done.stdout
    assert command("--help").returncode == 0
