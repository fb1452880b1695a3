"""The files for ``wandb sweep``, run by the code of W&B's own agent; only its server's choice of a point is ours."""

import os
import queue
import sys
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from src.config.schema import CONF
from src.tracking.wandb_files import read_run
from tests.commands import ROOT, summary, train

FILES = sorted((CONF / "sweep").glob("*.yaml"))


def point(parameters):
    """Return a point of a sweep's parameters, as the server words it."""
    return {key: {"value": p["values"][-1] if "values" in p else p["max"] / 2} for key, p in parameters.items()}


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(f, marks=pytest.mark.slow, id=f.stem) if f.stem == "grid" else pytest.param(f, id=f.stem)
        for f in FILES
    ],
)
def test_an_agent_runs_a_point(file, tmp_path, monkeypatch):
    sweep = yaml.safe_load(file.read_text())
    asked = point(sweep["parameters"])
    short = {"pretrain_steps": 5, "finetune_steps": 5, "hydra.run.dir": str(tmp_path / "job")}
    monkeypatch.chdir(ROOT)
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "",  # both are the agent's to set: gone when the test ends
        "WANDB_SWEEP_PARAM_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)

    agent = Agent(api=None, queue=queue.Queue(), sweep_id="sweep1")
    agent._sweep_command = sweep["command"]
    arguments = {**asked, **{key: {"value": value} for key, value in short.items()}}
    agent._command_run({"run_id": "point1", "program": sweep["program"], "args": arguments})
    assert agent._run_processes["point1"].wait() == 0

    record = summary(tmp_path / "job")
    assert record["status"] == "completed"
    config = {**record["config"], "strategy": record["config"]["strategy"]["name"]}
    assert {key: config[key] for key in asked} == {key: choice["value"] for key, choice in asked.items()}
    (written,) = tmp_path.rglob("run-*.wandb")
    run = read_run(written)
    assert (run.run_id, run.exit_code) == ("point1", 0)
    assert run.summary[sweep["metric"]["name"]] == record["metrics"]["val_loss"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_s_numbers_are_numbers(file):
    """``1e-3`` would be a text to W&B's YAML reader."""
    for parameter in yaml.safe_load(file.read_text())["parameters"].values():
        kinds = {type(value) for key in ("values", "min", "max") for value in as_list(parameter.get(key, []))}
        assert len(kinds) == 1, parameter
    assert yaml.safe_load(file.read_text())["parameters"]["strategy"]["values"] == strategies()


def test_the_files_are_no_option_of_the_command_line(tmp_path):
    done = train(tmp_path, "sweep=grid")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no key 'sweep'")
    assert "the keys are: recipe, seed, lr_pre" in done.stderr


def as_list(value):
    return value if isinstance(value, list) else [value]


def strategies():
    presets = yaml.safe_load((CONF / "experiment/four_strategies.yaml").read_text())
    return presets["hydra"]["sweeper"]["params"]["strategy"].split(",")
