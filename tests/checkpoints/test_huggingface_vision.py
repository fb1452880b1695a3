"""Checkpoints of Hugging Face's ResNet and ViT: the logits of its classes, and the messages about what does not fit."""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from src.checkpoints import huggingface
from src.checkpoints.huggingface import fingerprint, load_config, read_checkpoint, read_initial
from src.checkpoints.huggingface_export import export
from src.checkpoints.tensor_files import to_our_axes, to_torch_axes
from src.errors import UserError
from src.finished.conversion import checkpoint_model
from src.models.base import ApplyOptions
from src.models.resnet import Resnet, ResNetConfig, Stem
from src.models.vit import Size, Vit, VitPooling
from src.training import feature_cache as features
from tests.checkpoints.damage import change, configure

FIXTURES = Path(__file__).parent / "fixtures" / "vision"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
NAMES = ("resnet_basic", "resnet_bottleneck", "vit")
OUTPUTS = 3
EVERY = pytest.mark.parametrize("name", NAMES)


def network(folder, **settings):
    return load_config((Vit if folder.name == "vit" else Resnet)(checkpoint=str(folder), **settings))


@EVERY
def test_logits_are_those_of_hugging_face(name):
    """Images of uneven sides, so that padding and strides show; from bytes, and from numbers between 0 and 1."""
    model, images = network(FIXTURES / name), EXPECTED[f"{name}/images"]
    params = read_checkpoint(model, OUTPUTS)
    apply = jax.jit(lambda x: model.apply(params, x, OUTPUTS))
    expected = EXPECTED[f"{name}/logits"]
    assert np.ptp(expected, axis=0).max() > 0.2  # from image to image
    assert images.dtype == np.uint8
    np.testing.assert_allclose(apply(images), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(apply(images.astype(np.float32) / 255), expected, atol=1e-5, rtol=0)


@EVERY
def test_outputs_of_the_first_group(name):
    model = network(FIXTURES / name)
    found = model.apply(read_checkpoint(model), EXPECTED[f"{name}/images"], OUTPUTS, ApplyOptions(stop=1))
    expected = EXPECTED[f"{name}/stem"]
    expected = expected if name == "vit" else expected.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@EVERY
def test_every_parameter_is_read_and_has_its_shape(name):
    model = network(FIXTURES / name)
    shape = EXPECTED[f"{name}/images"].shape[1:]
    initial = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), shape, OUTPUTS))
    read = read_checkpoint(model, OUTPUTS)
    assert {path: leaf.shape for path, leaf in read.items()} == {path: leaf.shape for path, leaf in initial.items()}
    assert {leaf.dtype.name for leaf in read.values()} == {"float32"}


def test_kernels_are_transposed():
    """(out, in, height, width) to (height, width, in, out), and (out, in) to (in, out); back again as well."""
    tensors = load_file(FIXTURES / "resnet_basic" / "model.safetensors")
    params = read_checkpoint(network(FIXTURES / "resnet_basic"), OUTPUTS)
    theirs = tensors["resnet.encoder.stages.1.layers.1.layer.0.convolution.weight"]
    ours = params["block_2/conv_0/kernel"]
    for o, i, h, w in ((3, 1, 0, 2), (15, 15, 2, 1)):
        assert ours[h, w, i, o] == theirs[o, i, h, w]
    np.testing.assert_array_equal(params["head/kernel"], tensors["classifier.1.weight"].T)
    for array in (theirs, tensors["classifier.1.weight"]):
        turned = array.transpose(to_our_axes(array.ndim))
        np.testing.assert_array_equal(turned.transpose(to_torch_axes(array.ndim)), array)


def test_sizes_come_from_the_checkpoint_and_may_not_contradict_it():
    basic = network(FIXTURES / "resnet_basic")
    assert basic.sizes == ResNetConfig(8, (8, 16, 24), (1, 2, 1), "basic", 3, "imagenet")
    assert network(FIXTURES / "resnet_bottleneck").sizes.blocks == [(4, 16, 1), (4, 16, 1), (8, 32, 2)]
    assert network(FIXTURES / "vit").sizes == (16, 2, 4, 24, 4, 12, 3, 1e-12)
    assert network(FIXTURES / "resnet_basic", width=8, stem=Stem.imagenet).sizes == basic.sizes
    assert network(FIXTURES / "vit", width=16, image=12).sizes.width == 16
    for settings, words in (
        ({"width": 16}, r"model\.width is 16, and the checkpoint '.*' has 8; allowed: null"),
        ({"depth": 18}, r"model\.depth is 18, and the checkpoint '.*' has basic stages of \(1, 2, 1\)"),
        ({"stem": Stem.cifar}, r"model\.stem is cifar, and the checkpoint '.*' has imagenet"),
    ):
        with pytest.raises(UserError, match=words):
            network(FIXTURES / "resnet_basic", **settings)
    with pytest.raises(UserError, match=r"model\.size is tiny, and the checkpoint '.*' has sizes of its own"):
        network(FIXTURES / "vit", size=Size.tiny)
    with pytest.raises(UserError, match=r"model\.image is 16, and the checkpoint '.*' has 12"):
        network(FIXTURES / "vit", image=16)


def test_pixels_are_standardised_as_the_checkpoint_says(copied):
    assert network(FIXTURES / "vit").scaling == ((0.5, 0.4375, 0.375), (0.25, 0.21875, 0.28125))
    assert network(FIXTURES / "vit", mean=0.5, std=(1, 2, 3)).scaling == ((0.5,), (1, 2, 3))
    assert network(FIXTURES / "vit", mean=0).scaling == ((0,), (0.25, 0.21875, 0.28125))
    assert Vit().scaling == ((0.5,), (0.25,))
    folder = copied(FIXTURES / "vit")
    configure(folder, huggingface.PREPROCESSOR, do_normalize=False)
    assert network(folder).scaling == ((0.0,), (1.0,))
    for values, words in (
        ({"image_mean": "grey"}, r"image_mean is 'grey'; allowed: a finite number, or a list"),
        ({"image_std": [0.1, 0.0, 0.1]}, r"image_std is \[0\.1, 0\.0, 0\.1\]; allowed: a finite number > 0"),
        ({"rescale_factor": 0.5}, "does not divide pixels by 255"),
        ({"do_rescale": False}, "does not divide pixels by 255"),
    ):
        folder = copied(FIXTURES / "vit")
        configure(folder, huggingface.PREPROCESSOR, **values)
        with pytest.raises(UserError, match=words):
            network(folder)
    (folder / huggingface.PREPROCESSOR).unlink()
    with pytest.raises(
        UserError, match=r"has no preprocessor_config\.json, so model\.mean and model\.std must be given"
    ):
        network(folder)
    assert network(folder, mean=0.5, std=0.5).module(OUTPUTS).scaling == ((0.5,), (0.5,))


# --- messages ------------------------------------------------------------------------------------------------------


def test_all_misfits_are_reported_together(copied):
    folder = copied(FIXTURES / "resnet_basic")

    def damage(tensors):
        del tensors["resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"]
        tensors["resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"] = np.zeros((8, 8, 1, 1), np.float32)
        tensors["resnet.encoder.stages.0.layers.0.layer.2.convolution.weight"] = np.zeros((8, 8, 1, 1), np.float32)
        tensors["resnet.embedder.embedder.normalization.running_var"] = np.zeros(8, np.int64)

    change(folder, damage)
    with pytest.raises(UserError) as found:
        read_checkpoint(network(folder), OUTPUTS)
    words = str(found.value)
    for part in (
        "encoder.stages.1.layers.0.shortcut.convolution.weight is missing",
        "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight is (8, 8, 1, 1) instead of (8, 8, 3, 3)",
        "resnet.encoder.stages.0.layers.0.layer.2.convolution.weight is unexpected",
        "resnet.embedder.embedder.normalization.running_var holds I64 instead of F64, F32",
    ):
        assert part in words
    assert "num_batches_tracked" not in words
    assert "\n" not in words


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("resnet_basic", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: relu"),
        ("resnet_basic", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck is 'True'; allowed: False"),
        ("resnet_basic", {"downsample_in_first_stage": True}, "downsample_in_first_stage is 'True'; allowed: False"),
        ("resnet_basic", {"layer_type": "wide"}, "layer_type is 'wide'; allowed: basic, bottleneck"),
        ("resnet_basic", {"layer_type": None}, "layer_type is 'None'; allowed: basic, bottleneck"),
        ("resnet_basic", {"depths": [1, 2]}, r"stages of widths \(8, 16, 24\) and depths \(1, 2\); allowed: as many"),
        ("resnet_basic", {"depths": []}, r"depths is \[\]; allowed: a list of 1 to 32, each a whole number from 1"),
        ("resnet_basic", {"depths": [1, 2**24, 1]}, "allowed: as many widths as depths, at most 1000 blocks"),
        ("resnet_basic", {"hidden_sizes": [8, -1, 8]}, r"hidden_sizes is \[8, -1, 8\]; allowed: a list"),
        ("resnet_basic", {"num_channels": 0}, "num_channels is 0; allowed: a whole number from 1"),
        ("resnet_basic", {"model_type": "vit"}, "of type 'vit', and the run has model=resnet; model=vit reads it"),
        ("resnet_bottleneck", {"hidden_sizes": [2, 32]}, "widths of bottlenecks at least 4"),
        ("vit", {"qkv_bias": False}, "qkv_bias is 'False'; allowed: True"),
        ("vit", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; allowed: gelu"),
        ("vit", {"image_size": [12, 16]}, r"image_size is \[12, 16\]; allowed: a whole number"),
        ("vit", {"patch_size": 5}, "model.patch is 5, and images are 12 x 12 pixels; allowed: a divisor of both"),
        ("vit", {"num_attention_heads": 5}, "model.heads is 5; allowed: a divisor of the width, 16"),
    ],
)  # fmt: skip
def test_configs_of_variants_are_refused(copied, name, values, message):
    folder = copied(FIXTURES / name)
    configure(folder, **values)
    with pytest.raises(UserError, match=message):
        read_checkpoint(network(folder), OUTPUTS)


def test_ignored_heads_are_reported_once(copied, caplog):
    """A masked-image network's decoder and mask token, a bare model's pooler, and a classifier of another size."""
    folder = copied(FIXTURES / "vit")

    def other(tensors):
        tensors["vit.embeddings.mask_token"] = np.zeros((1, 1, 16), np.float32)
        tensors["decoder.0.weight"] = np.zeros((48, 16, 1, 1), np.float32)
        tensors["vit.pooler.dense.bias"] = np.zeros(16, np.float32)

    change(folder, other)
    features.warn_once.cache_clear()
    huggingface._read.cache_clear()
    with caplog.at_level(logging.WARNING):
        read = read_checkpoint(network(folder), 5)
        read_checkpoint(network(folder), 5)
    (record,) = caplog.records
    assert "another size: classifier.weight is (3, 16) instead of (5, 16)" in record.getMessage()
    assert "not read: classifier, decoder, pooler" in record.getMessage()
    assert not any(path.startswith("head/") for path in read)
    np.testing.assert_array_equal(read["embeddings/class_token"], load_file(folder / "model.safetensors")[
        "vit.embeddings.cls_token"
    ])  # fmt: skip


def test_images_that_do_not_fit_the_checkpoint_are_refused():
    for name, shape, message in (
        ("vit", (16, 16, 3), r"images are 16 x 16 pixels, and model\.image is 12"),
        ("vit", (12, 12, 1), "model=vit is given images of 1 channels; allowed: 3, as the checkpoint has"),
        ("resnet_basic", (32, 32, 1), "model=resnet is given images of 1 channels; allowed: 3"),
    ):
        model = network(FIXTURES / name)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda model=model, shape=shape: model.init(jax.random.PRNGKey(0), shape, OUTPUTS))


def test_the_fingerprint_is_of_the_scaling_too(copied):
    folder = copied(FIXTURES / "vit")
    first = fingerprint(network(folder))
    assert first == fingerprint(network(FIXTURES / "vit"))
    configure(folder, huggingface.PREPROCESSOR, image_mean=[0.1, 0.2, 0.3])
    assert fingerprint(network(folder)) != first


def test_pooling_by_the_mean_starts_from_the_same_trunk():
    one, other = (network(FIXTURES / "vit", pooling=pooling) for pooling in (VitPooling.first, VitPooling.mean))
    images, params = EXPECTED["vit/images"], read_checkpoint(one, OUTPUTS)
    assert read_initial(one, OUTPUTS).keys() == read_initial(other, OUTPUTS).keys() == params.keys()
    below = np.asarray(one.apply(params, images, OUTPUTS, ApplyOptions(stop=2)))
    np.testing.assert_array_equal(below, other.apply(params, images, OUTPUTS, ApplyOptions(stop=2)))
    assert np.abs(one.apply(params, images, OUTPUTS) - other.apply(params, images, OUTPUTS)).max() > 0.01


def test_peft_requires_a_model_of_text():
    with pytest.raises(UserError, match="describes a model of type 'vit'; allowed: bert, gpt2"):
        checkpoint_model(str(FIXTURES / "vit"), None)


# --- written back ----------------------------------------------------------------------------------------------------


@EVERY
def test_reading_and_exporting_round_trips(tmp_path, name):
    """The same names, shapes, types and values, and what its config and preprocessor say."""
    model = network(FIXTURES / name)
    written = export(model, read_checkpoint(model, OUTPUTS), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (FIXTURES / name, tmp_path / "out"))
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        np.testing.assert_array_equal(after[tensor], values.astype(after[tensor].dtype))
    for file in ("config.json", "preprocessor_config.json"):
        one, other = (json.loads((folder / file).read_text()) for folder in (FIXTURES / name, tmp_path / "out"))
        assert {key: other[key] for key in one} == one
    assert [written] == other_config(tmp_path / "out")["architectures"]


def other_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Vit(width=16, layers=1, heads=2, mean=0.4, std=(0.2, 0.3)), (8, 8, 2)),
        (Resnet(width=2, stem=Stem.imagenet, mean=0.4), (9, 9, 1)),
    ],
    ids=["vit", "resnet"],
)
def test_a_network_from_the_seed_read_again_gives_the_same_logits(tmp_path, model, shape):
    """Its image's side and channels are in the files, though no setting named them; and so is how pixels scale."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), shape, 4))
    rng = np.random.default_rng(0)
    params = {path: rng.uniform(0.01, 0.2, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    images = rng.integers(0, 256, (3, *shape), np.uint8)
    export(model, params, tmp_path / "out")
    again = load_config(type(model)(checkpoint=str(tmp_path / "out")))
    found = again.apply(read_checkpoint(again, 4), images, 4)
    np.testing.assert_array_equal(found, model.apply(params, images, 4))
    assert other_config(tmp_path / "out")["num_channels"] == shape[-1]
    assert len(json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["image_mean"]) == shape[-1]


def test_networks_without_a_hugging_face_class_are_refused(tmp_path):
    model = Resnet(width=2)
    with pytest.raises(UserError, match=r"model\.stem is cifar, which no class .*; allowed: imagenet"):
        export(model, {}, tmp_path / "out")
    vit = network(FIXTURES / "vit", pooling=VitPooling.mean)
    with pytest.raises(UserError, match=r"model\.pooling is mean, .*; allowed: first"):
        export(vit, read_checkpoint(vit, OUTPUTS), tmp_path / "out")
    wide = Vit(width=16, layers=1, heads=2)
    with pytest.raises(UserError, match="has 2 patches, which form no square; allowed: square images"):
        export(wide, wide.init(jax.random.PRNGKey(0), (4, 8, 3), OUTPUTS), tmp_path / "out")
    assert not (tmp_path / "out").exists()
