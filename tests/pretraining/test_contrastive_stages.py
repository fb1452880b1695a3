"""SimCLR and MoCo as stages of the engine: what an update computes, remembers and tells, and what is transferred."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from src.config.hparams import bind, hyperparameters, static_part
from src.data.base import Transfer
from src.errors import UserError
from src.metrics.embeddings import unit
from src.models.base import ApplyOptions, Model
from src.models.projected import Projected
from src.optim.optimizers import Sgd
from src.optim.schedules import Constant
from src.pretraining.augmentation import Augmentation
from src.pretraining.base import Checkpoint, Features
from src.pretraining.contrastive import Shape, Temperature, nt_xent
from src.pretraining.moco import Moco, MocoV1, MocoV2
from src.pretraining.simclr import Simclr, in_splits
from src.pretraining.text import CausalLm, Mlm
from src.recipe.spec import Recipe
from src.training.evaluation import evaluate
from src.training.stage import EVALUATION_KEY
from src.training.step import start, step_keys, update
from src.types import Split
from tests.runs import pretrain, pretraining_stage, resolve_trainable, run

RNG = np.random.default_rng(0)
ROWS, SIDE, CLASSES = 8, 6, 3
GREY = Augmentation(crop=(0.5, 1.0), jitter=0.5)


class Small(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        if start == 0:
            x = x.astype(jnp.float32) / (255.0 if x.dtype == jnp.uint8 else 1.0)
            x = nn.tanh(nn.BatchNorm(name="norm")(nn.Dense(10, name="below")(x.reshape(len(x), -1))))
        return x if stop == 1 else nn.Dense(self.outputs, name="head")(x)


@dataclass(frozen=True)
class Tiny(Model):
    """A dense layer with batch normalisation below the head, for images."""

    input_dtype = jnp.uint8

    def module(self, outputs):
        return Small(outputs)

    def groups(self):
        return (("below", "(below|norm)/.*"), ("head", "head/.*"))


def pictures(rows=ROWS):
    return Split(RNG.integers(0, 256, (rows, SIDE, SIDE, 1), np.uint8), RNG.integers(0, CLASSES, rows).astype(np.int32))


def transfer():
    source = {name: pictures(24) for name in ("train", "test")}
    target = {name: pictures(12) for name in ("train", "val", "test")}
    return Transfer("classification", source, target, CLASSES, CLASSES, new_head=False)


def recipe(option, **settings):
    given = {
        "optimizer": Sgd(),
        "schedule": Constant(),
        "augmentation": GREY,
        "proj_hidden_dim": 7,
        "proj_output_dim": 5,
    }
    given |= {"optimizer": Sgd(), "schedule": Constant()}
    pre = option(**{**given, **settings})
    steps = {"pretrain_steps": 3, "finetune_steps": 2, "batch_size": ROWS, "log_every": 1, "lr_pre": 0.1}
    return Recipe(model=Tiny(), pretrain=pre, **steps)


def begun(own, data):
    stage = pretraining_stage(own, data)
    stage = bind(static_part(stage), {name: jnp.asarray(value) for name, value in hyperparameters(stage).items()})
    params = stage.model.init(jax.random.PRNGKey(3), data.features, stage.outputs)
    return stage, start(stage, params), params


STATISTICS = frozenset({"norm/mean", "norm/var"})


def test_an_update_of_simclr_is_nt_xent_of_both_views_as_one_batch():
    data = transfer()
    stage, state, params = begun(recipe(Simclr, temperature=Temperature(Shape.cosine, 0.5, 0.1, 1.0)), data)
    batch = pictures()
    after, losses = update(stage, state, {}, batch, 1)
    key = step_keys(stage, 1).corruption
    views = jnp.concatenate(GREY.two_views(key, batch.x))
    z, seen = stage.model.forward(params, views, stage.outputs, ApplyOptions(mutable=STATISTICS))
    warm = 0.1 + 0.2 * (1 + np.cos(np.pi / 3))  # a third of the way
    assert float(losses.signals["temperature"]) == pytest.approx(warm, rel=1e-6)
    assert float(losses.loss) == pytest.approx(float(nt_xent(z[:ROWS], z[ROWS:], warm)), rel=1e-5)
    for path in STATISTICS:
        np.testing.assert_allclose(after.statistics[path], seen[path], rtol=1e-5)
    assert not np.allclose(after.params["below/kernel"], params["below/kernel"])
    assert after.memory == {}


def test_moco_moves_the_key_network_first_and_enqueues_last():
    data, momentum = transfer(), 0.9
    own = recipe(Moco, queue_size=16, bn_splits=1, momentum=momentum, temperature=Temperature(Shape.constant, cold=0.2))
    stage, state, params = begun(own, data)
    moved = {path: leaf + 0.5 for path, leaf in state.memory["network"].items()}
    state = state._replace(memory=state.memory | {"network": moved, "pointer": jnp.int32(8)})
    batch = pictures()
    after, losses = update(stage, state, {}, batch, 0)
    first, second = GREY.two_views(step_keys(stage, 0).corruption, batch.x)
    slow = {
        path: leaf if path in STATISTICS else momentum * leaf + (1 - momentum) * params[path]
        for path, leaf in moved.items()
    }
    how = ApplyOptions(mutable=STATISTICS)
    q, _ = stage.model.forward(params, first, stage.outputs, how)
    k, _ = stage.model.forward(slow, second, stage.outputs, how)  # one part: its order changes nothing
    queue = np.asarray(state.memory["queue"], np.float64)
    q, k = (np.asarray(unit(z), np.float64) for z in (q, k))
    logits = np.concatenate([np.sum(q * k, axis=1, keepdims=True), q @ queue], axis=1) / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])
    assert float(losses.loss) == pytest.approx(expected, rel=1e-5)
    for path in set(slow) - STATISTICS:
        np.testing.assert_allclose(after.memory["network"][path], slow[path], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after.memory["queue"][:, 8:], k.T, atol=1e-5)
    np.testing.assert_array_equal(after.memory["queue"][:, :8], queue[:, :8].astype(np.float32))
    assert int(after.memory["pointer"]) == 0
    assert after.params.keys() == {path for path in params if path not in STATISTICS}


def test_parts_of_a_batch_are_normalised_apart():
    model, x = Tiny(), jnp.asarray(pictures().x)
    params = model.init(jax.random.PRNGKey(0), x.shape[1:], 4)

    def run(x):
        return model.forward(params, x, 4, ApplyOptions(mutable=STATISTICS))

    outputs, seen = in_splits(run, x, 2)
    halves = [run(x[:4]), run(x[4:])]
    np.testing.assert_allclose(outputs, jnp.concatenate([half for half, _ in halves]), rtol=1e-5, atol=1e-6)
    assert not np.allclose(outputs, run(x)[0])
    for path in STATISTICS:
        np.testing.assert_allclose(seen[path], (halves[0][1][path] + halves[1][1][path]) / 2, rtol=1e-5)


def test_the_projection_head_is_two_layers_of_which_the_first_is_the_network_s_head():
    model, x = Projected(Tiny(), 7), jnp.asarray(pictures().x)
    params = model.init(jax.random.PRNGKey(0), x.shape[1:], 5)
    below = model.apply(params, x, 5, ApplyOptions(stop=1))
    h = np.asarray(below) @ np.asarray(params["head/kernel"]) + np.asarray(params["head/bias"])
    expected = np.maximum(h, 0) @ np.asarray(params["projection/kernel"])
    np.testing.assert_allclose(model.apply(params, x, 5), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.apply(params, below, 5, ApplyOptions(start=1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("option", "settings"), [(Simclr, {}), (Moco, {"queue_size": 16, "bn_splits": 2})])
def test_no_label_of_the_source_is_looked_at_and_the_projection_is_dropped(option, settings):
    data = transfer()
    own = recipe(option, **settings)
    rows = []
    outcome = run(own, data, lambda stage, row: rows.append((stage, row)))
    assert outcome.status == "completed"
    assert "projection/kernel" not in outcome.params
    assert outcome.params["head/kernel"].shape == (10, CLASSES)
    signals = {"temperature", "pos_similarity", "neg_similarity", "spread"}
    assert all(signals <= row.keys() for stage, row in rows if stage == "pretrain" and row["step"] > 0)
    assert {"source_test_loss", "source_after_loss", "source_test_pos_similarity"} <= outcome.metrics.keys()
    worth = {f"source_test_knn{of}" for of in ("", "_random", "_pixels")}
    assert all(0 <= outcome.metrics[name] <= 1 for name in worth)
    others = {name: Split(part.x, (part.y + 1) % CLASSES) for name, part in data.source.items()}
    (one,), (other,) = pretrain([own], data), pretrain([own], replace(data, source=others))
    assert all(np.array_equal(one.params[path], other.params[path]) for path in one.params)


def test_an_evaluation_compares_all_rows_at_the_last_temperature():
    data = transfer()
    stage, _, params = begun(recipe(Simclr, temperature=Temperature(Shape.cosine, 0.5, 0.1, 0.5)), data)
    part = data.source["test"]
    found = evaluate(stage, params, {}, {"test": part})
    a, b = (stage.model.apply(params, view, 5) for view in GREY.two_views(jax.random.PRNGKey(EVALUATION_KEY), part.x))
    assert float(found["test_loss"]) == pytest.approx(float(nt_xent(a, b, 0.1)), rel=1e-5)


def test_temperatures_share_a_program():
    data = transfer()
    stages = [pretraining_stage(recipe(Simclr, temperature=Temperature(cold=cold)), data) for cold in (0.1, 0.5)]
    assert static_part(stages[0]) == static_part(stages[1])
    momenta = [pretraining_stage(recipe(Moco, queue_size=16, bn_splits=1, momentum=m), data) for m in (0.9, 0.99)]
    assert static_part(momenta[0]) == static_part(momenta[1])


ROWS_OF_NUMBERS = Split(np.ones((12, 4), np.float32), np.arange(12, dtype=np.int32) % 2)


@pytest.mark.parametrize(
    ("own", "changes", "message"),
    [
        (recipe(Simclr, batch_size=1), {}, "batch_size is 1, which has no negatives"),
        (
            recipe(Moco, queue_size=20, bn_splits=1),
            {},
            r"pretrain.queue_size is 20; allowed: a multiple of batch_size \(8\)",
        ),
        (
            recipe(Moco, queue_size=16, bn_splits=3),
            {},
            r"pretrain.bn_splits is 3; allowed: a divisor of batch_size \(8\)",
        ),
        (
            recipe(Moco, queue_size=16),
            {},
            r"pretrain.bn_splits is 8; allowed: .* \(8\) that leaves at least two rows a part",
        ),
        (
            recipe(Moco, queue_size=64),
            {"batch_size": 32},
            "batch_size is 32, and there are 24 rows to fill it; allowed: at",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(own, changes, message):
    with pytest.raises(UserError, match=message):
        resolve_trainable(replace(own, **changes), transfer())


PUBLISHED = {  # of the authors' demonstration on CIFAR-10, and of both papers for ImageNet
    Moco: (4096, 0.99, 0.1, None, (0.08, 1.0), 0.8, 0.1, 0.0),
    MocoV1: (65536, 0.999, 0.07, None, (0.2, 1.0), 1.0, 0.4, 0.0),
    MocoV2: (65536, 0.999, 0.2, 2048, (0.2, 1.0), 0.8, 0.1, 0.5),
}


@pytest.mark.parametrize("option", PUBLISHED)
def test_presets_are_as_published(option):
    own = plain(option)
    view, warmth = own.augmentation, own.temperature
    found = (
        own.queue_size,
        own.momentum,
        warmth.at(7, 10),
        own.proj_hidden_dim,
        view.crop,
        view.jitter,
        view.hue,
        view.blur,
    )
    assert found == PUBLISHED[option]
    assert (own.proj_output_dim, own.bn_splits, view.flip, view.grey) == (128, 8, 0.5, 0.2)
    assert (view.brightness, view.contrast, view.saturation) == (0.4, 0.4, 0.4)
    assert isinstance(own, Moco)


def test_a_projection_of_one_layer_is_the_network_s_head():
    model, x = Projected(Tiny(), None), jnp.asarray(pictures().x)
    params = model.init(jax.random.PRNGKey(0), x.shape[1:], 5)
    assert params["head/kernel"].shape == (10, 5)
    np.testing.assert_array_equal(model.apply(params, x, 5), Tiny().apply(params, x, 5))
    assert "projection/kernel" not in params


def plain(option, **settings):
    return option(Sgd(), Constant(), **settings)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (plain(Simclr), r"pretrain=simclr learns from images, and the data is rows of shape \(4,\)"),
        (plain(Moco, queue_size=16), r"pretrain=moco learns from images, and the data is rows of shape \(4,\)"),
        (plain(Mlm), "pretrain=mlm learns masked words, and the data's source task is classification"),
        (plain(CausalLm), "pretrain=causal_lm learns causal words, and the data's source task is classification"),
        (plain(Checkpoint), "pretrain=checkpoint begins with files; allowed: with model.checkpoint"),
        (
            plain(Mlm, mask_replace_prob=0.9, random_replace_prob=0.2),
            r"pretrain.mask_replace_prob \+ pretrain.random_replace_prob is 1.1",
        ),
    ],
)
def test_data_of_another_kind_is_refused_before_training(option, message):
    parts = dict.fromkeys(("train", "val", "test"), ROWS_OF_NUMBERS)
    data = Transfer("classification", parts, parts, 2, 2, new_head=False)
    with pytest.raises(UserError, match=message):
        resolve_trainable(Recipe(pretrain=option, batch_size=8), data)


def first_pixels(x):
    return np.asarray(x).reshape(len(x), -1)[:, :4]


def test_features_that_tell_the_classes_apart_have_neighbours_that_do():
    """By hand: three classes far apart in what was learned, mixed up at first."""
    data = transfer()
    far = np.eye(CLASSES, dtype=np.float32)
    by_rows = {part.x.tobytes(): part.y for part in data.source.values()}
    features = Features(
        lambda x: far[by_rows[x.tobytes()]], lambda x: far[(by_rows[x.tobytes()] * 0)], first_pixels, {}
    )
    found = recipe(Simclr, knn_k=5).pretrain.evaluate_features(features, data)
    assert found["source_test_knn"] == 1.0
    assert found["source_test_knn_random"] < 1.0


def test_a_run_says_what_its_pre_training_warns_of():
    """Of similarities at a temperature of 3 little is learned, and the record says so."""
    own = recipe(Simclr, temperature=Temperature(Shape.constant, cold=3.0))
    outcome = run(own, transfer(), lambda stage, row: None)
    assert any("temperature ends at 3" in warning for warning in outcome.warnings)
    assert outcome.facts()["warnings"] == list(outcome.warnings)
