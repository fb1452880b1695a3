"""``hydra/launcher=fused`` through the real command line: the records of one job at a time, nothing lost to a crash."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from src.config.choices import CacheMode
from src.tracking.wandb_files import read_run
from src.training.stage_cache import StageCache
from tests.commands import ROOT, rows, running, summary, sweep

GRID = ("strategy=frozen,masked,discriminative", "lr_fine=0.01,0.1,1e6", "seed=0,1", "finetune_steps=23")


def jobs(folder: Path) -> dict[str, Path]:
    """Return a sweep's finished jobs by name."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/summary.json"))}


def lasting(folder: Path) -> dict:
    """Return what a job's record says, apart from when and how long."""
    return {
        key: value
        for key, value in summary(folder).items()
        if key not in ("seconds", "seconds_per_update", "compile_seconds", "started")
    }


def hydra_files(folder: Path, sweep_dir: Path) -> dict:
    """Return what lies in ``.hydra``, apart from which launcher ran it and where."""
    texts = {p.name: p.read_text().replace(str(sweep_dir), "SWEEP") for p in (folder / ".hydra").iterdir()}
    hydra = yaml.safe_load(texts.pop("hydra.yaml"))["hydra"]
    del hydra["launcher"], hydra["runtime"]["choices"]["hydra/launcher"]
    hydra["overrides"]["hydra"] = [line for line in hydra["overrides"]["hydra"] if "launcher" not in line]
    return {**texts, "hydra.yaml": hydra}


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    """The grid, one job at a time."""
    folder = tmp_path_factory.mktemp("basic") / "study"
    done = sweep(folder, *GRID, "hydra/launcher=basic", "tracker=wandb", "cache=off")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_records_are_those_of_one_job_at_a_time(tmp_path, basic, mode):
    fused = tmp_path / "study"
    done = sweep(fused, *GRID, f"hydra.launcher.mode={mode}", "tracker=wandb", "cache=off")
    assert done.returncode == 0, done.stderr
    assert "18 jobs: 12 completed, 6 diverged" in done.stdout
    assert list(jobs(fused)) == list(jobs(basic))
    for name, folder in jobs(fused).items():
        other = basic / name
        assert hydra_files(folder, fused) == hydra_files(other, basic)
        if mode == "map":
            assert lasting(folder) == lasting(other)
            assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
            same_params(folder, other, exact=True)
        elif summary(folder)["status"] == "completed":
            for row, expected in zip(rows(folder), rows(other), strict=True):
                assert list(row) == list(expected)
                np.testing.assert_allclose(list(row.values())[1:], list(expected.values())[1:], rtol=1e-5, atol=1e-6)
            same_params(folder, other, exact=False)
        run, expected = (read_run(next(job.glob("wandb/*/*.wandb"))) for job in (folder, other))
        assert (run.group, run.job_type, run.name) == (expected.group, expected.job_type, expected.name)
        assert run.exit_code == expected.exit_code == 0
        if mode == "map":
            assert run.config == expected.config
            assert [visible(row) for row in run.history] == [visible(row) for row in expected.history]
            different = ("_", "seconds", "compile_seconds")
            assert {k: v for k, v in run.summary.items() if not k.startswith(different)} == {
                k: v for k, v in expected.summary.items() if not k.startswith(different)
            }


def test_frozen_and_masked_are_the_same_computation_to_the_bit(basic):
    found = {}
    for folder in jobs(basic).values():
        config = summary(folder)["config"]
        params = folder / "model.safetensors"
        tensors = {path: leaf.tobytes() for path, leaf in load_file(params).items()} if params.exists() else None
        content = (folder / "metrics.jsonl").read_text(), tensors
        found.setdefault(config["strategy"]["name"], {})[config["lr_fine"], config["seed"]] = content
    assert found["frozen"] == found["masked"] != found["discriminative"]
    assert len(found["frozen"]) == 6


def visible(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def same_params(folder: Path, other: Path, exact: bool) -> None:
    paths = [job / "model.safetensors" for job in (folder, other)]
    assert paths[0].exists() == paths[1].exists() == (summary(other)["status"] == "completed")
    if paths[0].exists():
        mine, theirs = map(load_file, paths)
        for key in theirs:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6)


def test_a_sweep_goes_on_where_it_was(tmp_path):
    first = sweep(tmp_path, "lr_fine=0.01,0.1", "seed=0,1")
    assert first.returncode == 0, first.stderr
    stamps = {name: (job / "summary.json").stat().st_mtime_ns for name, job in jobs(tmp_path).items()}
    damaged, removed, *_ = jobs(tmp_path).values()
    (damaged / "summary.json").write_text('{"status": "comp')
    shutil.rmtree(removed)
    again = sweep(tmp_path, "lr_fine=0.01,0.1", "seed=0,1,2")  # points were added, which moves every job's number
    assert again.returncode == 0, again.stderr
    assert "6 jobs, 2 of them already done" in again.stdout
    assert len(jobs(tmp_path)) == 6
    untouched = [name for name in stamps if name not in (damaged.name, removed.name)]
    for name in untouched:
        assert (tmp_path / name / "summary.json").stat().st_mtime_ns == stamps[name]
    assert summary(damaged)["status"] == "completed"
    third = sweep(tmp_path, "lr_fine=0.01,0.1", "seed=0,1,2")
    assert "6 of them already done" in third.stdout
    off = sweep(tmp_path, "lr_fine=0.01,0.1", "seed=0,1,2", "resume=off")
    assert "already done" not in off.stdout
    assert (tmp_path / untouched[0] / "summary.json").stat().st_mtime_ns != stamps[untouched[0]]


def test_versions_are_not_mixed(tmp_path):
    assert sweep(tmp_path, "seed=0").returncode == 0
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**manifest, "code": "0" * 16}))
    refused = sweep(tmp_path, "seed=0,1")
    assert refused.returncode == 1
    assert "was made with other code" in refused.stderr
    assert "resume=force" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert len(jobs(tmp_path)) == 1
    assert sweep(tmp_path, "seed=0,1", "resume=force").returncode == 0
    assert len(jobs(tmp_path)) == 2
    assert sweep(tmp_path, "seed=0,1").returncode == 0  # forced once, this code owns the folder


@pytest.mark.slow
def test_data_that_changed_is_not_mixed(tmp_path):
    for name in ("source", "target"):
        (tmp_path / f"{name}.csv").write_text("a,y\n" + "\n".join(f"{i},{i % 7}" for i in range(40)))
    data = (
        "data=csv",
        f"data.source_path={tmp_path}/source.csv",
        f"data.target_path={tmp_path}/target.csv",
        "data.label=y",
    )
    assert sweep(tmp_path / "study", *data, "seed=0,1").returncode == 0
    (tmp_path / "target.csv").write_text("a,y\n" + "\n".join(f"{i},{i % 5}" for i in range(40)))
    refused = sweep(tmp_path / "study", *data, "seed=0,1,2")
    assert refused.returncode == 1
    assert "the data has changed" in refused.stdout + refused.stderr
    assert sweep(tmp_path / "study", *data, "seed=0,1,2", "resume=force").returncode == 0


def test_a_folder_that_is_no_sweep_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = sweep(tmp_path, "seed=0,1")
    assert done.returncode == 1
    assert "was not made by a sweep (it contains thesis.tex)" in done.stderr
    assert not (tmp_path / "multirun.yaml").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = sweep(tmp_path / "file" / "study", "seed=0,1")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_disk_that_fills_up_keeps_what_was_done(tmp_path):
    """On a file system of one megabyte of its own, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "thaw-test", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("making a small file system needs rights that this process does not have")
    try:
        done = sweep(disk / "study", "seed=range(0,100)", "hydra.launcher.batch_size=5", "finetune_steps=20")
        assert done.returncode == 1
        assert "cannot be written (No space left on device); what was done stays done" in done.stderr
        assert done.stderr.count("\n") == 1
        kept = [summary(job) for job in jobs(disk / "study").values()]
        assert len(kept) > 5
        assert all(record["status"] == "completed" for record in kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("hydra.launcher.batch_size=0", "hydra.launcher.batch_size is 0; allowed: a whole number >= 1"),
        ("hydra.launcher.mode=fast", "hydra.launcher.mode: Invalid value 'fast', expected one of [map, vmap, auto]"),
        ("resume=sometimes", "resume: Invalid value 'sometimes'"),
        ("cache=maybe", "cache: Invalid value 'maybe'"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, argument, message):
    done = sweep(tmp_path / "study", "seed=0,1", argument)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not jobs(tmp_path / "study")


def test_one_raises_one_diverges_the_rest_complete(tmp_path):
    done = sweep(tmp_path, "strategy=full", "lr_fine=0.01,-1,0.1,1e9", "seed=0,1")
    assert done.returncode == 1
    assert "8 jobs: 4 completed, 2 diverged, 2 failed" in done.stdout
    assert done.stdout.count("failed: lr_fine is -1.0; allowed: a finite number > 0") == 2
    assert "2 of 8 jobs did not complete" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_compiled_in_makes_groups_of_its_own(tmp_path):
    done = sweep(
        tmp_path, "optimizer=adam", "optimizer.b1=0.8,0.9", "seed=0,1,2", "batch_size=null,32", "finetune_steps=10"
    )
    assert done.returncode == 0, done.stderr
    assert "12 jobs: 12 completed" in done.stdout
    objectives = {name: summary(job)["objective"] for name, job in jobs(tmp_path).items()}
    assert len(set(objectives.values())) == 12
    assert "optimizer.b1 is compiled in: each of its 2 values compiles its own program" in done.stdout
    assert "batch_size is compiled in: each of its 2 values compiles its own program" in done.stdout


@pytest.mark.slow
def test_a_group_that_fails_runs_one_by_one(tmp_path):
    """A program that cannot be built as lanes: here because the lanes are made to fail."""
    broken = tmp_path / "project"
    for part in ("src", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, broken / part, ignore=shutil.ignore_patterns("__pycache__"))
    lanes = broken / "src/training/vectorize.py"
    text = lanes.read_text()
    lanes.write_text(
        text.replace(
            "    if lanes is RunAxis.vmap:\n",
            "    raise RuntimeError('no lanes today')\n    if lanes is RunAxis.vmap:\n",
        )
    )
    assert lanes.read_text() != text
    arguments = [f"hydra.sweep.dir={tmp_path / 'study'}", "tracker=disk", "seed=0,1", "finetune_steps=10", "cache=off"]
    done = subprocess.run(
        [sys.executable, "-m", "src.train", "-m", *arguments], cwd=broken, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 jobs could not run as one program (no lanes today): running them one by one" in done.stdout
    assert "2 jobs: 2 completed" in done.stdout


@pytest.mark.slow
def test_lanes_are_cut_by_batch_size(tmp_path, basic):
    done = sweep(tmp_path / "study", *GRID, "hydra.launcher.batch_size=2", "cache=off")
    assert done.returncode == 0, done.stderr
    for name, folder in jobs(tmp_path / "study").items():
        assert (folder / "metrics.jsonl").read_bytes() == (basic / name / "metrics.jsonl").read_bytes()


def test_pretraining_is_computed_once_and_kept(tmp_path):
    cache = f"cache_folder={tmp_path}/cache"
    assert sweep(tmp_path / "one", "strategy=frozen,full", "lr_fine=0.01,0.1", "seed=0,1", cache).returncode == 0
    kept = sorted((tmp_path / "cache").glob("*.stage"))
    assert len(kept) == 2  # a seed each, whatever was fine-tuned from it
    before = [contents(path) for path in kept]
    kept[0].write_bytes(b"damaged" + kept[0].read_bytes()[7:])
    again = sweep(tmp_path / "two", "strategy=frozen,full", "lr_fine=0.01,0.1", "seed=0,1", cache)
    assert again.returncode == 0
    assert "warning" in again.stdout
    assert [contents(path) for path in kept] == before  # computed again, to the same bits
    for name, job in jobs(tmp_path / "one").items():
        assert (job / "metrics.jsonl").read_bytes() == (tmp_path / "two" / name / "metrics.jsonl").read_bytes()


def contents(path: Path) -> tuple:
    found = StageCache(path.parent, CacheMode.read, 10**9, pytest.fail).get(path.stem)
    assert found is not None
    return {name: leaf.tobytes() for name, leaf in found.params.items()}, repr(found.rows), repr(found.facts)


def running_sweep(folder: Path, *arguments: str, **options):
    return running("-m", "src.train", "-m", f"hydra.sweep.dir={folder}", "tracker=disk", *arguments, **options)


def test_two_sweeps_on_one_folder(tmp_path):
    with running_sweep(tmp_path, "seed=0,1", "finetune_steps=30000000") as first:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        second = sweep(tmp_path, "seed=0,1")
    assert second.returncode == 1
    assert f"another sweep (process {first.pid}) is writing to" in second.stderr
    assert second.stderr.count("\n") == 1
    assert sweep(tmp_path, "seed=0,1", "finetune_steps=10").returncode == 0  # a dead sweep holds no lock


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fused", "isolated"])
def test_ten_kills_lose_nothing(tmp_path, launcher):
    """SIGKILL at ten random moments: the results are an undisturbed sweep's, to the bit, and no job runs twice."""
    grid = {
        "fused": ("strategy=frozen,full", "lr_fine=0.01,0.02,0.03,0.04", "seed=0,1,2,3", "hydra.launcher.batch_size=4"),
        "isolated": ("strategy=frozen,full", "lr_fine=0.01,0.1", "seed=0,1", "hydra.launcher.slots=2"),
    }[launcher]
    arguments = (f"hydra/launcher={launcher}", "cache=off", "finetune_steps=20", *grid)
    undisturbed = sweep(tmp_path / "undisturbed", *arguments)
    assert undisturbed.returncode == 0, undisturbed.stderr
    rng = random.Random(0)
    finished: dict[str, int] = {}
    killed = 0
    for _ in range(10):
        with running_sweep(tmp_path / "killed", *arguments) as process:
            # From before the first import to when the last job may have ended.
            end = time.monotonic() + rng.uniform(0.5, 6.0)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
            killed += process.poll() is None
        time.sleep(0.3)  # children of an isolated sweep end with their parent
        for name, job in jobs(tmp_path / "killed").items():
            stamp = (job / "summary.json").stat().st_mtime_ns
            assert finished.setdefault(name, stamp) == stamp, f"{name} ran twice"
    assert killed >= 3
    last = sweep(tmp_path / "killed", *arguments)
    assert last.returncode == 0, last.stderr
    assert list(jobs(tmp_path / "killed")) == list(jobs(tmp_path / "undisturbed"))
    for name, job in jobs(tmp_path / "killed").items():
        assert (job / "metrics.jsonl").read_bytes() == (tmp_path / "undisturbed" / name / "metrics.jsonl").read_bytes()
        assert (job / "model.safetensors").read_bytes() == (
            tmp_path / "undisturbed" / name / "model.safetensors"
        ).read_bytes()
