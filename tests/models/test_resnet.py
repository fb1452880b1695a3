"""ResNet: published sizes, passes in parts, statistics that rest, and every way of fine-tuning."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.checkpoints.huggingface import load_config
from src.errors import UserError
from src.models.base import ApplyOptions, is_statistic
from src.models.mlp import Mlp
from src.models.resnet import Resnet, Stem
from src.objectives.supervised import Classification
from src.optim.optimizers import Adam, Sgd
from src.optim.schedules import Constant
from src.recipe.resolve import resolve
from src.recipe.spec import Recipe
from src.strategies.adapter import Adapter, AdapterKind
from src.strategies.bitfit import Bitfit
from src.strategies.discriminative import Discriminative
from src.strategies.freeze_bottom import FreezeBottom
from src.strategies.frozen import Frozen
from src.strategies.ia3 import Ia3
from src.strategies.linear_probe import LinearProbe
from src.strategies.lora import Lora
from src.training.feature_cache import cache_features
from src.training.stage import Stage
from src.types import ignore
from tests.models.pictures import FIXTURES, OUTPUTS, images, parameters, transfer, two_parts, two_updates
from tests.runs import pretrain_once, resolve_trainable, run_finetuning

BASIC = load_config(Resnet(checkpoint=str(FIXTURES / "resnet_basic"), mean=0.5, std=0.25))  # four blocks
BOTTLENECK = load_config(Resnet(checkpoint=str(FIXTURES / "resnet_bottleneck")))


def shapes_of(model, features, outputs=10):
    return jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), features, outputs))


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_as_many_parameters_as_torchvision_s(depth, count):
    """At 1000 outputs with ImageNet's stem; batch statistics are not counted there."""
    shapes = shapes_of(Resnet(depth=depth, stem=Stem.imagenet), (224, 224, 3), 1000)
    assert sum(leaf.size for path, leaf in shapes.items() if not is_statistic(path)) == count
    blocks = {18: 8, 34: 16, 50: 16}[depth]
    assert len(Resnet(depth=depth).groups()) == blocks + 2


@pytest.mark.parametrize(
    ("model", "side", "expected"),
    [
        (Resnet(width=4), 32, [(32, 32, 4)] * 3 + [(16, 16, 8)] * 2 + [(8, 8, 16)] * 2 + [(4, 4, 32), (32,)]),
        (Resnet(width=4, stem=Stem.imagenet), 50, [(13, 13, 4)] * 3 + [(7, 7, 8)] * 2 + [(4, 4, 16)] * 2
         + [(2, 2, 32), (32,)]),
        (BOTTLENECK, 24, [(6, 6, 8), (6, 6, 16), (6, 6, 16), (32,)]),
    ],
)  # fmt: skip
def test_what_each_group_returns(model, side, expected):
    """Sides as PyTorch has them: (s - 1) // 2 + 1 at each stride of 2; above the last block, a vector an image."""
    shapes, x = shapes_of(model, (side, side, 3)), jax.ShapeDtypeStruct((5, side, side, 3), np.uint8)
    for stop in range(len(model.groups()) + 1):
        found = jax.eval_shape(lambda p, x, stop=stop: model.apply(p, x, 10, ApplyOptions(stop=stop)), shapes, x)
        assert found.shape == (5, *[(side, side, 3), *expected, (10,)][stop])


@pytest.mark.parametrize("model", [Resnet(), Resnet(depth=50), BASIC])
def test_groups_cover_every_leaf_once(model):
    names = [name for name, _ in model.groups()]
    assert names == ["stem", *(f"block_{i}" for i in range(len(names) - 2)), "head"]
    shapes = shapes_of(model, (32, 32, 3))
    owners = {path: [name for name, e in model.groups() if re.fullmatch(e, path)] for path in shapes}
    assert all(len(found) == 1 for found in owners.values())
    assert {found[0] for found in owners.values()} == set(names)
    assert {path for path in shapes if path.startswith("head/")} == {"head/kernel", "head/bias"}
    modules = {path.rpartition("/")[0] for path in shapes if re.fullmatch(r"block_\d+/norm_\d/scale", path)}
    assert {point for block in model.adapter_points() for point in block} == modules


@pytest.mark.parametrize("training", [False, True])
def test_two_parts_make_the_whole_pass(training):
    model = replace(BASIC, head_dropout=0.5)
    params = parameters(model)
    for _, (whole, changed), (outputs, seen) in two_parts(model, params, images(), training):
        np.testing.assert_array_equal(outputs, whole)
        assert seen.keys() == changed.keys()
        for path, value in changed.items():
            np.testing.assert_array_equal(seen[path], value)


def test_the_small_stem_is_a_convolution_of_three():
    """In float64: bytes over 255, standardised, padded with zeros where the image ends, normalised, cut at 0."""
    model = Resnet(width=4, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    params, x = parameters(model, 6), images(2, 6)
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    pixels = np.pad((x / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3], ((0, 0), (1, 1), (1, 1), (0, 0)))
    maps = np.zeros((2, 6, 6, 4))
    for i in range(3):
        for j in range(3):
            maps += pixels[:, i : i + 6, j : j + 6] @ p["stem/conv/kernel"][i, j]
    maps = (maps - p["stem/norm/mean"]) / np.sqrt(p["stem/norm/var"] + 1e-5) * p["stem/norm/scale"]
    expected = np.maximum(maps + p["stem/norm/bias"], 0)
    np.testing.assert_allclose(model.apply(params, x, OUTPUTS, ApplyOptions(stop=1)), expected, atol=2e-5)


def started(model):
    return model.init(jax.random.PRNGKey(0), (8, 8, 3), OUTPUTS)


def test_blocks_that_begin_as_their_shortcuts():
    """With the last scale at zero a block without a projection is the identity on what is not negative."""
    model = replace(BASIC, zero_init_residual=True)
    params = started(model)
    assert {path for path, leaf in params.items() if path.endswith("scale") and not np.any(leaf)} == {
        f"block_{i}/norm_1/scale" for i in range(4)
    }
    low, high = (model.apply(params, images(2), OUTPUTS, ApplyOptions(stop=stop)) for stop in (1, 2))
    np.testing.assert_array_equal(low, high)
    assert np.any(low)


def test_initial_values():
    """Kernels as He et al. 2015 (arXiv 1502.01852), variance 2 / (the window's places * outputs); scales are 1."""
    params = started(BASIC)
    assert all(np.all(leaf == 1) for path, leaf in params.items() if path.endswith("scale"))
    np.testing.assert_allclose(np.std(params["block_3/conv_1/kernel"]), np.sqrt(2 / (9 * 24)), rtol=0.05)
    np.testing.assert_allclose(np.std(params["block_3/conv_0/kernel"]), np.sqrt(2 / (9 * 24)), rtol=0.05)


STRATEGIES = {
    "frozen": Frozen(),
    "linear_probe": LinearProbe(),
    "freeze_bottom": FreezeBottom(blocks=2),
    "lora": Lora(rank=2, targets=(r"block_\d+/conv_0", r"block_\d+/shortcut", "stem")),
    "bitfit": Bitfit(),
    "ia3": Ia3(targets=(r"block_\d+/conv_\d",)),
    "adapter": Adapter(kind=AdapterKind.houlsby, size=3, train_norm=True),
    "discriminative": Discriminative(),
}
QUICK = ("freeze_bottom", "lora")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
)
def test_two_updates_of_a_strategy(name):
    """What is to move moves, and nothing else; statistics of what rests keep their bits."""
    moving, changed, before, after = two_updates(BASIC, STRATEGIES[name], transfer().target["train"])
    assert moving == changed
    assert any(path.startswith("head/") for path in changed)
    statistics = set(filter(is_statistic, before))
    assert statistics
    resting = {"freeze_bottom": ("stem/", "block_0/", "block_1/"), "discriminative": ()}.get(name, ("stem/", "block_"))
    assert statistics - changed == {path for path in statistics if path.startswith(resting)}
    for path in statistics - changed:
        np.testing.assert_array_equal(before[path], after[path])
    beside = {path for path in after if path.endswith("lora_a")}
    assert (name == "lora") == ("block_1/conv_0/lora_a" in beside)


@pytest.mark.slow
def test_the_whole_recipe_on_bytes():
    """Pre-trained, fine-tuned on kept features with frozen statistics, evaluated."""
    data = transfer()
    recipe = Recipe(
        model=BASIC, strategy=FreezeBottom(blocks=2), optimizer=Adam(), pretrain_steps=2, finetune_steps=3, lr_fine=0.01
    )
    (pre,) = pretrain_once([recipe], data, None)
    (outcome,) = run_finetuning([recipe], data, [pre], [ignore])
    assert np.isfinite(outcome.objective)
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()
    for path, leaf in pre.params.items():
        rests = path.startswith(("stem/", "block_0/", "block_1/"))
        assert np.array_equal(leaf, outcome.params[path]) == rests, path


def test_a_probe_keeps_a_vector_an_image():
    stage = Stage(BASIC, OUTPUTS, Classification(), Frozen(), Sgd(), Constant(), lr=0.1, steps=1, seed=0)
    params, data = parameters(BASIC), {"train": transfer().target["train"]}
    (upper,), task = cache_features([stage], [params], data)
    assert task.splits["train"].x.shape == (8, 24)
    outputs = BASIC.apply(upper.params, task.splits["train"].x, OUTPUTS, ApplyOptions(start=5))
    np.testing.assert_allclose(outputs, BASIC.apply(params, data["train"].x, OUTPUTS), atol=1e-5)


def test_bfloat16_goes_all_the_way_up():
    params = parameters(BASIC)
    low = {path: leaf if is_statistic(path) else leaf.astype(jnp.bfloat16) for path, leaf in params.items()}
    for x in (images(), jnp.asarray(images() / 255, jnp.bfloat16)):
        assert BASIC.apply(low, x, OUTPUTS, ApplyOptions(stop=1)).dtype == jnp.bfloat16
        found = BASIC.apply(low, x, OUTPUTS)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), BASIC.apply(params, images(), OUTPUTS), atol=0.2)


def test_dropout_acts_on_the_head_s_inputs_in_training_alone():
    model = replace(BASIC, head_dropout=1.0)
    params = parameters(model)
    dropped = model.apply(params, images(), OUTPUTS, ApplyOptions(key=jax.random.PRNGKey(0)))
    np.testing.assert_array_equal(dropped, np.broadcast_to(params["head/bias"], (4, OUTPUTS)))
    np.testing.assert_array_equal(model.apply(params, images(), OUTPUTS), BASIC.apply(params, images(), OUTPUTS))
    assert model.stochastic
    assert not BASIC.stochastic


def test_rows_at_once_keep_the_largest_map_at_64_megabytes():
    for model, features, values in (
        (Resnet(), (32, 32, 3), 32 * 32 * 64),
        (Resnet(depth=50), (32, 32, 3), 32 * 32 * 256),
        (Resnet(stem=Stem.imagenet), (224, 224, 3), 112 * 112 * 64),
        (Resnet(), (16, 16, 128), 16 * 16 * 128),
    ):
        assert model.eval_batch_size(features) == 2**24 // values
    assert Resnet().eval_batch_size((4096, 4096, 3)) == 1
    assert Resnet().eval_batch_size((512,)) is None


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "given"),
    [((64,), np.float32, "numbers"), ((3, 12), np.int32, "texts"), ((64,), np.uint8, "images")],
)
def test_what_is_no_image_is_refused(shape, dtype, given):
    """By the recipe, before anything is trained, and by the network itself."""
    x = np.zeros((4, *shape), dtype)
    with pytest.raises(UserError, match=r"model=resnet is given inputs of shape .*; allowed: images of shape"):
        jax.eval_shape(lambda: BASIC.apply(shapes_of(BASIC, (12, 12, 3)), x, OUTPUTS))
    parts = dict.fromkeys(("train", "val", "test"), transfer().target["train"]._replace(x=x))
    data = replace(transfer(), source=parts, target=parts)
    with pytest.raises(UserError, match="model=resnet ") as found:
        resolve(Recipe(model=BASIC), data)
    if given != "images":
        assert f"model=resnet takes images, and the data is {given}; allowed: model=" in str(found.value)
        assert "resnet" not in str(found.value).partition("allowed")[2]


def test_images_are_for_networks_of_images():
    with pytest.raises(UserError, match="model=mlp takes numbers, and the data is images; allowed: model=resnet, vit"):
        resolve_trainable(Recipe(model=Mlp()), transfer())
    assert resolve(Recipe(model=BASIC), transfer()).trainable.trainable == 24 * 3 + 3


def test_one_number_a_channel():
    with pytest.raises(UserError, match=r"model\.std has 2 numbers; allowed: one, or 3, one a channel"):
        shapes_of(Resnet(width=2, std=(1.0, 2.0)), (8, 8, 3))
