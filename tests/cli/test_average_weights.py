"""``scripts/average_weights.py`` as a user runs it, on a real sweep and its kept pre-training."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf

from src.checkpoints.tensor_files import read_tensors
from src.config.schema import build
from src.errors import UserError
from src.models.base import same_bits
from tests.commands import ROOT, script, summary, sweep, train


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Six fine-tunings: of seed 0 two rates under two strategies, of seed 1 one rate."""
    folder = tmp_path_factory.mktemp("soups")
    small = ["pretrain_steps=30", "finetune_steps=12", f"cache_folder={folder / 'cache'}", "progress=false"]
    for name, chosen in (("first", ["seed=0", "lr_fine=0.02,0.1"]), ("second", ["seed=1", "lr_fine=0.02"])):
        done = sweep(folder / "sweep" / name, *small, *chosen, "strategy=full,frozen")
        assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two fine-tunings with a new label space."""
    folder = tmp_path_factory.mktemp("digits")
    small = ["pretrain_steps=20", "finetune_steps=10", f"cache_folder={folder / 'cache'}", "model.widths=[12]"]
    done = sweep(folder / "sweep" / "only", "experiment=digits", "strategy=full,frozen", "progress=false", *small)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture
def main(monkeypatch, capsys):
    """The script in this process: where the command line itself is not the claim, another process costs seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    found = runpy.run_path(str(ROOT / "scripts" / "average_weights.py"), run_name="not_main")["main"]

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["average_weights.py", *map(str, arguments)])
        found()
        return capsys.readouterr().out

    return call


def job_of(jobs, *words):
    (folder,) = (f for f in jobs.glob("*/*") if f.is_dir() and all(word in f.name for word in words))
    return folder


def by_hand(params, part, trunk=None):
    """The loss of a perceptron in float64; the trunk may be another's."""
    trunk = params if trunk is None else trunk
    h = np.maximum(part.x.astype(np.float64) @ trunk["Dense_0/kernel"] + trunk["Dense_0/bias"], 0)
    return np.mean(((h @ params["Dense_1/kernel"] + params["Dense_1/bias"])[:, 0] - part.y) ** 2)


def data_of(folder):
    return build("data", OmegaConf.load(folder / ".hydra" / "config.yaml").data).load()


def test_the_path_of_a_job(jobs, tmp_path):
    job, out = job_of(jobs, "0.1", "full"), tmp_path / "out"
    done = script("average_weights", "wise", job, "--points", "6", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["wise.csv", "wise.png", "wise.safetensors"]
    table: Any = pd.read_csv(out / "wise.csv")
    recorded = summary(job)["metrics"]
    metrics = [f"{split}_{metric}" for split in ("val", "test", "source_test") for metric in ("loss", "r2")]
    assert list(table) == ["alpha", *metrics, "chosen"]
    assert table["alpha"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    # The ends are what the job recorded: of the fine-tuned weights on the target, of the pre-trained on the source.
    first, last = table.iloc[0], table.iloc[-1]
    assert [last[name] for name in metrics[:4]] == pytest.approx([recorded[name] for name in metrics[:4]], rel=1e-5)
    assert [first[name] for name in metrics[4:]] == pytest.approx([recorded[name] for name in metrics[4:]], rel=1e-5)
    # What is written is the point that validation takes, computed again by hand.
    best = int(table["chosen"].to_numpy().argmax())
    assert (table["chosen"].sum(), best) == (1, int(table["val_loss"].to_numpy().argmin()))
    weights, metadata = read_tensors(out / "wise.safetensors")
    assert {name: json.loads(text) for name, text in metadata.items()} == {
        "job": str(job),
        "alpha": pytest.approx(table["alpha"][best]),
    }
    data = data_of(job)
    assert table["test_loss"][best] == pytest.approx(by_hand(weights, data.target["test"]), rel=1e-5)
    assert done.stdout.splitlines()[0] == f"written: alpha {table['alpha'][best]:g}"
    assert "<- best by validation" in done.stdout.splitlines()[2 + best]
    assert imread(out / "wise.png").shape[1] == 1600


def test_alpha_one_is_the_job_to_the_bit(jobs, tmp_path, main):
    """Where validation takes an end, what is written is that end."""
    job = job_of(jobs, "0.02", "full", "seed_0")
    main("wise", job, "--points", 2, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "wise.csv")
    assert table["chosen"].tolist() == [False, True]
    written, expected = read_tensors(tmp_path / "wise.safetensors")[0], read_tensors(job / "model.safetensors")[0]
    assert all(same_bits(written[path], leaf) for path, leaf in expected.items())


def test_one_label_space_is_measured_with_one_head(jobs, tmp_path, main):
    """As the job itself measured it: even under a frozen trunk the head has moved."""
    job = job_of(jobs, "0.1", "frozen")
    main("wise", job, "--points", 3, "--out", tmp_path)
    table, recorded = pd.read_csv(tmp_path / "wise.csv").to_dict("list"), summary(job)["metrics"]
    tuned, source = read_tensors(job / "model.safetensors")[0], data_of(job).source["test"]
    assert table["source_test_loss"][-1] == pytest.approx(by_hand(tuned, source), rel=1e-5)
    assert table["source_test_loss"][-1] == pytest.approx(recorded["source_after_loss"], rel=1e-5)
    assert table["source_test_loss"][0] == pytest.approx(recorded["source_test_loss"], rel=1e-5)
    assert len(set(table["source_test_loss"])) == 3


def test_a_soup_of_a_sweep(jobs, tmp_path, main):
    printed = main("soup", jobs, "--greedy", "--out", tmp_path)
    assert printed.splitlines()[0] == "4 jobs of one pre-training; left out: 2 of others, 0 that cannot be used"
    table = pd.read_csv(tmp_path / "soup.csv")
    members = [folder for folder in sorted((jobs / "first").iterdir()) if folder.is_dir()]
    assert sorted(table["weights"]) == sorted([*(folder.name for folder in members), "uniform soup", "greedy soup"])
    loss = table.set_index("weights")["val_loss"].to_dict()
    for folder in members:
        assert loss[folder.name] == pytest.approx(summary(folder)["metrics"]["val_loss"], rel=1e-5)
    assert loss["greedy soup"] <= min(loss[folder.name] for folder in members)
    data, params = data_of(members[0]), [read_tensors(folder / "model.safetensors")[0] for folder in members]
    mean = {path: np.mean([p[path].astype(np.float64) for p in params], axis=0) for path in params[0]}
    assert loss["uniform soup"] == pytest.approx(by_hand(mean, data.target["val"]), rel=1e-5)
    written, metadata = read_tensors(tmp_path / "soup.safetensors")
    assert json.loads(metadata["soup"]) == "greedy soup"
    inside = [Path(name).name for name in json.loads(metadata["members"])]
    assert sorted(inside) == sorted(table["weights"][table["member"]])
    assert by_hand(written, data.target["val"]) == pytest.approx(loss["greedy soup"], rel=1e-5)
    assert imread(tmp_path / "soup.png").shape[1] == 1600


def test_soup_of_named_jobs_is_written_to_the_first_folder(jobs, tmp_path, main):
    copies = [shutil.copytree(job_of(jobs, rate, "full", "seed_0"), tmp_path / rate) for rate in ("0.1", "0.02")]
    main("soup", *copies)
    table = pd.read_csv(tmp_path / "0.1" / "soup" / "soup.csv")
    assert table["weights"].tolist() == ["0.1", "0.02", "uniform soup"]
    assert table["member"].tolist() == [True, True, False]
    written = read_tensors(tmp_path / "0.1" / "soup" / "soup.safetensors")[0]
    one, other = (read_tensors(folder / "model.safetensors")[0] for folder in copies)
    for path, leaf in written.items():
        np.testing.assert_allclose(leaf, (one[path].astype(np.float64) + other[path]) / 2, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_new_label_space_keeps_the_new_head(digits, main):
    job = job_of(digits, "full")
    printed = main("wise", job, "--points", 3)
    assert printed.splitlines()[0] == "fine-tuned at every alpha: Dense_1/bias, Dense_1/kernel"
    table, recorded = pd.read_csv(job / "wise" / "wise.csv"), summary(job)["metrics"]
    for name in ("val_loss", "test_accuracy"):
        assert table[name].iloc[-1] == pytest.approx(recorded[name], rel=1e-5)
    for name in ("source_test_loss", "source_test_accuracy"):
        assert table[name].iloc[0] == pytest.approx(recorded[name], rel=1e-5)
        assert table[name].iloc[-1] != table[name].iloc[0]


@pytest.mark.slow
def test_a_frozen_trunk_below_a_new_head_is_one_point(digits, main):
    job = job_of(digits, "frozen")
    printed = main("wise", job, "--points", 3)
    assert printed.splitlines()[1] == "fine-tuning changed nothing else, so every point is the fine-tuned model"
    assert pd.read_csv(job / "wise" / "wise.csv").drop(columns=["alpha", "chosen"]).nunique().max() == 1


def test_user_errors_are_one_sentence(jobs, tmp_path, main):
    good, other = job_of(jobs, "0.1", "full"), job_of(jobs, "seed_1", "full")

    def changed(name, key=None, value=None, **record):
        folder = shutil.copytree(good, tmp_path / name)
        if key is not None:
            config = OmegaConf.load(folder / ".hydra" / "config.yaml")
            OmegaConf.update(config, key, value)
            OmegaConf.save(config, folder / ".hydra" / "config.yaml")
        whole = summary(folder)
        (folder / "summary.json").write_text(json.dumps({**whole, **record}))
        return folder

    old = changed("old")
    config = OmegaConf.load(old / ".hydra" / "config.yaml")
    del config["trainer"]
    OmegaConf.save(config, old / ".hydra" / "config.yaml")
    (tmp_path / "empty").mkdir()
    metrics = summary(good)["metrics"] | {"source_test_loss": 9.0}
    mistakes = [
        (["wise", tmp_path / "none"], "is no job's folder: it has no .hydra/config.yaml"),
        (["wise", good, "--points", 1], "--points is 1; allowed: a whole number >= 2"),
        (["wise", changed("failed", status="failed")], "is failed; allowed: a completed job"),
        (["wise", changed("diverged", status="diverged")], "is diverged; allowed: a completed job"),
        (["wise", good.parent], "is no job's folder: it has no .hydra/config.yaml"),
        (["wise", changed("scratch", "strategy.name", "scratch")], "started from no pre-training"),
        (["wise", old], "is of another version: it lacks trainer"),
        (["wise", changed("data", data={"fingerprint": "0" * 16})], "changed since"),
        (["wise", changed("code", metrics=metrics)], "its source_test_loss was 9 and is"),
        (["soup", good, other], "do not share their model and pre-training"),
        (["soup", good, changed("wide", "model.widths", [16])], "do not share their model and pre-training"),
        (["soup", good, changed("longer", "pretrain_steps", 31)], "do not share their model and pre-training"),
        (["soup", tmp_path / "nowhere"], "allowed: folders of sweeps or of jobs"),
        (["soup", tmp_path / "empty"], "there is no job to average in"),
        (["soup", good, tmp_path / "failed"], "is failed; allowed: a completed job"),
    ]
    for arguments, words in mistakes:
        with pytest.raises(UserError, match=re.escape(words)):
            main(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out is '.*file', which is no folder; allowed: a folder, made if missing"):
        main("wise", good, "--out", tmp_path / "file")


def test_a_sweep_leaves_out_what_cannot_be_used(jobs, tmp_path, main):
    folder = shutil.copytree(jobs / "first", tmp_path / "sweep")
    gone, lost, *_ = sorted(path for path in folder.iterdir() if path.is_dir())
    (gone / "summary.json").unlink()
    (lost / "summary.json").write_text(json.dumps({**summary(lost), "status": "diverged"}))
    printed = main("soup", folder).splitlines()
    assert printed[0] == "2 jobs of one pre-training; left out: 0 of others, 2 that cannot be used"
    ends = [f"'{gone}' is unfinished; allowed: a completed job", f"'{lost}' is diverged; allowed: a completed job"]
    assert printed[1] == f"cannot be used: {', '.join(ends)}"
    assert len(pd.read_csv(folder / "soup" / "soup.csv")) == 3


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Fine-tunings by LoRA with a new label space, by rate."""
    folder = tmp_path_factory.mktemp("adapted")
    small = ["pretrain_steps=20", "finetune_steps=10", f"cache_folder={folder / 'cache'}", "model.widths=[12]"]
    rates = ("strategy=lora", "strategy.rank=2", "lr_fine=0.02,0.05")
    done = sweep(folder / "sweep", "experiment=digits", "progress=false", "optimizer=sgd", *small, *rates)
    assert done.returncode == 0, done.stderr
    return {summary(path.parent)["config"]["lr_fine"]: path.parent for path in folder.glob("sweep/*/summary.json")}


def merged(folder):
    """A LoRA job's weights with its change added to the kernel, by the formula: alpha / rank A B."""
    params = {path: leaf.astype(np.float64) for path, leaf in read_tensors(folder / "model.safetensors")[0].items()}
    scale = summary(folder)["config"]["strategy"]["alpha"] / 2
    change = scale * params.pop("Dense_0/lora_a") @ params.pop("Dense_0/lora_b")
    return params | {"Dense_0/kernel": params["Dense_0/kernel"] + change}


def nats(params, part):
    """The cross-entropy and accuracy of a perceptron with rectifiers, in float64."""
    h = np.maximum(part.x.astype(np.float64) @ params["Dense_0/kernel"] + params["Dense_0/bias"], 0)
    out = h @ params["Dense_1/kernel"] + params["Dense_1/bias"]
    log = out - np.log(np.exp(out).sum(axis=1, keepdims=True))
    return -np.mean(log[np.arange(len(part.y)), part.y]), np.mean(out.argmax(axis=1) == part.y)


@pytest.mark.slow
def test_a_soup_of_lora_jobs_is_the_mean_of_the_merged_kernels(adapted, tmp_path, main):
    members = [adapted[0.02], adapted[0.05]]
    main("soup", *members, "--out", tmp_path)
    data, whole = data_of(members[0]), [merged(folder) for folder in members]
    mean = {path: np.mean([params[path] for params in whole], axis=0) for path in whole[0]}
    table: Any = pd.read_csv(tmp_path / "soup.csv")
    expected = [nats(params, data.target["test"]) for params in (*whole, mean)]
    np.testing.assert_allclose(table[["test_loss", "test_accuracy"]].to_numpy(float), expected, rtol=1e-4)
    written = read_tensors(tmp_path / "soup.safetensors")[0]
    assert written.keys() == mean.keys()
    for path, leaf in written.items():
        np.testing.assert_allclose(leaf, mean[path], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_source_is_measured_by_its_own_head(adapted, tmp_path, main):
    """The target has five other classes; both ends of the path are what the job itself found its source task to be."""
    main("wise", adapted[0.05], "--points", 3, "--out", tmp_path)
    table, recorded = pd.read_csv(tmp_path / "wise.csv").to_dict("list"), summary(adapted[0.05])["metrics"]
    for metric in ("loss", "accuracy"):
        assert table[f"source_test_{metric}"][0] == pytest.approx(recorded[f"source_test_{metric}"], rel=1e-4)
        assert table[f"source_test_{metric}"][-1] == pytest.approx(recorded[f"source_after_{metric}"], rel=1e-4)
        assert table[f"test_{metric}"][-1] == pytest.approx(recorded[f"test_{metric}"], rel=1e-4)
    assert recorded["source_test_loss"] != recorded["source_after_loss"]


@pytest.mark.slow
def test_strategies_whose_change_is_not_a_difference_of_kernels_are_refused(adapted, tmp_path, main):
    dora = shutil.copytree(adapted[0.05], tmp_path / "dora")
    config = OmegaConf.load(dora / ".hydra" / "config.yaml")
    OmegaConf.update(config, "strategy.name", "dora")
    OmegaConf.save(config, dora / ".hydra" / "config.yaml")
    with pytest.raises(UserError, match="has strategy=dora, whose change of the kernels is not"):
        main("wise", dora, "--out", tmp_path / "out")


@pytest.mark.slow
def test_pretraining_with_another_head_is_refused(tmp_path, main):
    small = (
        "data=digits data.images=true model=vit model.width=8 model.layers=1 model.heads=1 pretrain=mae progress=false"
    )
    steps = (
        "pretrain_steps=1 finetune_steps=1 batch_size=16 pretrain.decoder_width=8 pretrain.decoder_heads=1 cache=off"
    )
    done = train(tmp_path / "job", *small.split(), *steps.split(), "strategy=full")
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match="pre-trained by pretrain=mae, whose head is not part of the fine-tuned model"):
        main("wise", tmp_path / "job", "--out", tmp_path / "out")
