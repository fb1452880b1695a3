"""What a user may get wrong about pre-training on images, on the real command line."""

import sys

import numpy as np
import pytest
from PIL import Image

from src import train

DIGITS = ("data=digits", "data.images=true", "batch_size=16")
RESNET = (*DIGITS, "model=resnet", "model.width=4")
VIT = (*DIGITS, "model=vit", "model.width=8", "model.heads=2", "model.layers=1")
FOLDER = (
    "model=vit",
    "model.patch=2",
    "pretrain=mae",
    "data=image_folder",
    "data.path={folder}",
    "data.image_cache=null",
)
SKIP = "data.on_bad=skip"

BAD = [
    ((*RESNET, "pretrain=simclr", "batch_size=1"), "batch_size is 1, which has no negatives; "),
    (
        (*RESNET, "pretrain=moco", "batch_size=1"),
        "batch_size is 1, and batch normalisation needs two rows; allowed: ",
    ),
    (
        (*RESNET, "pretrain=moco", "pretrain.queue_size=100"),
        "pretrain.queue_size is 100; allowed: a multiple of batch_size (16)",
    ),
    (
        (*RESNET, "pretrain=moco", "pretrain.bn_splits=16"),
        "pretrain.bn_splits is 16; allowed: a divisor of batch_size (16) that leaves at least two rows a part",
    ),
    (
        (*RESNET, "pretrain=moco_v2", "batch_size=4096"),
        "batch_size is 4096, and there are 721 rows to fill it; allowed: at most 721",
    ),
    (
        (*RESNET, "pretrain=moco", "pretrain.temperature.cold=0"),
        "pretrain.temperature.cold is 0.0; allowed: a finite number > 0",
    ),
    (
        (*RESNET, "pretrain=simclr", "pretrain.temperature.hot=-1"),
        "pretrain.temperature.hot is -1.0; allowed: a finite number > 0",
    ),
    (
        (*VIT, "pretrain=moco", "pretrain.queue_sise=3"),
        "there is no key 'pretrain.queue_sise' (did you mean 'queue_size'?)",
    ),
    (
        (*VIT, "pretrain=mae", "pretrain.mask_ratio=0"),
        "pretrain.mask_ratio is 0.0; allowed: a number strictly between 0 and 1",
    ),
    (
        (*VIT, "pretrain=mae", "pretrain.mask_ratio=1.5"),
        "pretrain.mask_ratio is 1.5; allowed: a number strictly between 0 and 1",
    ),
    (
        (*VIT, "pretrain=mae", "model.patch=8"),
        "pretrain.mask_ratio is 0.75, which masks 1 of an image's 1 patches; allowed: a ratio that masks at least one",
    ),
    (
        (*VIT, "pretrain=mae", "model.patch=3"),
        "model.patch is 3, and images are 8 x 8 pixels; allowed: a divisor of bo",
    ),
    ((*RESNET, "pretrain=mae"), "pretrain=mae masks patches, and model=resnet has none; allowed: model=vit"),
    (
        ("data=digits", "model=mlp", "pretrain=mae"),
        "pretrain=mae learns from images, and the data is rows of shape (64,",
    ),
    ((*FOLDER, "data.path={folder}/none"), "none: there is no such folder and no such .zip"),
    (
        (*FOLDER, "data.size=8"),
        "has 1 image that cannot be decoded: ant/broken.png (cannot identify image file); allowed: none, or",
    ),
    (
        (*FOLDER, SKIP),
        "has images of several sizes, ant/0.png of 8 x 8 and bee/wide.png of 10 x 8 pixels; allowed: one,",
    ),
    (
        (*FOLDER, SKIP, "data.size=8", "pretrain.mask_ratio=0.01"),
        "pretrain.mask_ratio is 0.01, which masks 0 of an image's 16 patc",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of images of 8 x 8 pixels, one file that is no image, and one that is wider."""
    place = tmp_path_factory.mktemp("pictures")
    for name in ("ant", "bee"):
        (place / name).mkdir()
        for number in range(8):
            Image.fromarray(np.full((8, 8, 3), 30 * number, np.uint8)).save(place / name / f"{number}.png")
    (place / "ant" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (10, 8)).save(place / "bee" / "wide.png")
    return place


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(given)[-60:] for given, _ in BAD])
def test_bad_input_is_one_sentence(arguments, message, folder, tmp_path, monkeypatch):
    """In this process: starting one for each is the dearest part of refusing."""
    given = (argument.format(folder=folder) for argument in arguments)
    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
    fixed = (f"hydra.run.dir={tmp_path}", "tracker=disk", *quiet)
    monkeypatch.setattr(sys, "argv", ["train", *fixed, *given])
    with pytest.raises(SystemExit) as ended:
        train.main()
    said = str(ended.value.code)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").read_text() == ""
