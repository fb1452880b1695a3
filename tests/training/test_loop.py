"""The loop: the same numbers however often they are looked at, an honest end when they stop being finite."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from src.config.hparams import bind, static_part
from src.data.diabetes import Diabetes
from src.models.mlp import Mlp
from src.optim.optimizers import Adam, Momentum
from src.optim.schedules import WarmupLinear
from src.recipe.spec import Recipe
from src.strategies.discriminative import Discriminative
from src.strategies.full import Full
from src.training.loop import EvalHook, PhaseData, PhaseRun, RunProgress, train, train_phase
from src.training.stage import traced
from src.training.step import row_order
from src.training.vectorize import RunAxis, _programs, programs
from tests.runs import finetuned, finetuning_stage, first_params, phases, pretrained, pretraining_stage


@pytest.fixture(scope="module")
def data():
    return Diabetes().load()


def test_every_epoch_sees_every_row_once(data):
    stage = dataclasses.replace(pretraining_stage(Recipe(batch_size=10), data), log_every=13)
    rows = 47
    stream = np.concatenate([np.ravel(row_order(stage, rows, step)) for step in range(0, 130, 13)])
    epochs = [stream[i : i + rows] for i in range(0, len(stream) - rows, rows)]
    assert len(epochs) > 20
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(rows))
    assert not np.array_equal(epochs[0], epochs[1])


def test_an_update_s_rows_do_not_depend_on_the_logging(data):
    base = pretraining_stage(Recipe(batch_size=10), data)
    orders = [
        np.concatenate([row_order(dataclasses.replace(base, log_every=n), 47, step) for step in range(0, 60, n)])
        for n in (1, 4, 60)
    ]
    for order in orders:
        np.testing.assert_array_equal(order[:60], orders[0])
    other = row_order(dataclasses.replace(base, log_every=60, seed=1), 47, 0)
    assert not np.array_equal(other, orders[0])


@pytest.mark.parametrize("batch_size", [None, pytest.param(32, marks=pytest.mark.slow)])
def test_logging_changes_no_bit(data, batch_size):
    ends = []
    for log_every in (1, 7, 100):
        recipe = Recipe(strategy=Full(), batch_size=batch_size, log_every=log_every, optimizer=Momentum())
        ends.append(finetuned(recipe, data, pretrained(recipe, data)).params)
    for end in ends[1:]:
        for path in end:
            np.testing.assert_array_equal(end[path], ends[0][path])


def test_equals_a_plain_loop(data):
    """The compiled loop against the loop that one would write first, minibatches, schedule and rates included."""
    recipe = Recipe(
        model=Mlp((8, 4)),
        strategy=Discriminative(decay=0.5),
        optimizer=Adam(),
        schedule=WarmupLinear(0.2),
        batch_size=25,
        finetune_steps=40,
        lr_fine=0.01,
    )
    stage = finetuning_stage(recipe, data)
    params = first_params(stage, data)
    rows: list[dict] = []
    end = train(stage, params, data.target["train"], {}, rows.append)

    x, y = data.target["train"]
    order = np.asarray(row_order(dataclasses.replace(stage, log_every=40), len(x), 0))
    state = {path: (np.zeros(p.shape), np.zeros(p.shape)) for path, p in params.items()}
    values = {path: np.asarray(p, np.float64) for path, p in params.items()}
    losses = []
    for t, batch in enumerate(order):

        def loss_of(p, batch=batch):
            return jnp.mean((stage.model.apply(p, x[batch], 1)[:, 0] - y[batch]) ** 2)

        loss, grads = jax.value_and_grad(loss_of)({k: jnp.asarray(v, jnp.float32) for k, v in values.items()})
        losses.append(float(loss))
        peak = 0.01 * (t / 8 if t < 8 else (40 - t) / 32)
        for path in values:
            g = np.asarray(grads[path], np.float64)
            m, v = state[path]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            state[path] = (m, v)
            scale = {"Dense_2": 1.0, "Dense_1": 0.5, "Dense_0": 0.25}[path.split("/")[0]]
            step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
            values[path] = values[path] - peak * scale * step
    np.testing.assert_allclose([row["loss"] for row in rows], losses[9::10], rtol=1e-4)
    for path in values:
        np.testing.assert_allclose(end.params[path], values[path], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lanes", [RunAxis.none, RunAxis.map])
def test_a_look_is_handed_the_parameters_of_its_row_and_changes_no_bit(data, lanes):
    """What a look makes of them is the loss that the device evaluates there, at every look and in every lane."""
    recipe = Recipe(strategy=Full(), finetune_steps=25, lr_fine=0.01, optimizer=Momentum())
    rates = (0.01,) if lanes is RunAxis.none else (0.01, 0.003, 1e20)
    stages = phases([dataclasses.replace(recipe, lr_fine=rate) for rate in rates], data, lanes)[0]
    params, (x, y) = [first_params(stages[0], data)] * len(rates), data.target["val"]
    splits, train = {"val": data.target["val"]}, data.target["train"]

    def measure(lane, step, own):
        said = stages[lane].model.apply({path: jnp.asarray(leaf) for path, leaf in own.items()}, x, 1)[:, 0]
        return {"own_loss": float(np.mean((np.asarray(said, np.float64) - y) ** 2)), "lane": lane, "made": step}

    rows, bare = ([[] for _ in rates] for _ in range(2))

    def trained(logs, hooks):
        progress = [RunProgress(log.append) for log in logs]
        runs = [PhaseRun(*each, hook=hook) for *each, hook in zip(stages, params, progress, hooks, strict=True)]
        ends = train_phase(runs, PhaseData(train, splits), lanes).params()
        return [own.fit(end) for own, end in zip(progress, ends, strict=True)]

    ends = trained(rows, [EvalHook(20, functools.partial(measure, lane)) for lane in range(len(rates))])
    plain = trained(bare, [None] * len(rates))
    for lane, (own, end, without) in enumerate(zip(rows, ends, plain, strict=True)):
        for path, leaf in without.params.items():
            np.testing.assert_array_equal(end.params[path], leaf)
        seen = [row for row in own if "own_loss" in row]
        assert [row["step"] for row in seen] == ([0] if end.diverged else [0, 20, 25])
        for row in seen:
            assert row["own_loss"] == pytest.approx(row["val_loss"], rel=1e-5)
            assert (row["lane"], row["made"]) == (lane, row["step"])
        drop = {"own_loss", "lane", "made"}
        assert [{name: value for name, value in row.items() if name not in drop} for row in own] == bare[lane]
    assert [end.diverged for end in ends] == [rate > 1 for rate in rates]


def test_rows_are_what_happened(data):
    rows: list[dict] = []
    recipe = Recipe(finetune_steps=25, strategy=Full(), optimizer=Adam(), lr_fine=0.01)
    end = finetuned(recipe, data, pretrained(recipe, data), rows.append)
    assert [row["step"] for row in rows] == [0, 10, 20, 25]
    assert set(rows[0]) == {"step", "val_loss", "val_r2"}
    assert set(rows[1]) == {"step", "loss", "grad_norm", "lr", "val_loss", "val_r2"}
    assert all(row["lr"] == 0.01 for row in rows[1:])
    x, y = data.target["val"]
    error = np.asarray(recipe.model.apply(end.params, x, 1))[:, 0] - y
    np.testing.assert_allclose(rows[-1]["val_loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(rows[-1]["val_r2"], 1 - np.mean(error**2) / np.var(y), rtol=1e-4)


def test_gradient_norm_is_of_what_moves(data):
    rows: list[dict] = []
    recipe = Recipe(finetune_steps=1, log_every=1)
    params = pretrained(recipe, data)
    finetuned(recipe, data, params, rows.append)
    x, y = data.target["train"]

    def loss_of(head):
        return jnp.mean((recipe.model.apply({**params, **head}, x, 1)[:, 0] - y) ** 2)

    head = {path: value for path, value in params.items() if path.startswith("Dense_1")}
    np.testing.assert_allclose(rows[-1]["grad_norm"], optax.tree.norm(jax.grad(loss_of)(head)), rtol=1e-5)


@pytest.mark.parametrize("log_every", [1, 7, 50])
def test_divergence_ends_at_the_last_finite_update(data, log_every):
    recipe = Recipe(lr_fine=1e4, strategy=Full(), log_every=log_every)
    rows: list[dict] = []
    end = finetuned(recipe, data, pretrained(Recipe(), data), rows.append)
    every: list[dict] = []
    finetuned(dataclasses.replace(recipe, log_every=1), data, pretrained(Recipe(), data), every.append)
    finite = max(row["step"] for row in every if np.isfinite(row.get("loss", 0.0)))
    assert end.diverged
    assert end.last_finite_step == finite == rows[-1]["step"]
    assert np.isfinite(rows[-1]["loss"])


def test_zero_steps_change_nothing(data):
    params = pretrained(Recipe(), data)
    end = finetuned(Recipe(finetune_steps=0), data, params)
    assert not end.diverged
    for path in params:
        np.testing.assert_array_equal(end.params[path], params[path])


def test_one_program_serves_every_rate_seed_length_and_decay(data):
    _programs.cache_clear()
    for lr, decay, steps, seed in ((0.1, 0.9, 10, 0), (0.01, 0.5, 33, 1), (1e-4, 1.0, 7, 2)):
        recipe = Recipe(lr_fine=lr, strategy=Discriminative(decay=decay), finetune_steps=steps, seed=seed)
        finetuned(recipe, data, pretrained(Recipe(), data))
    stage = finetuning_stage(recipe, data)
    assert len(programs(static_part(stage)).advance._programs) == 1
    assert _programs.cache_info().currsize == 2  # pre-training and fine-tuning


def test_bind_is_the_inverse_of_static_part(data):
    stage = finetuning_stage(Recipe(strategy=Discriminative(0.5), optimizer=Adam(clip_norm=1.0)), data)
    assert set(traced(stage)) == {
        "lr", "steps", "seed", "first", "trainer.min_delta", "strategy.decay",
        "optimizer.weight_decay", "optimizer.clip_norm",
    }  # fmt: skip
    values = {path: value.item() for path, value in traced(stage).items()}
    assert bind(static_part(stage), values) == dataclasses.replace(stage, lr=np.float32(0.05).item())
    assert hash(static_part(stage)) == hash(static_part(dataclasses.replace(stage, lr=0.7)))
