"""Masked autoencoders: against a network of its own in float64, and as a stage that every strategy follows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from src.config.choices import CacheMode
from src.config.hparams import bind, hyperparameters, static_part
from src.data.base import Transfer
from src.errors import UserError
from src.models.autoencoder import MASKED_PIXEL, patchify, sincos_positions, unpatchify
from src.models.base import ApplyOptions
from src.models.mlp import Mlp
from src.models.resnet import Resnet
from src.models.vit import Vit
from src.optim.optimizers import Sgd
from src.optim.schedules import Constant
from src.pretraining.augmentation import Augmentation
from src.pretraining.mae import Mae, MaeObjective, random_mask
from src.recipe.spec import Recipe
from src.strategies.frozen import LinearProbe
from src.strategies.full import Full
from src.strategies.lora import Lora
from src.training.evaluation import EVALUATION_KEY, evaluate
from src.training.stage_cache import StageCache
from src.training.step import start, step_keys, update
from src.types import Split
from tests.runs import pretraining_stage, resolve_trainable, run

RNG = np.random.default_rng(0)
HEIGHT, WIDTH, PATCH, CLASSES = 6, 4, 2, 3  # two columns of three patches
SMALL = Vit(width=8, layers=1, heads=2, intermediate=12, patch=PATCH)
VIEW = Augmentation(crop=(0.5, 1.0), jitter=0.0, grey=0.0)
KEY = jax.random.PRNGKey(4)


def pictures(rows=5):
    x = RNG.integers(0, 256, (rows, HEIGHT, WIDTH, 3), np.uint8)
    return Split(x, RNG.integers(0, CLASSES, rows).astype(np.int32))


def transfer():
    source = {"train": pictures(24), "test": pictures(9)}
    target = {name: pictures(8) for name in ("train", "val", "test")}
    return Transfer("classification", source, target, CLASSES, CLASSES, new_head=False)


def recipe(**settings):
    decoder = {"decoder_width": 12, "decoder_layers": 1, "decoder_heads": 3}
    given = {"optimizer": Sgd(), "schedule": Constant(), "augmentation": VIEW, "mask_ratio": 0.66, **decoder}
    steps = {"pretrain_steps": 3, "finetune_steps": 2, "batch_size": 8, "log_every": 1, "lr_pre": 0.1}
    return Recipe(model=SMALL, pretrain=Mae(**{**given, **settings}), **steps)


def begun(own, data):
    """Return the stage, its state before the first update, and parameters none of which is zero or one."""
    stage = pretraining_stage(own, data)
    stage = bind(static_part(stage), {name: jnp.asarray(value) for name, value in hyperparameters(stage).items()})
    shapes = jax.eval_shape(lambda: stage.model.init(KEY, data.features, stage.outputs))
    rng = np.random.default_rng(1)
    params = {path: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32) for path, leaf in shapes.items()}
    return stage, start(stage, params), params


# --- the same in float64, an image at a time -------------------------------------------------------------------------


def quickly(objective, x):
    """Return what is shown of images under the key, and what is asked."""
    return jax.jit(lambda x: objective.corrupt(KEY, x, None))(x)


def cut(image):
    """Return patches line by line."""
    corners = [(i, j) for i in range(0, HEIGHT, PATCH) for j in range(0, WIDTH, PATCH)]
    return np.array([image[i : i + PATCH, j : j + PATCH].reshape(-1) for i, j in corners])


def affine(p, name, h):
    return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p, name, h):
    away = h - h.mean(axis=-1, keepdims=True)
    return away / np.sqrt((away**2).mean(axis=-1, keepdims=True) + 1e-12) * p[f"{name}/scale"] + p[f"{name}/bias"]


def block(p, name, h, heads, ignored):
    """Return new hidden states of (L, E); no token looks at the ignored ones."""
    x = norm(p, f"{name}/attention_norm", h)
    parts = [np.split(affine(p, f"{name}/attention/{part}", x), heads, axis=1) for part in ("query", "key", "value")]
    gathered = []
    for q, k, v in zip(*parts, strict=True):
        shares = np.where(ignored, 0.0, np.exp(q @ k.T / np.sqrt(q.shape[1])))
        gathered.append(shares / shares.sum(axis=1, keepdims=True) @ v)
    h = h + affine(p, f"{name}/attention/output", np.concatenate(gathered, axis=1))
    inner = affine(p, f"{name}/up", norm(p, f"{name}/mlp_norm", h))
    return h + affine(p, f"{name}/down", inner * 0.5 * (1 + erf(inner / np.sqrt(2))))


def encoded(p, image, hidden):
    """Return what the encoder says of the class token and of all patches; none looks at a hidden one."""
    pixels = cut((image - 0.5) / 0.25)
    kernel = p["embeddings/patch/kernel"].reshape(-1, 8)
    h = np.concatenate([p["embeddings/class_token"][0], pixels @ kernel + p["embeddings/patch/bias"]])
    h = block(p, "block_0", h + p["embeddings/positions"][0], 2, np.concatenate([[False], hidden]))
    return norm(p, "final_norm", h)


def decoded(p, h, hidden):
    """Return the pixels that the decoder says of the hidden patches."""
    own = {path.removeprefix("decoder/"): leaf for path, leaf in p.items()}
    h = affine(own, "embed", h)
    h[1:][hidden] = own["mask_token"][0]
    h[1:] += waves()
    h = block(own, "block_0", h, 3, np.zeros(len(h), bool))
    return affine(own, "pixels", norm(own, "norm", h))[1:][hidden]


def waves(rows=3, columns=2, width=12):
    """Return the positions, number by number."""
    found = np.empty((rows * columns, width))
    for place in range(rows * columns):
        for number in range(width):
            half, within = divmod(number, width // 2)
            shape, i = divmod(within, width // 4)
            angle = (place // columns, place % columns)[half] / 10000 ** (i / (width // 4))
            found[place, number] = (np.sin, np.cos)[shape](angle)
    return found


def expected_loss(params, images, hidden, normalize):
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    errors = []
    for image, own in zip(np.asarray(images, np.float64), np.asarray(hidden), strict=True):
        target = cut(image)[own]
        if normalize:
            target = (target - target.mean(axis=1, keepdims=True)) / np.sqrt(target.var(axis=1, keepdims=True) + 1e-6)
        errors.append(((decoded(p, encoded(p, image, own), own) - target) ** 2).mean(axis=1))
    return np.mean(errors)


# --- what is computed ------------------------------------------------------------------------------------------------


def test_patches_lie_line_by_line_and_go_back():
    images = jnp.asarray(RNG.random((3, HEIGHT, WIDTH, 3), np.float32))
    patches = patchify(images, PATCH)
    np.testing.assert_array_equal(patches, [cut(image) for image in np.asarray(images)])
    np.testing.assert_array_equal(unpatchify(patches, images.shape, PATCH), images)


def test_positions_are_waves_of_the_row_and_of_the_column():
    np.testing.assert_allclose(sincos_positions(3, 2, 12), waves(), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_update_and_an_evaluation_are_the_mean_error_of_hidden_patches(normalize):
    data = transfer()
    stage, state, params = begun(recipe(norm_pix_loss=normalize), data)
    batch = pictures(8)
    step = jax.jit(lambda batch: update(stage, state, {}, batch, 1))
    after, losses = step(batch)
    viewing, hiding = jax.random.split(step_keys(stage, 1).corruption)
    expected = expected_loss(params, VIEW.augment(viewing, batch.x), random_mask(hiding, 8, 6, 2), normalize)
    assert float(losses.loss) == pytest.approx(expected, rel=1e-5)
    still = {path for path in params if np.array_equal(after.params[path], params[path])}
    assert all(path.endswith("key/bias") for path in still)  # which shifts all scores of a row alike
    unlabelled, _ = step(Split(batch.x, batch.y * 0))
    assert all(np.array_equal(unlabelled.params[path], after.params[path]) for path in params)
    found = jax.jit(lambda params: evaluate(stage, params, {}, {"test": batch}))(params)
    expected = expected_loss(params, batch.x / 255, random_mask(jax.random.PRNGKey(EVALUATION_KEY), 8, 6, 2), normalize)
    assert float(found["test_loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_encoder_sees_what_is_not_hidden_and_nothing_else():
    """It agrees with attention over all patches in which no token looks at a hidden one."""
    stage, _, params = begun(recipe(), transfer())
    x = pictures().x
    shown, _ = quickly(stage.objective, x)
    hidden = np.asarray(random_mask(KEY, len(x), 6, 2))
    seen = np.argsort(hidden, axis=1, kind="stable")[:, :2]
    h = jax.jit(lambda x: SMALL.apply(params, x, 1, ApplyOptions(stop=2, positions=seen)))(shown)
    assert h.shape == (len(x), 3, 8)
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    for own, image, out in zip(h, x / 255, hidden, strict=True):
        np.testing.assert_allclose(own, encoded(p, image, out)[np.concatenate([[True], ~out])], atol=2e-5)


def test_hidden_pixels_do_not_reach_the_encoder_and_seen_ones_are_no_target():
    objective = MaeObjective(VIEW, PATCH, 2, norm_pix_loss=False)
    x = pictures().x
    hidden = np.asarray(random_mask(KEY, len(x), 6, 2))
    shown, targets = quickly(objective, x)
    pixels = np.asarray(unpatchify(jnp.repeat(hidden[..., None], 12, axis=-1), x.shape, PATCH))
    assert np.all(np.asarray(shown)[pixels] == MASKED_PIXEL)
    np.testing.assert_allclose(np.asarray(shown)[~pixels], x[~pixels] / 255, rtol=1e-6)
    other_hidden, changed = quickly(objective, np.where(pixels, 255 - x, x))
    np.testing.assert_array_equal(other_hidden, shown)
    assert not np.any(np.asarray(changed) == np.asarray(targets))
    other_seen, same = quickly(objective, np.where(pixels, x, 255 - x))
    np.testing.assert_array_equal(same, targets)
    assert not np.array_equal(other_seen, shown)


@pytest.mark.parametrize(("rate", "patches", "seen"), [(0.75, 16, 4), (0.75, 49, 12), (0.5, 9, 4), (0.9, 196, 20)])
def test_every_image_hides_as_many_patches_and_others(rate, patches, seen):
    assert recipe(mask_ratio=rate).pretrain.num_visible(patches) == seen
    hidden = np.asarray(random_mask(KEY, 400, patches, seen))
    assert np.all(hidden.sum(axis=1) == patches - seen)
    share = 1 - seen / patches
    assert np.all(np.abs(hidden.mean(axis=0) - share) < 5 * np.sqrt(share * (1 - share) / 400))
    assert len({row.tobytes() for row in hidden}) > 60
    np.testing.assert_array_equal(random_mask(KEY, 7, patches, seen), hidden[:7])


# --- as a stage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The data, and a folder that pre-trainings are kept in."""
    return transfer(), tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "strategy", [LinearProbe(), *(pytest.param(moving, marks=pytest.mark.slow) for moving in (Lora(rank=2), Full()))]
)
def test_strategies_share_one_pre_training_and_the_decoder_is_dropped(kept, strategy):
    data, folder = kept
    rows = []
    cache = StageCache(folder, CacheMode.use, 10**8, pytest.fail)
    outcome = run(replace(recipe(), strategy=strategy), data, lambda stage, row: rows.append((stage, row)), cache)
    assert outcome.status == "completed"
    assert not any(path.startswith("decoder") for path in outcome.params)
    assert outcome.params["head/kernel"].shape == (8, CLASSES)
    worth = {f"source_test_knn{of}" for of in ("", "_random", "_pixels")}
    assert all(0 <= outcome.metrics[name] <= 1 for name in worth)
    assert len([row for stage, row in rows if stage == "pretrain" and "loss" in row]) == 3
    before, after = outcome.metrics["source_test_loss"], outcome.metrics["source_after_loss"]
    assert (before == after) == isinstance(strategy, LinearProbe)  # which moves the new head alone
    assert len(list(folder.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (replace(recipe(), model=Resnet(width=4)), "pretrain=mae masks patches, and model=resnet has none; allowed: m"),
        (
            recipe(mask_ratio=0.05),
            "pretrain.mask_ratio is 0.05, which masks 0 of an image's 6 patches; allowed: a ratio that masks",
        ),
        (
            recipe(mask_ratio=0.95),
            "pretrain.mask_ratio is 0.95, which masks 6 of an image's 6 patches; allowed: a ratio that masks",
        ),
        (recipe(decoder_width=10), r"pretrain.decoder_width is 10; allowed: a multiple of 4 and of pretrain.decoder_h"),
        (recipe(decoder_heads=5), r"pretrain.decoder_width is 12; allowed: .* of pretrain.decoder_heads \(5\)"),
        (replace(recipe(), model=replace(SMALL, patch=4)), "model.patch is 4, and images are 6 x 4 pixels; allowed: a"),
    ],
)
def test_what_cannot_be_hidden_is_refused_before_training(own, message):
    with pytest.raises(UserError, match=message):
        resolve_trainable(own, transfer())


def test_rows_of_numbers_have_no_patches():
    parts = dict.fromkeys(("train", "val", "test"), Split(np.ones((12, 4), np.float32), np.arange(12) % 2))
    data = Transfer("classification", parts, parts, 2, 2, new_head=False)
    with pytest.raises(UserError, match=r"pretrain=mae learns from images, and the data is rows of shape \(4,\)"):
        resolve_trainable(replace(recipe(), model=Mlp()), data)
