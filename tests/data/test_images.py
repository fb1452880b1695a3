"""Images in folders, archives and published files: which pixels, which labels, which rows; and what is refused."""

import dataclasses
import io
import os
import struct
import sys
import tarfile
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import src.data.image_files as image_files
from src.data.cifar10 import NAMES, RECORD, TEST, TRAIN, Cifar10
from src.data.digits import Digits, DigitsTask
from src.data.hub_images import HubImages
from src.data.image_files import ImageFormat, OnBad, convert, decode_image, decoded_key, read_images
from src.data.image_folder import ImageFolder
from src.data.mnist import Mnist
from src.errors import UserError
from tests.data.test_mnist import digits, write
from tests.data.texts import real

SIDE = 6
PLAIN = ImageFormat()


def picture(number, side=SIDE, channels=3):
    """An image whose first two pixels are its number."""
    found = np.random.default_rng(number).integers(0, 256, (side, side, channels), np.uint8)
    found[0, 0], found[0, 1] = number // 256, number % 256
    return found


def number_of(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]


def as_file(array, form="PNG", **how):
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, form, **how)
    return file.getvalue()


def some_files(classes=("ant", "bee", "cat"), count=10, start=0, side=SIDE):
    """Return the contents of files by their names: image n is of class n % K."""
    return {
        f"{classes[n % len(classes)]}/{n:04}.png": as_file(picture(start + n, side))
        for n in range(count * len(classes))
    }


def on_disk(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def zipped(path, files, top=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return str(path)


def folder(path, **settings):
    return ImageFolder(path=path, **({"image_cache": None} | settings))


# --- files to pixels -------------------------------------------------------------------------------------------------


def test_pixels_and_labels_of_a_folder_and_of_an_archive(tmp_path):
    """A PNG loses nothing, so that each image's bytes, and the class in its number, are known."""
    files = some_files() | {"notes.txt": b"no image", "ant/.hidden.png": b"", "__MACOSX/ant/._0000.png": b""}
    deep = {
        f"{name.split('/')[0]}/more/{name.split('/')[1]}": content for name, content in files.items() if "/00" in name
    }
    places = [
        on_disk(tmp_path / "plain", files),
        on_disk(tmp_path / "deep", {**deep, **some_files(count=1)}),
        zipped(tmp_path / "flat.zip", files),
        zipped(tmp_path / "TOP.ZIP", files, "some/top/"),
    ]
    for place in places:
        found = read_images(place, "it", ImageFormat(), OnBad.refuse)
        assert found.names == ("ant", "bee", "cat")
        numbers = number_of(found.x)
        assert set(numbers) == set(range(30))
        np.testing.assert_array_equal(found.y, numbers % 3)
        np.testing.assert_array_equal(found.x, [picture(number) for number in numbers])
        assert found.x.dtype == np.uint8


def test_a_folder_inside_of_an_archive(tmp_path):
    files = {f"set/{part}/{name}": c for part in ("train", "test") for name, c in some_files(start=9).items()}
    place = zipped(tmp_path / "a.zip", files)
    with pytest.raises(UserError, match=r"it is divided into test, train, which are no classes; .* as in it/set/t"):
        read_images(place, "it", ImageFormat(), OnBad.refuse)
    found = read_images(f"{place}/set/test", "it", ImageFormat(), OnBad.refuse)
    assert sorted(number_of(found.x)) == list(range(9, 39))
    with pytest.raises(UserError, match=r"it has no image in it; allowed: files that end in .png, .jpg, .jpeg"):
        read_images(f"{place}/set/tes", "it", ImageFormat(), OnBad.refuse)


def test_names_that_lead_out_of_an_archive_are_left_aside(tmp_path):
    (tmp_path / "inside").mkdir()
    files = some_files() | {"../evil/a.png": as_file(picture(99)), "ant/../../b.png": as_file(picture(98))}
    found = read_images(zipped(tmp_path / "inside" / "a.zip", files), "it", ImageFormat(), OnBad.refuse)
    assert set(number_of(found.x)) == set(range(30))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "inside"]


@pytest.mark.parametrize(
    ("array", "how"),
    [
        (picture(3)[..., 0], {}),
        (np.concatenate([picture(3), picture(4)[..., :1]], axis=2), {}),
        (picture(3), {"form": "JPEG", "quality": 95, "subsampling": 0}),
    ],
    ids=["grey", "transparent", "jpeg"],
)
def test_modes_become_three_channels_or_grey(array, how):
    content = as_file(array, **how)
    shown = picture(3)[..., :1].repeat(3, 2) if array.ndim == 2 else picture(3)
    found = decode_image(content, ImageFormat())
    assert found.shape == (SIDE, SIDE, 3)
    if "form" in how:  # a JPEG of noise: near, not equal
        assert np.abs(found.astype(int) - shown).mean() < 12
        shown = found
    np.testing.assert_array_equal(found, shown)
    grey = decode_image(content, ImageFormat(grey=True))
    assert grey.shape == (SIDE, SIDE, 1)
    np.testing.assert_allclose(grey[..., 0], shown @ [0.299, 0.587, 0.114], atol=1 if "form" not in how else 2)


def test_an_image_lies_as_its_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned clockwise by 90 degrees
    array = picture(5)
    found = decode_image(as_file(array, exif=exif), ImageFormat())
    np.testing.assert_array_equal(found, np.rot90(array, -1))


def triangle(old, new):
    """Weights (new, old) of a triangle filter as wide as a new pixel, or as an old one where that is wider."""
    scale = old / new
    reach = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs((np.arange(old) + 0.5)[None] - centre[:, None]) / reach)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("high", "wide", "size"), [(12, 20, 7), (20, 13, 9), (5, 5, 8)])
def test_a_size_scales_the_shorter_side_and_cuts_out_the_middle(high, wide, size):
    array = np.random.default_rng(0).integers(0, 256, (high, wide, 3), np.uint8)
    found = convert(Image.fromarray(array), ImageFormat(size=size))
    rows, columns = (round(size * side / min(high, wide)) for side in (high, wide))
    whole = np.einsum("yh,hwc,xw->yxc", triangle(high, rows), array.astype(np.float64), triangle(wide, columns))
    top, left = (rows - size) // 2, (columns - size) // 2
    assert found.shape == (size, size, 3)
    # It rounds after each of its two passes.
    np.testing.assert_allclose(found, whole[top : top + size, left : left + size], atol=1.01)


# --- what cannot be used ---------------------------------------------------------------------------------------------


def oversized_png():
    """A PNG whose header promises more pixels than anybody has."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


GOOD = some_files()
DEEP = as_file(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000)
BAD = {
    "bee/bad1.png": b"no image at all",
    "bee/bad2.png": as_file(picture(1))[:60],
    "cat/bad3.jpg": as_file(picture(1), "JPEG")[:-40],
    "cat/bad4.png": oversized_png(),
    "cat/bad5.png": DEEP,
    "cat/bad6.png": b"",
}


@pytest.mark.parametrize("archived", [False, True])
def test_images_that_cannot_be_decoded_are_refused_or_left_out(tmp_path, archived, caplog):
    files = GOOD | BAD
    place = zipped(tmp_path / "a.zip", files) if archived else on_disk(tmp_path / "a", files)
    with pytest.raises(
        UserError, match=r"has 6 images that cannot be decoded: bee/bad1.png \(cannot identify"
    ) as found:
        folder(place).load()
    assert "\n" not in str(found.value)
    assert str(found.value).endswith("and 3 more; allowed: none, or data.on_bad=skip to leave them out")
    with caplog.at_level("INFO"):
        left = read_images(place, f"it{archived}", ImageFormat(), OnBad.skip)
    assert f"it{archived}: 6 of 36 images cannot be decoded and are left out" in caplog.text
    np.testing.assert_array_equal(left.y, number_of(left.x) % 3)
    assert set(number_of(left.x)) == set(range(30))


def test_a_file_that_is_damaged_inside_of_an_archive(tmp_path):
    content = as_file(picture(29))
    place = tmp_path / "a.zip"
    zipped(place, GOOD)  # stored, not compressed: the content can be found
    place.write_bytes(place.read_bytes().replace(content, content[:-20] + b"x" * 20))
    with pytest.raises(UserError, match=r"has 1 image that cannot be decoded: cat/0029.png \(Bad CRC-32"):
        folder(str(place)).load()


SOURCES = [
    ({"ant/a.png": as_file(picture(1)), "bee/b.png": as_file(picture(2, 9))}, {}, r"images of several sizes, ant/a.png "
     r"of 6 x 6 and bee/b.png of 9 x 9 pixels; allowed: one, or data.size="),
    ({"a.png": GOOD["ant/0000.png"]}, {}, "has all of its images in one folder; allowed: a folder for each"),
    ({"ant/a.png": GOOD["ant/0000.png"]}, {}, "has all of its images in one folder"),
    (GOOD | {"a.png": GOOD["ant/0000.png"]}, {}, "has a.png outside of its classes"),
    ({"ant/notes.txt": b"1"}, {}, "has no image in it"),
    ({"ant/a.png": b"1", "bee/b.png": b"2"}, {"on_bad": OnBad.skip}, "has no image that can be decoded: ant/a.png"),
    (GOOD, {"source_classes": ("ant", "bees")}, r"data.source_classes has 'bees' \(did you mean 'bee'\?\), which is no "
     "class of data.path=.*; allowed: ant, bee, cat"),
    (GOOD, {"target_classes": ("ant",)}, r"data.target_classes has one class only \(ant\); allowed: at least two"),
    (GOOD, {"source_rows": 31}, "data.source_rows is 31; allowed: at most 30, the images of the source task's classes"),
    (GOOD, {"source_rows": 29}, "the source task leaves no image of [a-z]+, [a-z]+ to fine-tune on; allowed: fewer"),
    (GOOD, {"train_rows": 9}, "data.train_rows is 9; allowed: at most 7, the rows to train on of data.path="),
    (GOOD, {"val_fraction": 0.6, "test_fraction": 0.4}, r"data.test_fraction \+ data.val_fraction is 1; allowed: less"),
    (GOOD, {"val_fraction": 0.01}, "leaves its val part empty"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "settings", "message"), SOURCES)
def test_folders_that_cannot_be_used(tmp_path, files, settings, message):
    with pytest.raises(UserError, match=message) as found:
        folder(on_disk(tmp_path / "a", files), **settings).load()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            some_files(("ant", "bee", "dog")),
            "test.* has the class 'dog', which data.path=.* does not have; allowed: ant",
        ),
        (some_files(side=5), r"has images of 5 x 5 x 3 and data.path=.* of 6 x 6 x 3 \(height, width, channels\)"),
        (some_files(("bee", "cat")), "has no image of data.target_classes; allowed: at least one"),
    ],
)
def test_parts_that_do_not_belong_together(tmp_path, files, message):
    path, test_path = (
        on_disk(tmp_path / "train", some_files(("ant", "bee", "cat", "ape"))),
        on_disk(tmp_path / "b", files),
    )
    with pytest.raises(UserError, match=message):
        folder(path, test_path=test_path, target_classes=("ant", "ape")).load()


def test_places_that_are_none(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"a.zip cannot be read as a .zip: File is not a zip file"):
        folder(str(tmp_path / "a.zip")).load()
    with pytest.raises(UserError, match=r"nowhere: there is no such folder and no such .zip"):
        folder(str(tmp_path / "nowhere")).load()


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_images_are_decoded_once(tmp_path, monkeypatch):
    place, cache = on_disk(tmp_path / "a", GOOD | {"bee/bad.png": b"1"}), str(tmp_path / "cache")
    counted = []
    monkeypatch.setattr(
        image_files,
        "decode_image",
        lambda content, image_format: counted.append(1) or decode_image(content, image_format),
    )

    def load(image_format=PLAIN, on_bad=OnBad.skip, limit=None):
        counted.clear()
        found = read_images(place, "it", image_format, on_bad, limit=limit, cache=cache)
        return found, len(counted)

    first, count = load()
    assert count == 31
    again, count = load()
    assert count == 0
    for mine, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(
        UserError, match=r"has 1 image that cannot be decoded: bee/bad.png"
    ):  # kept, and known to be bad
        load(on_bad=OnBad.refuse)
    assert load(ImageFormat(grey=True))[1] == 31
    assert load(limit=9)[1] == 9
    path = tmp_path / "a" / "ant" / "0000.png"
    path.write_bytes(as_file(picture(77)))
    os.utime(path, ns=(1, 1))
    changed, count = load()
    assert count == 31
    assert 77 in number_of(changed.x)
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.suffix for file in files] == [".images"] * 4  # and nothing half-written beside them


def test_the_key_of_what_is_kept_knows_what_decides_the_pixels(tmp_path):
    entries = [image_files.ImageFile("a/b.png", 10, 3)]
    others = [entries[0]._replace(**change) for change in ({"name": "a/c.png"}, {"size": 11}, {"stamp": 4})]
    keys = [decoded_key(entries, ImageFormat()), *(decoded_key([other], ImageFormat()) for other in others)]
    keys += [
        decoded_key(entries, ImageFormat(size=3)),
        decoded_key(entries, ImageFormat(grey=True)),
        decoded_key(entries * 2, ImageFormat()),
    ]
    assert len(set(keys)) == 7
    assert decoded_key(list(entries), ImageFormat()) == keys[0]


def test_a_limit_takes_as_many_of_each_class(tmp_path):
    files = some_files(count=10)
    place = on_disk(tmp_path / "a", {name: c for name, c in files.items() if name[:3] != "cat" or name < "cat/0007"})
    found = read_images(place, "it", ImageFormat(), OnBad.refuse, limit=10)
    assert np.bincount(found.y).tolist() == [4, 4, 2]
    assert sorted(number_of(found.x)) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]  # the first of each by name
    assert len(read_images(place, "it", ImageFormat(), OnBad.refuse, limit=1000).x) == 22


# --- images to tasks -------------------------------------------------------------------------------------------------


def numbers_by_part(data):
    return {name: number_of(part.x).tolist() for name, part in data.parts()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return on_disk(tmp_path_factory.mktemp("images"), some_files(("ant", "bee", "cat", "dog"), 40))


def test_parts_are_disjoint_and_complete(place):
    """Half of each class is the source task's; each image keeps its label, and is nowhere twice."""
    data = folder(place).load()
    parts = numbers_by_part(data)
    assert data.rows() == {"source_train": 64, "source_test": 16, "train": 40, "val": 20, "test": 20}
    assert sorted(n for numbers in parts.values() for n in numbers) == list(range(160))
    for name, part in data.parts():
        np.testing.assert_array_equal(part.y, np.array(parts[name]) % 4)
        assert (part.x.dtype, part.y.dtype) == (np.uint8, np.int32)
    source = np.array(parts["source_train"] + parts["source_test"])
    assert np.bincount(source % 4).tolist() == [20] * 4
    assert (data.kind, data.source_outputs, data.outputs, data.new_head) == ("classification", 4, 4, False)
    assert data.features == (SIDE, SIDE, 3)
    assert data.facts()["labels"] == ["ant", "bee", "cat", "dog"]
    assert folder(place).load().fingerprint == data.fingerprint != folder(place, split_seed=1).load().fingerprint


def test_tasks_of_different_classes(place):
    data = folder(place, source_classes=("dog", "ant"), target_classes=("bee", "dog", "cat")).load()
    parts = {name: np.array(numbers) for name, numbers in numbers_by_part(data).items()}
    source = np.concatenate([parts["source_train"], parts["source_test"]])
    target = np.concatenate([parts["train"], parts["val"], parts["test"]])
    assert np.bincount(source % 4, minlength=4).tolist() == [40, 0, 0, 20]  # all ants; dogs are shared
    assert np.bincount(target % 4, minlength=4).tolist() == [0, 40, 40, 20]
    assert not set(source) & set(target)
    assert (data.source_outputs, data.outputs, data.new_head, data.labels) == (2, 3, True, ("bee", "cat", "dog"))
    np.testing.assert_array_equal(data.source["train"].y, (parts["source_train"] % 4 == 3).astype(int))
    np.testing.assert_array_equal(data.target["test"].y, parts["test"] % 4 - 1)


def test_more_source_rows_include_the_fewer_and_are_balanced(place):
    before: set[int] = set()
    for count in (6, 10, 41):
        parts = numbers_by_part(folder(place, source_rows=count).load())
        source = {*parts["source_train"], *parts["source_test"]}
        assert len(source) == count
        assert before < source
        per_class = np.bincount(np.array(list(source)) % 4)
        assert per_class.max() - per_class.min() <= 1
        assert not source & {*parts["train"], *parts["val"], *parts["test"]}
        before = source


def test_fewer_rows_to_train_on_change_nothing_else(place):
    whole, few = folder(place).load(), folder(place, train_rows=8).load()
    assert np.bincount(few.target["train"].y).tolist() == [2] * 4
    assert set(number_of(few.target["train"].x)) < set(number_of(whole.target["train"].x))
    assert few.source_fingerprint == whole.source_fingerprint
    for name in ("val", "test"):
        np.testing.assert_array_equal(few.target[name].x, whole.target[name].x)


def test_a_part_of_its_own_is_tested_on(place, tmp_path):
    test = on_disk(tmp_path / "test", some_files(("ant", "bee", "cat"), 5, start=1000))
    data = folder(place, test_path=test, target_classes=("bee", "cat"), source_val_fraction=0.1).load()
    assert data.rows() == {
        "source_train": 84, "source_test": 24, "source_val": 12, "train": 30, "val": 10, "test": 10
    }  # fmt: skip
    numbers = number_of(data.target["test"].x) - 1000
    assert sorted(numbers) == [n for n in range(15) if n % 3]
    np.testing.assert_array_equal(data.target["test"].y, numbers % 3 - 1)


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


def records(start, count=20):
    """Return a binary file of images of labels by turns, which carry their numbers."""
    images = [picture(n, 32) for n in range(start, start + count)]
    return b"".join(bytes([n % 10]) + image.transpose(2, 0, 1).tobytes() for n, image in enumerate(images, start))


CIFAR = {name: records(20 * number) for number, name in enumerate((*TRAIN, *TEST))}


def tarred(path, files, top="cifar-10-batches-bin/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"{top}evil.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return str(path)


@pytest.mark.parametrize("form", ["files", "inside", "archive", "images", "zip"])
def test_every_form_of_cifar10_is_the_same_two_tasks(tmp_path, form):
    named = {
        f"{part}/{NAMES[n % 10]}/{n:04}.png": as_file(picture(n, 32))
        for part, numbers in (("train", range(100)), ("test", range(100, 120)))
        for n in numbers
    }
    path = {
        "files": lambda: on_disk(tmp_path / "a", CIFAR),
        "inside": lambda: on_disk(tmp_path / "a", {f"cifar-10-batches-bin/{n}": c for n, c in CIFAR.items()}),
        "archive": lambda: tarred(tmp_path / "cifar-10-binary.tar.gz", CIFAR, "../"),
        "images": lambda: on_disk(tmp_path / "a", named),
        "zip": lambda: zipped(tmp_path / "a.zip", named),
    }[form]()
    before = set(tmp_path.rglob("*"))
    data = Cifar10(path=path, source_rows=30, image_cache=None).load()
    assert set(tmp_path.rglob("*")) == before  # nothing is unpacked
    assert data.rows() == {"source_train": 24, "source_test": 6, "train": 63, "val": 7, "test": 20}
    assert sorted(number_of(data.target["test"].x)) == list(range(100, 120))
    assert data.labels == NAMES == tuple(sorted(NAMES))
    for _, part in data.parts():
        numbers = number_of(part.x)
        np.testing.assert_array_equal(part.y, numbers % 10)
        np.testing.assert_array_equal(part.x, [picture(n, 32) for n in numbers])
    few = Cifar10(path=path, source_rows=10, limit=40, image_cache=None, val_fraction=0.2).load()
    assert sum(few.rows().values()) == 40 + 20
    assert np.bincount(np.concatenate([part.y for name, part in few.parts() if name != "test"])).tolist() == [4] * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({TRAIN[2]: b""}, f"data_batch_3.bin has 0 bytes; allowed: a multiple of {RECORD}"),
        (
            {TEST[0]: CIFAR[TEST[0]][:-1]},
            f"test_batch.bin has {20 * RECORD - 1} bytes; allowed: a multiple of {RECORD}",
        ),
        ({TRAIN[0]: b"\x0a" + CIFAR[TRAIN[0]][1:]}, "data_batch_1.bin holds the label 10; allowed: 0 to 9"),
        ({TRAIN[4]: None}, "has no file data_batch_5.bin; allowed: the six files of the binary version"),
        ({TEST[0]: None}, "has no file test_batch.bin"),
        (dict.fromkeys(CIFAR), "holds no CIFAR-10; allowed: the folder of data_batch_1.bin and its like, cifar-10-b"),
    ],
)
def test_files_that_are_no_cifar10(tmp_path, change, message):
    (tmp_path / "a").mkdir()
    path = on_disk(tmp_path / "a", {name: c for name, c in (CIFAR | change).items() if c is not None})
    with pytest.raises(UserError, match=message):
        Cifar10(path=path).load()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no archive"])
def test_an_archive_that_is_damaged(tmp_path, damage):
    path = tmp_path / "cifar-10-binary.tar.gz"
    tarred(path, CIFAR)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"data.path=.*tar.gz cannot be read: "):
        Cifar10(path=str(path)).load()


def test_the_published_images(tmp_path):
    """Statistics of the channels that the literature standardises CIFAR-10 with; JPEG moves them by less than that."""
    path = real("cifar10_jpeg") / "cifar10_jpeg.zip"
    source = Cifar10(path=str(path), limit=2000, source_rows=1000, image_cache=str(tmp_path))
    data = source.load()
    assert data.rows() == {"source_train": 800, "source_test": 200, "train": 900, "val": 100, "test": 2000}
    assert np.bincount(data.target["test"].y).tolist() == [200] * 10
    x = np.concatenate([part.x for _, part in data.parts()]) / 255
    assert x.shape == (4000, 32, 32, 3)
    np.testing.assert_allclose(x.mean((0, 1, 2)), (0.4914, 0.4822, 0.4465), atol=0.015)
    np.testing.assert_allclose(x.std((0, 1, 2)), (0.247, 0.243, 0.261), atol=0.015)
    half = dataclasses.replace(source, source_classes=NAMES[:5], target_classes=NAMES[5:], source_rows=None).load()
    assert half.rows() == {"source_train": 800, "source_test": 200, "train": 900, "val": 100, "test": 1000}
    assert half.labels == NAMES[5:]


# --- digits as images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [DigitsTask.new_digits, DigitsTask.union])
def test_digits_as_images_are_the_same_rows(task):
    rows, images = Digits(task=task).load(), Digits(task=task, images=True).load()
    assert images.features == (8, 8, 1)
    assert (images.source_outputs, images.outputs, images.new_head) == (
        rows.source_outputs,
        rows.outputs,
        rows.new_head,
    )
    raw = [table.x for table in Digits(task=task).tables()[:2]]
    for name, part in images.parts():
        np.testing.assert_array_equal(part.y, dict(rows.parts())[name].y)
        assert part.x.dtype == np.uint8
    for table, mine in zip(raw, Digits(task=task, images=True).tables(), strict=False):
        np.testing.assert_allclose(mine.x.reshape(-1, 64) / 255, table, atol=0.5 / 255 + 1e-9)
    # And in the parts: undone, standardisation gives the same images.
    ink = images.source["train"].x.reshape(-1, 64) / 255
    flat = rows.source["train"].x
    near = [np.corrcoef(ink[:, pixel], flat[:, pixel])[0, 1] for pixel in (20, 27, 36)]
    assert min(near) > 0.999


def test_mnist_as_images_is_the_same_rows(tmp_path):
    images, labels = digits()
    source = Mnist(path=write(tmp_path, images, labels), source_rows=50, target_rows=60)
    rows, found = source.load(), dataclasses.replace(source, images=True).load()
    assert found.features == (4, 4, 1)
    for name, part in found.parts():
        numbers = number_of(part.x)
        np.testing.assert_array_equal(part.x[..., 0], images[numbers])
        np.testing.assert_array_equal(part.y, labels[numbers] % 5)
        np.testing.assert_array_equal(part.y, dict(rows.parts())[name].y)
    assert found.rows() == rows.rows()


# --- the Hub, as far as that can be told without one -----------------------------------------------------------------


class Encoded:
    """What the package calls ``Image``: a column of images."""

    def __init__(self, decode=True):
        self.decode = decode


class Part:
    """A table as the package has it."""

    def __init__(self, columns, names):
        self.columns, self.column_names = columns, list(columns)
        self.features = {"image": Encoded(), "label": types.SimpleNamespace(names=names), "word": "string"}

    def __getitem__(self, name):
        return self.columns[name]

    def select(self, rows):
        return Part({name: [c[row] for row in rows] for name, c in self.columns.items()}, self.features["label"].names)

    def cast_column(self, name, feature):
        assert not feature.decode
        return self


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one data set of 40 rows, one of whose files lies beside the table, and a part without labels."""
    contents = [as_file(picture(n)) for n in range(40)]
    (tmp_path / "beside.png").write_bytes(contents[7])
    files = [{"bytes": content, "path": None} for content in contents]
    files[7] = {"bytes": None, "path": str(tmp_path / "beside.png")}
    labels = [n % 2 for n in range(40)]
    words = ["ba"[n % 2] for n in range(40)]
    parts = {
        "train": Part({"image": files, "label": labels, "word": words}, ["zebra", "ant"]),
        "gaps": Part({"image": [None, *files[1:]], "label": labels, "word": words}, ["zebra", "ant"]),
        "secret": Part({"image": files, "label": [-1] * 40, "word": words}, ["zebra", "ant"]),
    }
    module = types.ModuleType("datasets")
    module.load_dataset = lambda name, subset, split: parts[split]
    module.Image = Encoded
    monkeypatch.setitem(sys.modules, "datasets", module)
    return lambda **settings: HubImages(dataset="some/set", **({"image_cache": None} | settings))


def test_a_data_set_of_the_hub(hub):
    data = hub().load()
    numbers = [number for part in numbers_by_part(data).values() for number in part]
    assert sorted(numbers) == list(range(40))
    assert data.labels == ("zebra", "ant")  # in the data set's own order
    words = hub(label="word", test_split="train", limit=10).load()
    assert words.labels == ("a", "b")
    assert sum(words.rows().values()) == 20
    for _, part in words.parts():
        np.testing.assert_array_equal(part.y, 1 - number_of(part.x) % 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image": "imag"},
            r"data.image: .* has no column 'imag' \(did you mean 'image'\?\); it has image, label, word",
        ),
        ({"image": "word"}, "column 'word' of data.dataset=some/set, train is not of images"),
        ({"test_split": "secret"}, "data.test_split=secret: .* has rows without a label in this split; allowed"),
        ({"train_split": "gaps"}, r"has 1 image that cannot be decoded: 0 \(cannot identify image file"),
    ],
)
def test_data_sets_that_cannot_be_used(hub, settings, message):
    with pytest.raises(UserError, match=message):
        hub(**settings).load()
