import math
from types import SimpleNamespace
from typing import Any

import pytest

from src.errors import UserError
from src.tracking.wandb_runs import load_wandb_project


class Api:
    """A fake ``wandb.Api`` that stores the arguments of its last call."""

    def __init__(self, runs: list[Any] | Exception):
        self.given, self.arguments = runs, None

    def runs(self, path, filters=None, lazy=True):
        self.arguments = (path, filters, lazy)
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def make_run(**changes: Any) -> Any:
    fields = {
        "name": "n",
        "id": "i",
        "state": "finished",
        "config": {"seed": 1, "strategy": {"name": "full"}, "_wandb": {}},
        "summary_metrics": {"test_loss": "NaN", "val_loss": 0.5, "_step": 3, "_runtime": 7.5, "finetune/loss": 1.0},
        "scan_history": lambda: iter(
            [{"_step": 0, "finetune/step": 1, "finetune/loss": "Infinity", "finetune/x": None}]
        ),
        "commit": "abc",
        "created_at": "2026-01-01T00:00:00Z",
    }
    return SimpleNamespace(**(fields | changes))


def test_a_run_becomes_a_job():
    api = Api([make_run()])
    (job,) = load_wandb_project("team/project/sweep", api)
    assert api.arguments == ("team/project", {"group": "sweep"}, False)
    assert (job.name, job.job_id, job.status, job.seconds, job.git_commit) == ("n", "i", "completed", 7.5, "abc")
    assert job.config == {"seed": 1, "strategy": {"name": "full"}}
    assert job.metrics["val_loss"] == 0.5
    assert math.isnan(job.metrics.pop("test_loss"))
    assert job.metrics.keys() == {"val_loss"}
    assert job.rows() == [{"stage": "finetune", "step": 1, "loss": math.inf}]


def test_the_identity_in_the_configuration_is_the_jobs():
    (job,) = load_wandb_project("a/b", Api([make_run(config={"seed": 1, "job_id": "5c0f"})]))
    assert (job.job_id, job.config) == ("5c0f", {"seed": 1})


def test_without_a_group():
    api = Api([])
    assert load_wandb_project("team/project", api) == []
    assert api.arguments == ("team/project", None, False)


@pytest.mark.parametrize(
    ("state", "status"),
    [("finished", "completed"), ("failed", "failed"), ("crashed", "unfinished"), ("running", "unfinished")],
)
def test_states(state, status):
    assert load_wandb_project("a/b", Api([make_run(state=state)]))[0].status == status


def test_what_thaw_put_into_the_summary_counts():
    summary = {"status": "diverged", "objective": "Infinity", "trainable_parameters": 9, "last_finite_step": 4}
    (job,) = load_wandb_project("a/b", Api([make_run(summary_metrics=summary)]))
    assert (job.status, job.objective, job.trainable_parameters, job.last_finite_step) == ("diverged", math.inf, 9, 4)
    assert job.metrics == {}


@pytest.mark.parametrize("path", ["project", "a/b/c/d", "a//b", ""])
def test_a_path_of_another_form(path):
    with pytest.raises(UserError, match="entity/project"):
        load_wandb_project(path, Api([]))


@pytest.mark.parametrize("error", [ValueError("Could not find project b"), ConnectionError("no network")])
def test_errors_become_one_sentence(error):
    with pytest.raises(UserError, match=f"'a/b': {error}"):
        load_wandb_project("a/b", Api(error))
