"""idx files: those written here, those that are broken, and the published ones where they are at hand."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from src.data.mnist import Mnist, MnistFiles
from src.errors import UserError

ROWS = 200


def idx(array):
    """Return an array of unsigned bytes in the idx format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def digits(rows=ROWS, seed=0):
    """Images whose first two pixels are their number and whose third is their label."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, 4, 4))
    labels = np.arange(rows) % 10
    images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = np.arange(rows) // 256, np.arange(rows) % 256, labels
    return images, labels


def write(folder, images, labels, name="train", zipped=False):
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = array if isinstance(array, bytes) else idx(array)
        path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return str(folder)


def numbers(table):
    pixels = np.rint(table.x * 255).astype(int)
    return pixels[:, 0] * 256 + pixels[:, 1]


@pytest.mark.parametrize("zipped", [False, True])
def test_images_keep_their_labels_and_their_lines(tmp_path, zipped):
    images, labels = digits()
    source = Mnist(path=write(tmp_path, images, labels, zipped=zipped), source_rows=None, target_rows=None)
    low, high, kind = source.tables()
    assert kind == "classification"
    for table, chosen in ((low, labels < 5), (high, labels >= 5)):
        assert sorted(numbers(table)) == np.flatnonzero(chosen).tolist()
        np.testing.assert_array_equal(table.y, labels[numbers(table)])
        np.testing.assert_allclose(table.x, images[numbers(table)].reshape(-1, 16) / 255, rtol=1e-6)
    data = source.load()
    assert (data.source_outputs, data.outputs, data.new_head, data.features) == (5, 5, True, (16,))
    train = data.source["train"].x.astype(np.float64)
    np.testing.assert_allclose((train.mean(), train.std()), (0, 1), atol=1e-5)


def test_fewer_rows_are_part_of_more_and_follow_the_split_seed(tmp_path):
    path = write(tmp_path, *digits())

    def taken(rows, seed=0):
        source = Mnist(path=path, source_rows=rows, target_rows=rows, split_seed=seed)
        return [set(numbers(table)) for table in source.tables()[:2]]

    for few, many in zip(taken(30), taken(70), strict=True):
        assert len(few) == 30
        assert len(many) == 70
        assert few < many
    assert taken(30) == taken(30)
    assert taken(30) != taken(30, seed=1)


def test_the_other_pair_of_files(tmp_path):
    write(tmp_path, *digits())
    write(tmp_path, *digits(100), name="t10k")
    low, high, _ = Mnist(path=str(tmp_path), files=MnistFiles.t10k, source_rows=None, target_rows=None).tables()
    assert len(low.x) + len(high.x) == 100


IMAGES, LABELS = map(idx, digits())
BROKEN = [
    ({"images": IMAGES[:-1]}, r"train-images-idx3-ubyte has 3215 bytes and its header requires 3216; allowed"),
    ({"images": IMAGES + b"0"}, "has 3217 bytes and its header requires 3216"),
    ({"images": IMAGES[:7]}, "a complete file"),
    ({"images": b""}, r"begins with the bytes \(none\); allowed: 00 00 08 03"),
    (
        {"images": LABELS},
        "begins with the bytes 00 00 08 01; allowed: 00 00 08 03, an idx file of unsigned bytes with 3",
    ),
    ({"labels": IMAGES}, "labels-idx1-ubyte begins with the bytes 00 00 08 03; allowed: 00 00 08 01"),
    ({"images": b"\0\0\x0d\x03" + IMAGES[4:]}, "00 00 0d 03; allowed: 00 00 08 03"),
    ({"labels": idx(digits(150)[1])}, "holds 200 images and 150 labels in its train files"),
    ({"labels": idx(digits()[1] + 1)}, "holds the label 10; allowed: 0 to 9"),
    ({"source_rows": 101}, "data.source_rows is 101; allowed: at most 100, the digits 0 to 4 in the file"),
    ({"target_rows": 101}, "data.target_rows is 101; allowed: at most 100, the digits 5 to 9"),
    ({"files": MnistFiles.t10k}, "has no file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz"),
    ({"train_rows": 31, "target_rows": 60}, "data.train_rows is 31; allowed: at most 30"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_files_that_cannot_be_used(tmp_path, change, message):
    content = {"images": IMAGES, "labels": LABELS} | change
    path = write(tmp_path, content.pop("images"), content.pop("labels"))
    with pytest.raises(UserError, match=message) as found:
        Mnist(path=path, **({"source_rows": None, "target_rows": None} | content)).load()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(IMAGES)[:-20], gzip.compress(IMAGES)[:40] + b"x" * 99]
)
def test_compressed_files_that_are_broken(tmp_path, content):
    path = write(tmp_path, *digits(), zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"data.path: .*train-images-idx3-ubyte.gz cannot be read: "):
        Mnist(path=path).load()


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=r"data.path=.*nowhere: there is no such folder"):
        Mnist(path=str(tmp_path / "nowhere")).load()


def test_no_digits_of_one_task(tmp_path):
    images, labels = digits()
    path = write(tmp_path, images, labels % 5)
    with pytest.raises(UserError, match=r"the digits 5 to 9 of data.path=.* has 0 rows"):
        Mnist(path=path, source_rows=None, target_rows=None).load()


def test_the_published_files():
    """The counts of each digit among the 60,000 are those that everyone who counts them finds."""
    folder = Path(os.environ.get("THAW_DATA", "")) / "mnist"
    if not os.environ.get("THAW_DATA") or not folder.is_dir():
        pytest.skip("the published MNIST files are looked for in $THAW_DATA/mnist")
    low, high, _ = Mnist(path=str(folder), source_rows=None, target_rows=None).tables()
    assert np.bincount(low.y).tolist() == [5923, 6742, 5958, 6131, 5842]
    assert np.bincount(high.y)[5:].tolist() == [5421, 5918, 6265, 5851, 5949]
    pixels = np.concatenate([low.x.ravel(), high.x.ravel()])
    # The mean and deviation that the literature standardises MNIST with.
    np.testing.assert_allclose(
        (pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)), (0.1307, 0.3081), atol=1e-4
    )
    data = Mnist(path=str(folder)).load()
    sizes = {name: len(part.x) for name, part in data.parts()}
    assert sizes == {"source_train": 4000, "source_test": 1000, "train": 1000, "val": 500, "test": 500}
    assert max(np.abs(part.x).max() for _, part in data.parts()) < 4
