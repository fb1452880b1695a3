"""The trainer's knobs, each against a plain re-computation."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.config.hparams import bind, static_part
from src.data.diabetes import Diabetes
from src.data.digits import Digits
from src.errors import UserError
from src.models.mlp import Mlp
from src.objectives.base import Objective
from src.objectives.supervised import Classification, Regression
from src.optim.optimizers import Adam, Sgd
from src.optim.schedules import Constant
from src.recipe.spec import Recipe
from src.strategies.frozen import Masked
from src.strategies.full import Full
from src.training.stage import Stage, traced
from src.training.step import StepKeys, gradients, start, update
from src.training.trainer import Precision, TrainerConfig
from src.types import Split
from tests.runs import finetune, finetuned, phases, pretrained


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    recipe = Recipe(pretrain_steps=20, finetune_steps=10, log_every=5, strategy=Full())
    return recipe, data, pretrained(recipe, data)


def stage(**changes):
    base = Stage(Mlp((5,)), 3, Classification(), Full(), Sgd(), Constant(), lr=0.1, steps=10, seed=0)
    return replace(base, **changes)


def batch(rows=12, features=4, classes=3):
    rng = np.random.default_rng(0)
    return Split(rng.normal(size=(rows, features)).astype(np.float32), rng.integers(0, classes, rows).astype(np.int32))


# --- accumulation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    one, rows = stage(), batch()
    params = one.model.init(jax.random.PRNGKey(1), (4,), 3)
    whole = gradients(one, start(one, params), {}, rows, 0, updated=frozenset(), retention_state={})
    cut = replace(one, trainer=TrainerConfig(accumulate=parts))
    added = gradients(cut, start(cut, params), {}, rows, 0, updated=frozenset(), retention_state={})
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@dataclass(frozen=True)
class Masked3(Objective):
    """Cross-entropy over the labels that are not -100, as token labels are."""

    def loss(self, outputs, targets, smoothing=None):
        keep = targets >= 0
        terms = -jnp.take_along_axis(jax.nn.log_softmax(outputs), jnp.maximum(targets, 0)[:, None], 1)[:, 0]
        return jnp.sum(jnp.where(keep, terms, 0.0)) / self.count(targets)

    def count(self, targets):
        return jnp.sum(targets >= 0).astype(jnp.float32)


def test_parts_count_by_their_true_number_of_terms():
    """The known mistake is the mean of the parts' means: it weights a label more where its part has few."""
    rows = batch()
    labels = np.array(rows.y)
    labels[[0, 1, 2, 4, 9]] = -100  # parts with 1, 3 and 3 labels
    rows = Split(rows.x, labels)
    one = stage(objective=Masked3())
    params = one.model.init(jax.random.PRNGKey(1), (4,), 3)
    whole = gradients(one, start(one, params), {}, rows, 0, updated=frozenset(), retention_state={})
    cut = replace(one, trainer=TrainerConfig(accumulate=3))
    added = gradients(cut, start(cut, params), {}, rows, 0, updated=frozenset(), retention_state={})
    means = [
        gradients(one, start(one, params), {}, Split(rows.x[i : i + 4], labels[i : i + 4]), frozenset(), StepKeys(), {})
        for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(whole[0], added[0], rtol=1e-6)
    wrong = np.mean([loss for loss, _, _ in means])
    assert abs(wrong - whole[0]) > 1e-3
    for path in params:
        np.testing.assert_allclose(whole[1][path], added[1][path], rtol=1e-5, atol=1e-7)


def test_accumulation_must_divide_the_batch(task):
    recipe, data, _ = task
    with pytest.raises(UserError, match=r"trainer.accumulate is 5, which does not divide a batch of 16 rows"):
        phases([replace(recipe, batch_size=16, trainer=TrainerConfig(accumulate=5))], data)


# --- precision ---------------------------------------------------------------------------------------------------


def test_bfloat16_computes_coarsely_and_keeps_float32_masters(task):
    recipe, data, params = task
    exact = finetuned(recipe, data, params)
    coarse = finetuned(replace(recipe, trainer=TrainerConfig(precision=Precision.bfloat16)), data, params)
    for path, leaf in coarse.params.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, exact.params[path], atol=0.02)
        assert not np.array_equal(leaf, exact.params[path])
        # A master weight is no bfloat16 number: an update of 1/1000 of a weight survives.
        assert not np.array_equal(leaf, np.asarray(jnp.asarray(leaf).astype(jnp.bfloat16), np.float32))


def test_the_frozen_half_may_be_stored_in_bfloat16(task):
    recipe, data, params = task
    recipe = replace(
        recipe, strategy=Masked(), trainer=TrainerConfig(frozen_precision=Precision.bfloat16, feature_cache=0.0)
    )
    end = finetune([recipe], data, [params], [lambda _row: None])
    rounded = {
        path: np.asarray(jnp.asarray(leaf).astype(jnp.bfloat16), np.float32) if path.startswith("Dense_0") else leaf
        for path, leaf in params.items()
    }
    same = finetuned(replace(recipe, trainer=TrainerConfig(feature_cache=0.0)), data, rounded)
    np.testing.assert_allclose(end.fits[0].params["Dense_1/kernel"], same.params["Dense_1/kernel"], rtol=1e-6)
    for path in ("Dense_0/kernel", "Dense_0/bias"):
        np.testing.assert_array_equal(end.fits[0].params[path], params[path])


def test_rounded_counts_updates_that_change_no_bit():
    one = stage(lr=1e-9)
    rows = batch()
    params = one.model.init(jax.random.PRNGKey(1), (4,), 3)
    _, losses = update(one, start(one, params), {}, rows, 0)
    grads = gradients(one, start(one, params), {}, rows, 0, updated=frozenset(), retention_state={})[1]
    lost = total = 0
    for path, leaf in params.items():
        step = -np.float32(1e-9) * np.asarray(grads[path])
        lost += int(np.sum((np.asarray(leaf) + step == np.asarray(leaf)) & (step != 0)))
        total += leaf.size
    np.testing.assert_allclose(losses.rounded, lost / total, rtol=1e-6)
    assert 0.3 < lost / total < 1  # biases are 0: any step changes them


# --- averaging, smoothing ----------------------------------------------------------------------------------------


def test_the_moving_average_is_what_is_kept(task):
    recipe, data, params = task
    decay, steps = 0.8, 7
    averaged = finetuned(replace(recipe, finetune_steps=steps, trainer=TrainerConfig(ema=decay)), data, params).params
    path = [finetuned(replace(recipe, finetune_steps=n), data, params).params for n in range(1, steps + 1)]
    for name, leaf in params.items():
        mean = np.asarray(leaf, np.float64)
        for one in path:
            mean = decay * mean + (1 - decay) * np.asarray(one[name], np.float64)
        np.testing.assert_allclose(averaged[name], mean, rtol=1e-5, atol=1e-6)


def test_smoothing_changes_the_loss_that_is_trained_and_not_the_one_that_is_reported():
    data = Digits().load()
    recipe = Recipe(model=Mlp((8,)), pretrain_steps=2, finetune_steps=3, log_every=1, strategy=Full())
    params = pretrained(recipe, data)
    plain, smooth = [], []
    finetuned(recipe, data, params, plain.append)
    finetuned(replace(recipe, trainer=TrainerConfig(label_smoothing=0.2)), data, params, smooth.append)
    assert plain[0]["val_loss"] == smooth[0]["val_loss"]
    assert plain[1]["loss"] != smooth[1]["loss"]


def test_smoothing_is_refused_where_there_are_no_classes(task):
    recipe, data, _ = task
    with pytest.raises(UserError, match=r"trainer.label_smoothing is 0.1 on a task of kind regression"):
        phases([replace(recipe, trainer=TrainerConfig(label_smoothing=0.1))], data)


# --- dropout -----------------------------------------------------------------------------------------------------


def test_dropout_depends_on_seed_and_update_and_not_on_how_often_one_looks(task):
    recipe, data, params = task
    recipe = replace(recipe, model=Mlp(dropout=0.5))
    ends = [
        finetuned(replace(recipe, log_every=log_every, seed=seed), data, params).params
        for log_every, seed in ((5, 0), (2, 0), (5, 1))
    ]
    for path in params:
        np.testing.assert_array_equal(ends[0][path], ends[1][path])
    assert not np.array_equal(ends[0]["Dense_0/kernel"], ends[2]["Dense_0/kernel"])


def test_a_rate_of_dropout_is_no_part_of_the_program():
    one = stage(model=Mlp((5,), dropout=0.3))
    assert "model.dropout" in traced(one)
    assert static_part(one) == static_part(stage(model=Mlp((5,), dropout=0.7)))
    assert static_part(one) != static_part(stage())
    params = one.model.init(jax.random.PRNGKey(0), (4,), 3)
    lost = update(bind(static_part(one), traced(one) | {"model.dropout": 1.0}), start(one, params), {}, batch(), 0)[1]
    # With everything dropped, the head's bias alone decides: it is 0, so all classes are equally likely.
    np.testing.assert_allclose(lost.loss, np.log(3), rtol=1e-6)


def test_adam_in_a_stage_with_dropout_is_reproducible():
    one = stage(model=Mlp((5,), dropout=0.3), optimizer=Adam(), objective=Regression(), outputs=1)
    rows = Split(batch().x, np.ones(12, np.float32))
    params = one.model.init(jax.random.PRNGKey(0), (4,), 1)
    first, second = (update(one, start(one, params), {}, rows, 4)[0] for _ in range(2))
    other, _ = update(one, start(one, params), {}, rows, 5)
    np.testing.assert_array_equal(first.params["Dense_0/kernel"], second.params["Dense_0/kernel"])
    assert not np.array_equal(first.params["Dense_0/kernel"], other.params["Dense_0/kernel"])
