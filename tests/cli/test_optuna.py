"""``hydra/sweeper=optuna``: a sweep that chooses its points by the objectives of the ones before."""

import importlib.util
import json
import math

import pytest
import yaml

from tests.commands import sweep

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="the extra `optuna` is not installed"
)


@pytest.mark.slow
def test_optuna_finds_the_smallest_objective_in_batches(tmp_path):
    done = sweep(
        tmp_path,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.sampler.seed=1",
        "lr_fine=tag(log, interval(0.001, 1000))",  # the largest diverge: their objective is infinite
        "strategy=choice(frozen,full)",
        "pretrain_steps=20",
        "finetune_steps=200",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n3 jobs; ") == 2
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert len(records) == 6
    assert {record["status"] for record in records} == {"completed", "diverged"}
    best = min(records, key=lambda record: float(record["objective"]))
    found = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert math.isfinite(best["objective"])
    assert found["best_value"] == best["objective"]
    assert found["best_params"] == {
        "lr_fine": best["config"]["lr_fine"],
        "strategy": best["config"]["strategy"]["name"],
    }
