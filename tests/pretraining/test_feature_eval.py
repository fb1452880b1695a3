"""What features are worth on the way and at the end, against other people's solvers; and the classifier beside."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from src.config.choices import CacheMode
from src.data.base import Transfer
from src.errors import UserError
from src.metrics.probes import PENALTIES
from src.models.base import ApplyOptions
from src.pretraining.augmentation import Augmentation
from src.pretraining.contrastive import Shape, Temperature
from src.pretraining.feature_eval import ImagePretraining
from src.pretraining.moco import Moco
from src.pretraining.simclr import MOMENTUM, VIEWS, VIEWS_KEY, OnlineProbe, Simclr, feature_count
from src.training.forward import forward, forward_features_and_logits
from src.training.stage_cache import StageCache
from src.training.step import start, step_keys, update
from src.training.vectorize import RunAxis
from src.types import Split
from tests.pretraining.test_contrastive_stages import CLASSES, SIDE, STATISTICS, Tiny, begun, recipe
from tests.runs import pretrain, pretrain_once, pretraining_stage, resolve_trainable, run

PLAIN = Augmentation(crop=(0.6, 1.0), flip=0.0, jitter=0.0, grey=0.0)
STEPS, EVERY = 5, 2
EMBEDDED = ("rankme", "lidar", "alignment", "uniformity")


def shades(rows, seed):
    """Images of which each class has its own corner, under noise that hides it from some."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, rows).astype(np.int32)
    x = rng.normal(110, 45, (rows, SIDE, SIDE, 1))
    for label in range(CLASSES):
        x[y == label, 2 * label : 2 * label + 2, :2] += 45
    return Split(np.clip(x, 0, 255).astype(np.uint8), y)


def shaded(val=True):
    sizes = {"train": 60, "test": 36} | ({"val": 24} if val else {})
    source = {name: shades(rows, seed) for seed, (name, rows) in enumerate(sizes.items())}
    target = {name: shades(12, 9) for name in ("train", "val", "test")}
    return Transfer("classification", source, target, CLASSES, CLASSES, new_head=False)


def watched(option=Simclr, **settings):
    own = {"augmentation": PLAIN, "eval_every": EVERY, "knn_k": 5, **settings}
    return replace(recipe(option, **own), pretrain_steps=STEPS)


@pytest.fixture(scope="module")
def data():
    return shaded()


@pytest.fixture(scope="module")
def looked(data):
    return pretrain([watched()], data)[0]


# --- on the way ------------------------------------------------------------------------------------------------------


def test_looks_lie_in_the_rows_of_their_steps_and_change_nothing(data, looked):
    (plain,) = pretrain([watched(eval_every=None)], data)
    for path, leaf in plain.params.items():
        np.testing.assert_array_equal(leaf, looked.params[path])
    assert plain.metrics == looked.metrics
    seen = {"knn", "probe", *EMBEDDED}
    assert [row["step"] for row in looked.rows if seen <= row.keys()] == [0, 2, 4, 5]
    assert [row["step"] for row in looked.rows if seen & row.keys()] == [0, 2, 4, 5]
    assert [row["step"] for row in looked.rows if "knn_pixels" in row] == [0]
    bare = [
        {name: value for name, value in row.items() if name.removesuffix("_pixels") not in seen} for row in looked.rows
    ]
    assert bare[1:] == plain.rows
    assert bare[0] == {"step": 0}


def features64(params, x):
    return np.asarray(Tiny().apply(params, jnp.asarray(x), CLASSES, ApplyOptions(stop=1)), np.float64)


def neighbours64(bank, labels, asked, k, temperature):
    bank, asked = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (bank, asked))
    said = []
    for similarity in asked @ bank.T:
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.bincount(labels[nearest], np.exp(similarity[nearest] / temperature), CLASSES)
        said.append(votes.argmax())
    return np.array(said)


def probe64(train, choose, test, penalties):
    """By scikit-learn, at ``C = 1 / (penalty * N)``; of equally good penalties the largest."""
    (x, y), centre = train, train[0].mean(0)
    scale = np.sqrt(np.mean((x - centre) ** 2))
    best = None
    for penalty in penalties:
        fit = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=50_000).fit((x - centre) / scale, y)
        chosen = fit.score((choose[0] - centre) / scale, choose[1])
        if best is None or chosen > best[0]:
            best = chosen, fit.score((test[0] - centre) / scale, test[1])
    return best[1]


def rank64(spectrum):
    shares = spectrum / spectrum.sum()
    return np.exp(-np.sum(shares * np.log(shares + 1e-300)))


def views64(stage, params, x):
    keys = jax.random.split(jax.random.PRNGKey(VIEWS_KEY), VIEWS)
    views = [stage.model.apply(params, PLAIN.augment(key, x), stage.outputs) for key in keys]
    return np.stack([np.asarray(view, np.float64) for view in views], axis=1)


def lidar64(z, delta=1e-4):
    """As the paper has it: covariances, and an inverse square root."""
    means = z.mean(axis=1)
    within = (z - means[:, None]).reshape(-1, z.shape[-1])
    sigma_w = within.T @ within / len(within) + delta * np.eye(z.shape[-1])
    sigma_b = np.cov(means.T, bias=True)
    values, vectors = np.linalg.eigh(sigma_w)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return rank64(np.clip(np.linalg.eigvalsh(root @ sigma_b @ root), 0, None))


def test_the_numbers_are_those_of_other_solvers_in_float64(data, looked):
    stage, row = pretraining_stage(watched(), data), looked.rows[-1]
    train, val, test = (data.source[name] for name in ("train", "val", "test"))
    bank, on_val, on_test = (features64(looked.params, part.x) for part in (train, val, test))
    own = watched().pretrain
    vote = (own.knn_k, own.knn_temperature)
    assert row["knn"] == pytest.approx(np.mean(neighbours64(bank, train.y, on_val, *vote) == val.y), abs=1e-6)
    hits = neighbours64(bank, train.y, on_test, *vote) == test.y
    assert looked.metrics["source_test_knn"] == pytest.approx(np.mean(hits), abs=1e-6)
    fitted = (bank, train.y)
    assert row["probe"] == pytest.approx(
        probe64(fitted, (on_val, val.y), (on_val, val.y), [own.probe_penalty]), abs=1e-6
    )
    expected = probe64(fitted, (on_val, val.y), (on_test, test.y), PENALTIES)
    assert looked.metrics["source_test_probe"] == pytest.approx(expected, abs=1e-6)
    pixels = [part.x.reshape(len(part.x), -1) / 255.0 for part in (train, val, test)]
    expected = probe64((pixels[0], train.y), (pixels[1], val.y), (pixels[2], test.y), PENALTIES)
    assert looked.metrics["source_test_probe_pixels"] == pytest.approx(expected, abs=1e-6)
    assert looked.metrics["source_test_probe_pixels"] > 1.2 / CLASSES  # there is something to be told
    z = views64(stage, looked.params, val.x)
    both = np.concatenate([z[:, 0], z[:, 1]])
    assert row["rankme"] == pytest.approx(rank64(np.linalg.svd(both, compute_uv=False)), rel=1e-4)
    assert row["lidar"] == pytest.approx(lidar64(z), rel=1e-3)
    a, b = (z[:, i] / np.linalg.norm(z[:, i], axis=1, keepdims=True) for i in (0, 1))
    assert row["alignment"] == pytest.approx(np.mean(np.sum((a - b) ** 2, axis=1)), rel=1e-4)
    assert looked.metrics["source_test_lidar"] == pytest.approx(
        lidar64(views64(stage, looked.params, test.x)), rel=1e-3
    )


def test_the_first_row_is_the_untrained_network_and_pixels(data, looked):
    own = watched()
    begin = pretraining_stage(own, data).model.init(
        jax.random.PRNGKey(own.seed), data.features, own.pretrain.proj_output_dim
    )
    train, val = data.source["train"], data.source["val"]
    vote = (own.pretrain.knn_k, own.pretrain.knn_temperature)
    said = neighbours64(features64(begin, train.x), train.y, features64(begin, val.x), *vote)
    assert looked.rows[0]["knn"] == pytest.approx(np.mean(said == val.y), abs=1e-6)
    bank, asked = (part.x.reshape(len(part.x), -1) / 255.0 for part in (train, val))
    assert looked.rows[0]["knn_pixels"] == pytest.approx(
        np.mean(neighbours64(bank, train.y, asked, *vote) == val.y), abs=1e-6
    )


def test_without_validation_rows_a_fifth_of_the_training_rows_is_asked_and_never_the_test_part():
    data = shaded(val=False)
    rng = np.random.default_rng(5)
    test = data.source["test"]
    wrong = Split(rng.permutation(test.x), rng.permutation(test.y))
    other = replace(data, source=data.source | {"test": wrong})
    (one,), (same) = pretrain([watched()], data), pretrain([watched()], other)[0]
    assert one.rows == same.rows
    assert one.metrics["source_test_knn"] != same.metrics["source_test_knn"]
    train = data.source["train"]
    held = np.arange(len(train.x)) % 5 == 4
    z, penalty = features64(one.params, train.x), watched().pretrain.probe_penalty
    asked = (z[held], train.y[held])
    assert one.rows[-1]["probe"] == pytest.approx(
        probe64((z[~held], train.y[~held]), asked, asked, [penalty]), abs=1e-6
    )
    expected = probe64((z, train.y), asked, (features64(one.params, test.x), test.y), [penalty])
    assert one.metrics["source_test_probe"] == pytest.approx(expected, abs=1e-6)


def test_lanes_have_their_own_numbers_and_floors_are_computed_once(data, looked, monkeypatch):
    measured = []
    scores = ImagePretraining.scores
    monkeypatch.setattr(
        ImagePretraining, "scores", lambda self, of, *rest: measured.append(of) or scores(self, of, *rest)
    )
    warm = watched(temperature=Temperature(Shape.constant, cold=1.5))
    recipes = [watched(), warm, replace(watched(), seed=1)]
    lanes = pretrain(recipes, data, RunAxis.map)
    assert lanes[0].rows == looked.rows
    assert lanes[0].metrics == looked.metrics
    assert lanes[2].rows == pretrain([recipes[2]], data)[0].rows
    assert len({lane.rows[-1]["lidar"] for lane in lanes}) == 3
    looks, ends, floors = 3 * 4, 3, 2 + 2  # of pixels twice (validation, test), of each seed's first network
    assert len(measured) == looks + ends + floors + (4 + 1 + 3)


def test_a_kept_stage_has_the_same_rows_and_is_kept_by_how_it_was_measured(data, looked, tmp_path, monkeypatch):
    cache = StageCache(tmp_path, CacheMode.use, 10**8, lambda text: None)
    (first,) = pretrain_once([watched()], data, cache)
    (other,) = pretrain_once([watched(knn_k=1)], data, cache)
    assert other.metrics["source_test_knn"] != first.metrics["source_test_knn"]
    monkeypatch.setattr(ImagePretraining, "scores", None)
    rows = []
    (again,) = pretrain_once([watched()], data, cache, log_fn=rows.append)
    assert again.rows == first.rows == looked.rows == rows
    assert again.metrics == looked.metrics


def test_a_run_that_diverges_is_looked_at_no_more(data):
    (end,) = pretrain([replace(watched(), lr_pre=np.inf)], data)
    assert end.diverged
    assert end.last_finite_step == 1
    assert "knn" in end.rows[0]
    assert all("knn" not in row for row in end.rows[1:])
    assert "source_test_knn" not in end.metrics


def test_the_record_tells_the_numbers_behind_the_warnings(data):
    outcome = run(watched(temperature=Temperature(Shape.constant, cold=3.0)), data, lambda stage, row: None)
    found = outcome.summary()["stability"]
    assert found["equal_loss"] == pytest.approx(np.log(2 * 8 - 1))
    assert found["even_spread"] == pytest.approx(1 / np.sqrt(5))
    assert found["first_epoch_grad_norm"] > 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            replace(watched(eval_every=3), log_every=2),
            r"pretrain.eval_every is 3; allowed: a multiple of log_every \(2\)",
        ),
        (
            watched(online_probe_lr=0.5),
            "pretrain.online_probe_lr is 0.5, and the data's source task is regression; allowed: null",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(own, message):
    data = shaded()
    with pytest.raises(UserError, match=message):
        resolve_trainable(own, replace(data, source_kind="regression") if own.pretrain.online_probe_lr else data)


# --- beside ----------------------------------------------------------------------------------------------------------


def test_a_pass_that_is_cut_below_the_head_is_the_whole_pass(data):
    stage, _, params = begun(watched(), data)
    x, how = jnp.asarray(data.source["train"].x[:8]), ApplyOptions(mutable=STATISTICS)
    (features, outputs), seen = forward_features_and_logits(stage, params, {}, x, how)
    whole, whole_seen = forward(stage, params, {}, x, how)
    np.testing.assert_array_equal(outputs, whole)
    np.testing.assert_array_equal(features, stage.model.apply(params, x, 5, how._replace(stop=1)))
    assert seen.keys() == whole_seen.keys()
    for path, leaf in whole_seen.items():
        np.testing.assert_array_equal(seen[path], leaf)


@pytest.mark.parametrize(
    ("option", "settings"), [(Simclr, {}), pytest.param(Moco, {"queue": 16, "splits": 2}, marks=pytest.mark.slow)]
)
def test_the_classifier_beside_does_not_touch_the_network(option, settings, data):
    without, beside = (
        pretrain([watched(option, eval_every=None, online_probe_lr=rate, **settings)], data)[0] for rate in (None, 0.7)
    )
    for path, leaf in without.params.items():
        np.testing.assert_allclose(beside.params[path], leaf, rtol=1e-5, atol=1e-7)
    told = {"online_loss", "online_accuracy"}
    assert all(told <= row.keys() for row in beside.rows)
    assert all(not told & row.keys() for row in without.rows)
    assert beside.rows[0]["online_loss"] == pytest.approx(np.log(CLASSES), rel=1e-5)  # it has seen nothing
    assert [row["loss"] for row in beside.rows] == pytest.approx([row["loss"] for row in without.rows], rel=1e-5)


def test_its_update_is_gradient_descent_with_momentum_on_the_features_of_both_views(data):
    own = watched(online_probe_lr=0.7)
    stage, state, params = begun(own, data)
    batch = Split(*(part[:8] for part in data.source["train"]))
    rng = np.random.default_rng(2)
    memory = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), state.memory)
    after, losses = update(stage, state._replace(memory=memory), {}, batch, 0)
    views = jnp.concatenate(PLAIN.two_views(step_keys(stage, 0).corruption, batch.x))
    h = np.asarray(stage.model.forward(params, views, 5, ApplyOptions(stop=1, mutable=STATISTICS))[0], np.float64)
    x, y = h - h.mean(0), np.tile(batch.y, 2)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    old = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), memory["online"])
    logits = x @ old["weights"]["kernel"] + old["weights"]["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert float(losses.signals["online_loss"]) == pytest.approx(-np.mean(np.log(p[np.arange(16), y])), rel=1e-4)
    assert float(losses.signals["online_accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == y))
    slope = x.T @ (p - np.eye(CLASSES)[y]) / 16
    velocity = MOMENTUM * old["velocity"]["kernel"] + slope
    new = after.memory["online"]
    np.testing.assert_allclose(new["velocity"]["kernel"], velocity, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        new["weights"]["kernel"], old["weights"]["kernel"] - 0.7 * velocity, rtol=1e-4, atol=1e-5
    )


def test_it_learns_what_features_tell():
    """Ten updates on features that are the labels."""
    online, y = OnlineProbe(1.0, CLASSES, CLASSES), np.arange(12) % CLASSES
    memory, x = online.init_memory(), jnp.asarray(np.eye(CLASSES)[y], jnp.float32)
    told = {}
    for _ in range(10):
        memory, told = online.update(memory, x, jnp.asarray(y))
    assert float(told["online_accuracy"]) == 1.0
    assert float(told["online_loss"]) < 0.2
    assert feature_count(Tiny(), (SIDE, SIDE, 1)) == 10


def test_rates_of_the_classifier_share_a_program(data):
    from src.config.hparams import static_part

    stages = [pretraining_stage(watched(online_probe_lr=rate), data) for rate in (0.5, 1.0)]
    assert static_part(stages[0]) == static_part(stages[1])
    assert start(stages[0], begun(watched(), data)[2]).memory["online"]["weights"]["kernel"].shape == (10, CLASSES)
