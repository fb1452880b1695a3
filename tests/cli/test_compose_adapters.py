"""``scripts/compose_adapters.py`` as a user runs it, over jobs' folders as fine-tuning under LoRA leaves them."""

import os
import re
import runpy
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from src.checkpoints.adapters import add_adapter, extract, load_adapter, merge, save_adapter
from src.data.diabetes import Diabetes
from src.errors import UserError
from src.finished.jobs import read_job
from src.models.base import same_bits
from src.models.mlp import Mlp
from src.tracking.record_writer import RecordWriter
from tests.commands import ROOT, script

MODEL = Mlp(widths=(8, 6))
HEAD = ("Dense_2/bias", "Dense_2/kernel")


def run(*arguments):
    return script("compose_adapters", *arguments, environment={**os.environ, "HYDRA_FULL_ERROR": "0"})


def make_job(folder, seed, rank, base_seed=0, head=None, **strategy):
    """Write what a job leaves: its configuration, and its parameters with an adapter in them."""
    import jax

    rng = np.random.default_rng(seed)
    params = {p: np.asarray(v) for p, v in MODEL.init(jax.random.PRNGKey(base_seed), (9,), 1).items()}
    for module, (inputs, outputs) in {"Dense_0": (9, 8), "Dense_1": (8, 6)}.items():
        params[f"{module}/lora_a"] = (0.3 * rng.normal(size=(inputs, rank))).astype(np.float32)
        params[f"{module}/lora_b"] = (0.3 * rng.normal(size=(rank, outputs))).astype(np.float32)
    rng = np.random.default_rng(seed if head is None else head)
    params["Dense_2/kernel"] = rng.normal(size=(6, 1)).astype(np.float32)
    record = RecordWriter(folder)
    record.save_params(params, {"strategy": "lora"})
    record.finish({"status": "completed"})
    data = OmegaConf.load(ROOT / "conf" / "data" / "diabetes.yaml")
    config = {
        "model": {"name": "mlp", "widths": [8, 6], "activation": "relu", "dropout": None},
        "data": data,
        "strategy": {"name": "lora", "rank": rank, "alpha": 6.0, "rank_stabilised": False, **strategy},
    }
    (folder / ".hydra").mkdir()
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    return params


@pytest.fixture
def jobs(tmp_path):
    make_job(tmp_path / "a", 1, 3, head=5)
    make_job(tmp_path / "b", 2, 2, head=5, rank_stabilised=True)
    return tmp_path / "a", tmp_path / "b", tmp_path / "out.safetensors"


@pytest.fixture
def main(monkeypatch):
    """The script in this process: where the command line itself is not the claim, another process costs seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    found = runpy.run_path(str(ROOT / "scripts" / "compose_adapters.py"), run_name="not_main")["main"]

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["compose_adapters.py", *map(str, arguments)])
        found()

    return call


def test_the_adapter_of_a_job(tmp_path):
    params = make_job(tmp_path / "a", 1, 4, rank_stabilised=True)
    job = read_job(tmp_path / "a")
    assert job.adapter.scaling == {"Dense_0": 3.0, "Dense_1": 3.0}
    assert job.adapter.ranks == {"Dense_0": 4, "Dense_1": 4}
    assert job.adapter.head_paths == HEAD
    assert job.adapter.meta == {"alpha": 6.0, "rank": 4, "rank_stabilised": True}
    expected = extract(params, HEAD, alpha=6.0)
    assert job.adapter.base == expected.base
    assert all(same_bits(job.adapter.params[path], params[path]) for path in expected.params)
    assert all(same_bits(job.base[path], params[path]) for path in job.base)
    assert len(job.base) == len(params) - 4


def test_the_exact_sum(jobs):
    a, b, out = jobs
    done = run(f"{a}:0.5", f"{b}:-2", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"+0.5 x {a}:0.5", f"-2 x {b}:-2", "ranks: Dense_0 5, Dense_1 5"]
    one, two, found = read_job(a), read_job(b), load_adapter(out)
    assert lines[3:] == [f"wrote {out} (base {one.adapter.base})"]
    for module in ("Dense_0", "Dense_1"):
        (a1, b1), (a2, b2) = one.adapter.factors[module], two.adapter.factors[module]
        expected = 0.5 * 2.0 * a1.astype(np.float64) @ b1 - 2 * 6 / np.sqrt(2) * a2.astype(np.float64) @ b2
        np.testing.assert_allclose(found.delta_weight(module), expected, atol=1e-6)
    assert merge(add_adapter(found, one.base)).keys() == one.base.keys()


def test_truncation_prints_its_error(jobs, main, capsys):
    a, b, out = jobs
    main(a, b, "--rank", 2, "--out", out)
    whole = {m: 2.0 * read_job(a).adapter.factors[m][0].astype(np.float64) @ read_job(a).adapter.factors[m][1]
             + read_job(b).adapter.delta_weight(m) for m in ("Dense_0", "Dense_1")}  # fmt: skip
    values = {m: np.linalg.svd(delta, compute_uv=False) for m, delta in whole.items()}
    each = {m: np.linalg.norm(v[2:]) / np.linalg.norm(v) for m, v in values.items()}
    lost, total = (np.linalg.norm(np.concatenate([v[cut:] for v in values.values()])) for cut in (2, 0))
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "ranks: Dense_0 5, Dense_1 5",
        "ranks after truncation: Dense_0 2, Dense_1 2",
        f"relative error of the changes (Frobenius): {lost / total:.3g} "
        f"(Dense_0 {each['Dense_0']:.3g}, Dense_1 {each['Dense_1']:.3g})",
    ]
    assert load_adapter(out).ranks == {"Dense_0": 2, "Dense_1": 2}


def test_sums_can_be_summed_again(jobs, main):
    a, b, out = jobs
    main(a, b, "--out", out)
    rest = out.with_name("rest.safetensors")
    main(out, f"{b}:-1", "--out", rest)
    for module in ("Dense_0", "Dense_1"):
        np.testing.assert_allclose(
            load_adapter(rest).delta_weight(module), read_job(a).adapter.delta_weight(module), atol=1e-5
        )


def test_the_search_takes_the_best_weights_on_validation_rows(jobs):
    a, b, out = jobs
    done = run(a, b, "--search", "--grid=-1,0,0.5", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["weight_0", "weight_1", "loss", "r2"]
    table = np.array([line.split() for line in lines[1:10]], float)
    one, two, data = read_job(a), read_job(b), Diabetes().load().target["val"]

    def loss(v, w):
        """By hand, in float64."""
        h = data.x.astype(np.float64)
        for module in ("Dense_0", "Dense_1"):
            kernel = (
                one.base[f"{module}/kernel"]
                + v * one.adapter.delta_weight(module)
                + w * two.adapter.delta_weight(module)
            )
            h = np.maximum(h @ kernel + one.base[f"{module}/bias"], 0)
        return np.mean((h @ one.base["Dense_2/kernel"] + one.base["Dense_2/bias"] - data.y[:, None]) ** 2)

    expected = {(v, w): loss(v, w) for v in (-1, 0, 0.5) for w in (-1, 0, 0.5)}
    assert {(v, w): found for v, w, found, _ in table} == pytest.approx(expected, rel=1e-3)
    best = min(expected, key=expected.__getitem__)
    assert lines[10:12] == [f"{best[0]:+g} x {a}", f"{best[1]:+g} x {b}"]
    np.testing.assert_allclose(
        load_adapter(out).delta_weight("Dense_0"),
        best[0] * one.adapter.delta_weight("Dense_0") + best[1] * two.adapter.delta_weight("Dense_0"),
        atol=1e-6,
    )


def test_user_errors_are_one_sentence(jobs, tmp_path, main, capsys):
    a, b, out = jobs
    make_job(tmp_path / "other", 1, 2, base_seed=1)
    make_job(tmp_path / "c", 3, 2)
    make_job(tmp_path / "frozen", 3, 2, name="frozen", alpha=None)
    (tmp_path / "empty").mkdir()
    save_adapter(read_job(a).adapter, out)
    before = out.read_bytes()
    mistakes = [
        ([tmp_path / "none:0.5"], f"there is no '{tmp_path / 'none'}'; allowed: a job's folder or an adapter's file"),
        ([f"{a}:half"], f"the weight of '{a}' is 'half'; allowed: a number"),
        ([tmp_path / "empty"], "is no job's folder: it has no .hydra/config.yaml"),
        ([tmp_path / "frozen"], "holds no LoRA adapter: its strategy is 'frozen'"),
        ([a, tmp_path / "other", "--head", 0], "allowed: the same base"),
        ([a, tmp_path / "c"], "adapters 0, 1 have different heads"),
        ([a, b, "--head", 2], "--head is 2; allowed: the index of an adapter, 0 to 1"),
        ([a, b, "--rank", 0], "--rank is 0; allowed: a whole number >= 1"),
        ([f"{a}:1", b, "--search"], "--search chooses the weights; leave ':WEIGHT' out"),
        ([out, "--search"], "--search needs the model and data of the job whose head is taken"),
        ([a, "--search", "--grid", "0,much"], "--grid is 'much'; allowed: a number"),
    ]
    for arguments, words in mistakes:
        with pytest.raises(UserError, match=re.escape(words)):
            main(*arguments, "--out", out)
    assert capsys.readouterr().out == ""
    assert out.read_bytes() == before
    done = run(tmp_path / "empty", "--out", out)
    sentence = f"error: '{tmp_path / 'empty'}' is no job's folder: it has no .hydra/config.yaml\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)
