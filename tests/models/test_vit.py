"""ViT: published sizes, patches, passes in parts, and every way of fine-tuning."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.errors import UserError
from src.models.base import ApplyOptions
from src.models.vit import Size, Vit, VitPooling
from src.objectives.supervised import Classification
from src.optim.optimizers import Adam, Sgd
from src.optim.schedules import Constant
from src.recipe.spec import Recipe
from src.strategies.adapter import Adapter, AdapterKind
from src.strategies.bitfit import Bitfit
from src.strategies.discriminative import Discriminative
from src.strategies.frozen import Frozen
from src.strategies.ia3 import Ia3
from src.strategies.linear_probe import LinearProbe
from src.strategies.lora import Lora
from src.training.feature_cache import cache_features
from src.training.stage import Stage
from src.types import ignore
from tests.models.pictures import OUTPUTS, images, parameters, transfer, two_parts, two_updates
from tests.runs import resolve_trainable, run_finetuning, start_untrained

SMALL = Vit(width=16, layers=2, heads=2, intermediate=24, patch=4)
# Scores change by the same for every key where the keys' bias does, so their softmax and the loss do not.
INDIFFERENT = "attention/key/bias"


def shapes_of(model, features, outputs=10):
    return jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), features, outputs))


@pytest.mark.parametrize(("size", "count"), [(Size.tiny, 5_717_416), (Size.small, 22_050_664), (Size.base, 86_567_656)])
def test_as_many_parameters_as_published(size, count):
    """At 1000 outputs, patches of 16 and 224 pixels (timm's and torchvision's counts)."""
    shapes = shapes_of(Vit(size=size, patch=16), (224, 224, 3), 1000)
    assert sum(leaf.size for leaf in shapes.values()) == count


def test_what_each_group_returns():
    """Images need not be square where no size is set; above the last block there is a vector an image."""
    shapes, x = shapes_of(SMALL, (12, 8, 3)), jax.ShapeDtypeStruct((5, 12, 8, 3), np.uint8)
    assert shapes["embeddings/positions"].shape == (1, 7, 16)
    expected = [(12, 8, 3), (7, 16), (7, 16), (16,), (10,)]
    for stop, shape in enumerate(expected):
        found = jax.eval_shape(lambda p, x, stop=stop: SMALL.apply(p, x, 10, ApplyOptions(stop=stop)), shapes, x)
        assert found.shape == (5, *shape)


def test_groups_cover_every_leaf_once():
    assert [name for name, _ in SMALL.groups()] == ["embeddings", "block_0", "block_1", "head"]
    owners = {p: [n for n, e in SMALL.groups() if re.fullmatch(e, p)] for p in shapes_of(SMALL, (12, 12, 3))}
    assert all(len(found) == 1 for found in owners.values())
    assert owners["final_norm/scale"] == ["block_1"]
    assert owners["embeddings/class_token"] == ["embeddings"]
    assert {path for path, found in owners.items() if found == ["head"]} == {"head/kernel", "head/bias"}
    assert len(Vit(layers=11).groups()) == 13


def test_patches_are_embedded_line_by_line():
    """In float64: the class token first, then each patch times the kernel; positions are added to all."""
    params, x = parameters(SMALL), images()
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    pixels = (x / 255 - 0.5) / 0.25
    rows = [np.broadcast_to(p["embeddings/class_token"][0], (4, 1, 16))]
    for i in range(0, 12, 4):
        for j in range(0, 12, 4):
            patch = np.einsum("nhwc,hwcd->nd", pixels[:, i : i + 4, j : j + 4], p["embeddings/patch/kernel"])
            rows.append((patch + p["embeddings/patch/bias"])[:, None])
    expected = np.concatenate(rows, axis=1) + p["embeddings/positions"]
    np.testing.assert_allclose(SMALL.apply(params, x, OUTPUTS, ApplyOptions(stop=1)), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", VitPooling)
def test_two_parts_make_the_whole_pass(pooling):
    model = replace(SMALL, pooling=pooling, dropout=0.3, head_dropout=0.3)
    params = parameters(model)
    for training in (False, True):
        for _, (whole, _), (outputs, _) in two_parts(model, params, images(), training):
            np.testing.assert_allclose(outputs, whole, atol=1e-6)


def test_pooling():
    """The class token's normalised state, or the mean over all tokens' (its own among them)."""
    params, x = parameters(SMALL), images()
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    # What the last block returns is seen where it is not the last: in a network that is one block longer.
    own = np.asarray(replace(SMALL, layers=3).apply(params, x, OUTPUTS, ApplyOptions(stop=3)), np.float64)
    centred = own - own.mean(-1, keepdims=True)
    normed = centred / np.sqrt(own.var(-1, keepdims=True) + 1e-12) * p["final_norm/scale"] + p["final_norm/bias"]
    for pooling, expected in ((VitPooling.first, normed[:, 0]), (VitPooling.mean, normed.mean(1))):
        found = replace(SMALL, pooling=pooling).apply(params, x, OUTPUTS, ApplyOptions(stop=3))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_dropout_acts_in_training_alone():
    model = replace(SMALL, dropout=0.5)
    params = parameters(model)
    one, same, other = (
        model.apply(params, images(), OUTPUTS, ApplyOptions(key=jax.random.PRNGKey(k))) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(model.apply(params, images(), OUTPUTS), SMALL.apply(params, images(), OUTPUTS))
    assert model.stochastic
    assert replace(SMALL, head_dropout=0.5).stochastic
    assert not SMALL.stochastic


STRATEGIES = {
    "frozen": Frozen(),
    "linear_probe": LinearProbe(),
    "lora": Lora(rank=2, targets=(r"block_\d+/attention/(query|value)", "embeddings/patch")),
    "bitfit": Bitfit(),
    "ia3": Ia3(targets=(".*/attention/(key|value)",), feedforward=(".*/down",)),
    "adapter": Adapter(kind=AdapterKind.houlsby, size=3, train_norm=True),
    "discriminative": Discriminative(),
}
QUICK = ("lora", "discriminative")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
)
def test_two_updates_of_a_strategy(name):
    """What is to move moves, and nothing else."""
    moving, changed, _, after = two_updates(SMALL, STRATEGIES[name], transfer().target["train"])
    assert {path for path in moving ^ changed if not path.endswith(INDIFFERENT)} == set()
    assert any(path.startswith("head/") for path in changed)
    sides = {path for path in after if path.endswith("lora_a")}
    blocks = {f"block_{i}/attention/{part}/lora_a" for i in (0, 1) for part in ("query", "value")}
    assert sides == (blocks | {"embeddings/patch/lora_a"} if name == "lora" else set())


@pytest.mark.slow
def test_the_whole_recipe_on_bytes():
    recipe = Recipe(
        model=SMALL, strategy=Lora(rank=2, targets=STRATEGIES["lora"].targets[:1]), optimizer=Adam(),
        finetune_steps=3, lr_fine=0.01,
    )  # fmt: skip
    (pre,) = start_untrained([recipe], transfer())
    (outcome,) = run_finetuning([recipe], transfer(), [pre], [ignore])
    assert np.isfinite(outcome.objective)
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()
    for path, leaf in pre.params.items():
        assert np.array_equal(leaf, outcome.params[path]) == (not path.startswith("head/")), path


def test_a_probe_keeps_a_vector_an_image():
    stage = Stage(SMALL, OUTPUTS, Classification(), Frozen(), Sgd(), Constant(), lr=0.1, steps=1, seed=0)
    params, data = parameters(SMALL), {"train": transfer().target["train"]}
    (upper,), task = cache_features([stage], [params], data)
    assert task.splits["train"].x.shape == (8, 16)
    outputs = SMALL.apply(upper.params, task.splits["train"].x, OUTPUTS, ApplyOptions(start=3))
    np.testing.assert_allclose(outputs, SMALL.apply(params, data["train"].x, OUTPUTS), atol=1e-5)


def test_bfloat16_goes_all_the_way_up():
    params = parameters(SMALL)
    low = {path: leaf.astype(jnp.bfloat16) for path, leaf in params.items()}
    assert SMALL.apply(low, images(), OUTPUTS, ApplyOptions(stop=1)).dtype == jnp.bfloat16
    found = SMALL.apply(low, images(), OUTPUTS)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), SMALL.apply(params, images(), OUTPUTS), atol=0.2)


def test_sizes():
    """A name stands for four sizes, each of which may be another."""
    assert Vit().sizes[:5] == (192, 12, 3, 768, 4)
    assert Vit(size=Size.base, layers=2).sizes[:4] == (768, 2, 12, 3072)
    assert Vit(width=32, heads=4).sizes[:4] == (32, 12, 4, 128)
    with pytest.raises(UserError, match=r"model\.heads is 3; allowed: a divisor of the width, 32"):
        Vit(width=32).groups()


def test_rows_at_once_have_8192_tokens():
    assert Vit(patch=16).eval_batch_size((224, 224, 3)) == 8192 // 197
    assert SMALL.eval_batch_size((10, 16)) == 819
    assert SMALL.eval_batch_size((16,)) is None


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (SMALL, (64,), r"model=vit is given inputs of shape \(64,\) and type uint8; allowed: images of shape"),
        (SMALL, (12, 10, 3), r"model\.patch is 4, and images are 12 x 10 pixels; allowed: a divisor of both"),
        (replace(SMALL, image=16), (12, 12, 3), r"images are 12 x 12 pixels, and model\.image is 16; allowed: that"),
    ],
)
def test_images_that_do_not_fit_are_refused(model, shape, message):
    with pytest.raises(UserError, match=message):
        shapes_of(model, shape)


def test_texts_are_refused_before_anything_is_trained():
    parts = {
        name: part._replace(x=np.zeros((len(part.x), 3, 12), np.int32)) for name, part in transfer().target.items()
    }
    with pytest.raises(UserError, match="model=vit takes images, and the data is texts; allowed: model=bert, gpt2"):
        resolve_trainable(Recipe(model=SMALL), replace(transfer(), source=parts, target=parts))
