"""Retention in the engine: penalties, rehearsal, proximal steps, in single runs and lanes; forgetting everywhere."""

from dataclasses import replace

import numpy as np
import pytest

from src.data.diabetes import Diabetes
from src.data.digits import Digits
from src.errors import UserError
from src.models.mlp import Mlp
from src.optim.optimizers import Sgd
from src.recipe.spec import Recipe
from src.retention.base import Isolate
from src.retention.ewc import Ewc
from src.retention.l2_sp import L2Sp
from src.retention.rehearsal import Distill, Replay
from src.strategies.frozen import LinearProbe
from src.strategies.full import Full
from src.strategies.lora import Lora
from src.training.vectorize import RunAxis, _programs
from src.types import ignore
from tests.runs import finetune, pretrain, resolve_trainable, retention_states, run_finetuning


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    recipe = Recipe(strategy=Full(), optimizer=Sgd(), pretrain_steps=30, finetune_steps=12, log_every=4, lr_fine=0.05)
    return recipe, data, pretrain([recipe], data)[0]


def forward(params, x):
    hidden = np.maximum(x @ params["Dense_0/kernel"] + params["Dense_0/bias"], 0)
    return hidden, (hidden @ params["Dense_1/kernel"])[:, 0] + params["Dense_1/bias"][0]


def gradient(params, x, y):
    """The gradient of the mean squared error, in float64."""
    hidden, out = forward(params, x)
    slope = 2 * (out - y)[:, None] / len(y)
    below = (slope @ params["Dense_1/kernel"].T) * (hidden > 0)
    return {
        "Dense_1/kernel": hidden.T @ slope, "Dense_1/bias": slope.sum(0),
        "Dense_0/kernel": x.T @ below, "Dense_0/bias": below.sum(0),
    }  # fmt: skip


def float64(params):
    return {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}


@pytest.mark.parametrize("method", [L2Sp(strength=2.0), L2Sp(strength=2.0, proximal=True), Ewc(strength=2.0)], ids=str)
def test_a_penalty_is_what_its_formula_says(task, method):
    recipe, data, pre = task
    end = finetune([replace(recipe, retention=method)], data, [pre.params], [ignore]).fits[0].params
    anchor, weights = float64(pre.params), float64(pre.params)
    x, y = (np.asarray(part, np.float64) for part in data.target["train"])
    importance = dict.fromkeys(anchor, 1.0)
    if isinstance(method, Ewc):  # a regression's Fisher information: the mean square of each row's output gradient
        rows = np.asarray(data.source["train"].x, np.float64)
        # gradient() of one row is 2 (f - y) df, so with y = f - 1/2 it is df.
        each = [gradient(anchor, row[None], forward(anchor, row[None])[1] - 0.5) for row in rows]
        importance = {path: np.mean([one[path] ** 2 for one in each], axis=0) for path in anchor}
    for _ in range(12):
        grads = gradient(weights, x, y)
        for path, grad in grads.items():
            if method.proximal:
                step = weights[path] - 0.05 * grad
                weights[path] = (step + 0.05 * 2.0 * anchor[path]) / (1 + 0.05 * 2.0)
            else:
                pull = 2.0 * importance[path] * (weights[path] - anchor[path])
                weights[path] = weights[path] - 0.05 * (grad + pull)
    for path, leaf in weights.items():
        np.testing.assert_allclose(end[path], leaf, rtol=2e-4, atol=2e-5, err_msg=path)


def test_replay_of_all_rows_is_training_on_both_tasks(task):
    recipe, data, pre = task
    method = Replay(fraction=1.0, strength=0.5, batch_size=10_000)
    end = finetune([replace(recipe, retention=method)], data, [pre.params], [ignore]).fits[0].params
    weights = float64(pre.params)
    new, old = data.target["train"], data.source["train"]
    for _ in range(12):
        both = [gradient(weights, *(np.asarray(part, np.float64) for part in rows)) for rows in (new, old)]
        weights = {path: leaf - 0.05 * (both[0][path] + 0.5 * both[1][path]) for path, leaf in weights.items()}
    for path, leaf in weights.items():
        np.testing.assert_allclose(end[path], leaf, rtol=2e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(
    "method", [L2Sp(strength=0.5), Ewc(strength=5.0), Replay(), Distill()], ids=lambda method: type(method).__name__
)
@pytest.mark.parametrize(
    "data", [pytest.param(Diabetes(), marks=pytest.mark.slow), Digits()], ids=["diabetes", "digits"]
)
def test_lanes_have_the_bits_of_single_runs(method, data):
    data = data.load()
    base = Recipe(strategy=Full(), pretrain_steps=10, finetune_steps=8, log_every=4, batch_size=16, retention=method)
    recipes = [replace(base, lr_fine=rate, seed=seed) for rate, seed in ((0.05, 0), (0.01, 0), (0.05, 1))]
    pre = {seed: pretrain([replace(base, seed=seed)], data)[0] for seed in (0, 1)}
    lane_rows = [[] for _ in recipes]
    starts = [pre[recipe.seed] for recipe in recipes]
    together = run_finetuning(recipes, data, starts, [own.append for own in lane_rows], RunAxis.map)
    for lane, (recipe, start) in enumerate(zip(recipes, starts, strict=True)):
        rows = []
        (alone,) = run_finetuning([recipe], data, [start], [rows.append])
        assert rows == lane_rows[lane]
        assert alone.metrics == together[lane].metrics
        assert "source_after_loss" in alone.metrics


def test_a_sweep_over_the_strength_is_one_program_and_one_fisher(task):
    recipe, data, pre = task
    recipes = [replace(recipe, retention=Ewc(strength=strength)) for strength in (0.0, 0.3, 3.0)]
    kept = retention_states(recipes, data, [pre.params] * 3)
    assert kept is not None
    assert kept[0] is kept[1] is kept[2]
    _programs.cache_clear()
    ends = [finetune([one], data, [pre.params], [ignore]).fits[0].params for one in recipes]
    assert _programs.cache_info().currsize == 1
    away = [sum(float(np.sum((end[path] - pre.params[path]) ** 2)) for path in end) for end in ends]
    assert away[0] > away[1] > away[2]
    plain = finetune([recipe], data, [pre.params], [ignore]).fits[0].params
    for path in plain:
        np.testing.assert_allclose(plain[path], ends[0][path], rtol=1e-6, atol=1e-7)


def test_the_source_is_measured_again_by_its_own_head():
    data = Digits().load()
    recipe = Recipe(model=Mlp((16,)), strategy=LinearProbe(), pretrain_steps=50, finetune_steps=20)
    pre = pretrain([recipe], data)
    (probe,) = run_finetuning([recipe], data, pre, [ignore])
    for metric in ("loss", "accuracy"):
        assert probe.metrics[f"source_after_{metric}"] == probe.metrics[f"source_test_{metric}"]  # the trunk rested
    (full,) = run_finetuning([replace(recipe, strategy=Full(), lr_fine=0.3)], data, pre, [ignore])
    params = {**full.params, **{path: pre[0].params[path] for path in ("Dense_1/kernel", "Dense_1/bias")}}
    outputs = np.asarray(recipe.model.apply(params, data.source["test"].x, data.source_outputs))
    expected = np.mean(outputs.argmax(1) == data.source["test"].y)
    assert full.metrics["source_after_accuracy"] == pytest.approx(expected)
    assert full.metrics["source_after_accuracy"] < full.metrics["source_test_accuracy"]


def test_isolation_is_exact_and_refuses_what_moves_the_network(task):
    recipe, data, pre = task
    isolated = replace(recipe, strategy=Lora(rank=2), retention=Isolate())
    (outcome,) = run_finetuning([isolated], data, [pre], [ignore])
    assert outcome.metrics["source_after_loss"] == outcome.metrics["source_test_loss"]
    assert outcome.metrics["test_loss"] != pytest.approx(outcome.metrics["source_test_loss"])
    with pytest.raises(UserError, match=r"retention.name is 'isolate', and the strategy moves"):
        resolve_trainable(replace(recipe, retention=Isolate()), data)
