"""Sequences of tasks against images whose number is written in their pixels, and what is done to them by hand."""

import dataclasses
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from src.config.schema import build
from src.data.base import DataSource, TaskSequence, Transfer
from src.data.diabetes import Diabetes
from src.data.digits import Digits, DigitsTask
from src.data.permuted_mnist import PermutedMnist, permutations
from src.data.rotated_digits import RotatedDigits, rotation
from src.data.sequences import Heads, SequenceSource
from src.data.split_digits import SplitDigits
from src.data.split_mnist import SplitMnist
from src.data.synthetic import Synthetic
from src.errors import UserError
from tests.data.test_mnist import idx, write

TRAIN, TEST, SIDE = 300, 90, 6


def images(rows, test):
    """Images that differ in their first two pixels (their number) and the third (to test on or not)."""
    pixels = np.random.default_rng(int(test)).integers(0, 256, (rows, SIDE, SIDE))
    pixels[:, 0, 0], pixels[:, 0, 1], pixels[:, 0, 2] = np.arange(rows) // 256, np.arange(rows) % 256, 255 * test
    labels = np.random.default_rng(5).permutation(np.arange(rows) % 10)
    return pixels, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mnist")
    write(path, *images(TRAIN, test=False))
    return write(path, *images(TEST, test=True), name="t10k", zipped=True)


def bytes_of(part):
    """Return a part's images as they were written."""
    pixels = np.rint(part.x.astype(np.float64) * 255).astype(int)
    np.testing.assert_allclose(pixels / 255, part.x, rtol=1e-6)
    return pixels


def numbers(part):
    pixels = bytes_of(part)
    return pixels[:, 0] * 256 + pixels[:, 1]


def made(source):
    """Return what a source gives, all at once."""
    return [dict(task) for task in source.load().tasks]


def rows_of(part):
    return {np.r_[row, label].tobytes() for row, label in zip(part.x, part.y, strict=True)}


def every_source(folder):
    return [
        PermutedMnist(path=folder, tasks=3),
        SplitMnist(path=folder),
        SplitMnist(path=folder, heads=Heads.one),
        SplitDigits(),
        SplitDigits(heads=Heads.one),
        RotatedDigits(),
        RotatedDigits(tasks=3, angle_step=25.0),
    ]


def same(first, second):
    for one, two in zip(first, second, strict=True):
        assert list(one) == list(two)
        for name in one:
            for mine, theirs in zip(one[name], two[name], strict=True):
                np.testing.assert_array_equal(mine, theirs)


# --- permuted MNIST


def test_the_first_task_is_the_images_as_they_were_written(folder):
    first = made(PermutedMnist(path=folder))[0]
    for names, (pixels, labels), test in (
        (("train", "val"), images(TRAIN, test=False), 0),
        (("test",), images(TEST, test=True), 255),
    ):
        seen = np.concatenate([numbers(first[name]) for name in names])
        assert sorted(seen) == list(range(len(pixels)))  # every image once, in one part only
        for name in names:
            part = first[name]
            assert (part.x.dtype, part.y.dtype) == (np.float32, np.int32)
            np.testing.assert_array_equal(bytes_of(part), pixels.reshape(len(pixels), -1)[numbers(part)])
            np.testing.assert_array_equal(part.y, labels[numbers(part)])
            assert np.all(bytes_of(part)[:, 2] == test)
    assert len(first["val"].x) == TRAIN // 10


def test_one_order_of_the_pixels_a_task(folder):
    """It is found column by column among the first task's training images, and then holds for every part."""
    first, *others = made(PermutedMnist(path=folder, tasks=4))
    where = {column.tobytes(): i for i, column in enumerate(np.ascontiguousarray(first["train"].x.T))}
    assert len(where) == SIDE * SIDE  # no two pixels alike, so that the order is unique
    orders = []
    for task in others:
        order = [where[column.tobytes()] for column in np.ascontiguousarray(task["train"].x.T)]
        assert sorted(order) == list(range(SIDE * SIDE))
        for name, part in task.items():
            np.testing.assert_array_equal(part.x, first[name].x[:, order])
            np.testing.assert_array_equal(part.x[:, np.argsort(order)], first[name].x)
            np.testing.assert_array_equal(part.y, first[name].y)
        orders.append(tuple(order))
    assert len({*orders, tuple(range(SIDE * SIDE))}) == 4


def test_the_permutation_seed_and_the_split_seed(folder):
    three = made(PermutedMnist(path=folder, tasks=3))
    same(three, made(PermutedMnist(path=folder, tasks=5))[:3])
    other = made(PermutedMnist(path=folder, tasks=3, permutation_seed=1))
    same(three[:1], other[:1])
    assert not np.array_equal(three[1]["train"].x, other[1]["train"].x)
    apart = made(PermutedMnist(path=folder, tasks=3, split_seed=1))
    assert set(numbers(three[0]["val"])) != set(numbers(apart[0]["val"]))
    assert sorted(numbers(three[0]["test"])) == sorted(numbers(apart[0]["test"]))
    few = [made(PermutedMnist(path=folder, tasks=2, split_seed=seed, test_rows=20))[0]["test"] for seed in (0, 1)]
    assert set(numbers(few[0])) != set(numbers(few[1]))  # not the file's first: its order is not by chance


def test_orders_of_few_pixels_are_all_found_once():
    found = permutations(23, 4, seed=0)
    assert len({tuple(order) for order in found} | {(0, 1, 2, 3)}) == 24
    with pytest.raises(UserError, match=r"data.tasks is 25; allowed: at most 24, the permutations of 4 pixels"):
        permutations(24, 4, seed=0)


# --- two digits at a time


@pytest.mark.parametrize("heads", Heads)
def test_tasks_of_two_digits(folder, heads):
    data = SplitMnist(path=folder, heads=heads).load()
    assert data.shared_head == (heads is Heads.one)
    assert data.outputs == ((10,) if heads is Heads.one else (2,)) * 5
    seen: dict[str, list[int]] = {"train": [], "test": []}
    for task, parts in enumerate(data.tasks):
        for name, part in parts.items():
            pixels, labels = images(*((TEST, True) if name == "test" else (TRAIN, False)))
            np.testing.assert_array_equal(bytes_of(part), pixels.reshape(len(pixels), -1)[numbers(part)])
            digit = labels[numbers(part)]
            assert set(digit) == {2 * task, 2 * task + 1}
            np.testing.assert_array_equal(part.y, digit if heads is Heads.one else digit - 2 * task)
            seen["test" if name == "test" else "train"] += numbers(part).tolist()
    assert sorted(seen["train"]) == list(range(TRAIN))
    assert sorted(seen["test"]) == list(range(TEST))


def test_the_heads_change_the_labels_alone():
    one, each = made(SplitDigits(heads=Heads.one)), made(SplitDigits())
    for task, (mine, theirs) in enumerate(zip(one, each, strict=True)):
        for name in mine:
            np.testing.assert_array_equal(mine[name].x, theirs[name].x)
            np.testing.assert_array_equal(mine[name].y, theirs[name].y + 2 * task)


def test_split_digits_are_scikit_learn_s():
    x, y = load_digits(return_X_y=True)
    tasks = made(SplitDigits(heads=Heads.one))
    found = np.concatenate([np.c_[part.x * 16, part.y] for task in tasks for part in task.values()])
    expected = np.c_[x, y]
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    tested = sum(len(task["test"].x) for task in tasks)
    assert tested == round(1797 / 4)
    for task in tasks:
        assert len(task["val"].x) == round(0.1 * (len(task["train"].x) + len(task["val"].x)))


# --- rotations


def test_quarter_turns_are_exact():
    x, y = load_digits(return_X_y=True)
    tasks = made(RotatedDigits())
    label_of = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    assert len(label_of) == len(x)
    for name, plain in tasks[0].items():
        originals = plain.x.astype(np.float64) * 16
        assert [label_of[row.tobytes()] for row in originals] == plain.y.tolist()
        for turns, task in enumerate(tasks):
            turned = np.rot90(originals.reshape(-1, 8, 8), turns, axes=(1, 2)).reshape(-1, 64)
            np.testing.assert_array_equal(task[name].x, (turned / 16).astype(np.float32))
            np.testing.assert_array_equal(task[name].y, plain.y)


def interpolated(image, angle):
    """Turn a square image counter-clockwise about its middle: what lies where each pixel came from, by hand."""
    side, turned = len(image), np.zeros_like(image)
    middle, radians = (side - 1) / 2, np.deg2rad(angle)
    for row in range(side):
        for column in range(side):
            right, up = column - middle, middle - row
            old_right = right * np.cos(radians) + up * np.sin(radians)
            old_up = up * np.cos(radians) - right * np.sin(radians)
            r, c = middle - old_up, middle + old_right
            if not (0 <= r <= side - 1 and 0 <= c <= side - 1):
                continue
            r0, c0 = min(int(r), side - 2), min(int(c), side - 2)
            for corner_r, corner_c in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = abs(1 - corner_r - (r - r0)) * abs(1 - corner_c - (c - c0))
                turned[row, column] += share * image[r0 + corner_r, c0 + corner_c]
    return turned


def test_other_angles_interpolate():
    tasks = made(RotatedDigits(tasks=5, angle_step=30.0))
    plain = tasks[0]["test"].x[:20].astype(np.float64)
    for step in (1, 2, 4):
        expected = [interpolated(image, 30 * step).ravel() for image in plain.reshape(-1, 8, 8)]
        np.testing.assert_allclose(tasks[step]["test"].x[:20], expected, atol=1e-6)
    turned = np.rot90(plain.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    np.testing.assert_array_equal(tasks[3]["test"].x[:20], turned)  # 90 degrees, exact at this step too
    assert all(part.x.min() >= 0 and part.x.max() <= 1 for task in tasks for part in task.values())


def test_almost_a_quarter_turn_is_almost_the_quarter_turn():
    near = rotation(90 - 1e-9, 8)
    exact = np.eye(64)[:, rotation(90, 8)]
    edge = np.zeros((8, 8), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True  # may turn over the edge
    inside = ~edge.ravel()
    np.testing.assert_allclose(near[:, inside], exact[:, inside], atol=1e-6)


# --- all of them


def test_no_task_is_tested_on_what_it_or_another_was_trained_on(folder):
    for source in every_source(folder):
        plain = [dataclasses.replace(source, tasks=2)] if hasattr(source, "tasks") else [source]
        for task in [task for each in plain for task in made(each)]:
            rows = [rows_of(part) for part in task.values()]
            assert len(set().union(*rows)) == sum(len(part.y) for part in task.values())
    for source in (PermutedMnist(path=folder, tasks=3), RotatedDigits()):
        first, *others = made(source)
        for task in others:
            for name, part in task.items():
                np.testing.assert_array_equal(part.y, first[name].y)
                ink = part.x.astype(np.float64).sum(1)  # no order changes how much there is
                np.testing.assert_allclose(ink, first[name].x.astype(np.float64).sum(1))


def test_split_and_rotated_digits_test_on_the_same_images():
    split, rotated = made(SplitDigits(heads=Heads.one)), made(RotatedDigits())
    assert set().union(*(rows_of(task["test"]) for task in split)) == rows_of(rotated[0]["test"])


@pytest.mark.parametrize("use", ["train", "test"])
def test_more_rows_include_the_fewer_and_nothing_else_changes(folder, use):
    for source in every_source(folder):
        whole = made(source)
        total = min(len(task[use].y) for task in whole)
        before = [set() for _ in whole]
        for count in (1, 6, 10, total):
            few = made(dataclasses.replace(source, **{f"{use}_rows": count}))
            for number, task in enumerate(few):
                rows = rows_of(task[use])
                assert len(task[use].y) == count
                assert before[number] <= rows <= rows_of(whole[number][use])
                before[number] = rows
                same(*([{k: v for k, v in t.items() if k != use}] for t in (task, whole[number])))


def test_fewer_rows_have_as_many_of_each_digit(folder):
    for source in every_source(folder):
        data = dataclasses.replace(source, train_rows=20, test_rows=10).load()
        classes = 2 if len(data.tasks) == 5 else 10
        for task in data.tasks:
            for name, count in (("train", 20), ("test", 10)):
                _, seen = np.unique(task[name].y, return_counts=True)
                assert seen.tolist() == [count // classes] * classes


def test_all_rows_by_number_are_what_null_gives(folder):
    source = PermutedMnist(path=folder, tasks=2)
    counted = dataclasses.replace(source, train_rows=TRAIN * 9 // 10, test_rows=TEST)
    assert counted.load().fingerprint == source.load().fingerprint


def test_without_a_part_to_choose_by(folder):
    for source in every_source(folder):
        data = dataclasses.replace(source, val_fraction=0.0).load()
        assert all(list(task) == ["train", "test"] for task in data.tasks)
        for task, whole in zip(data.tasks, source.load().tasks, strict=True):
            assert list(whole) == ["train", "val", "test"]
            assert len(task["train"].y) == len(whole["train"].y) + len(whole["val"].y)
            np.testing.assert_array_equal(task["test"].x, whole["test"].x)


def test_a_part_is_the_same_each_time_and_not_kept(folder):
    for source in every_source(folder):
        data = source.load()
        same(data.tasks, [dict(task) for task in data.tasks])
        same(data.tasks, source.load().tasks)
        assert data.tasks[1]["train"].x is not data.tasks[1]["train"].x
        assert all(part.x.flags.c_contiguous for _, part in data.parts())


def test_one_part_at_a_time_is_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("train", 4000), ("t10k", 100)):
        write(tmp_path, rng.integers(0, 256, (rows, 20, 20)), np.arange(rows) % 10, name=name)
    data = PermutedMnist(path=str(tmp_path), tasks=12, val_fraction=0.0).load()
    one = 4000 * 400 * 4
    tracemalloc.start()
    try:
        assert sum(part.x.nbytes for _, part in data.parts()) > 12 * one
        assert tracemalloc.get_traced_memory()[1] < 2.5 * one
        tracemalloc.reset_peak()
        assert data.features == (400,)
        assert data.fingerprint
        assert tracemalloc.get_traced_memory()[1] < one
    finally:
        tracemalloc.stop()


def test_what_a_sequence_says_of_itself(folder):
    for source in every_source(folder):
        data = source.load()
        assert data.is_sequence
        assert source.is_sequence
        assert data.kind == "classification"
        assert len(data.outputs) == len(data.tasks)
        assert data.features == data.tasks[0]["train"].x.shape[1:] == ((36,) if "mnist" in repr(source) else (64,))
        assert all(part.y.max() < data.outputs[0] for _, part in data.parts())
        first, *_, last = (name for name, _ in data.parts())
        assert (first, last) == ("task_1_train", f"task_{len(data.tasks)}_test")
    transfer = Diabetes()
    assert not transfer.is_sequence
    assert not transfer.load().is_sequence
    assert (DataSource.is_sequence, Transfer.is_sequence) == (False, False)
    assert (SequenceSource.is_sequence, TaskSequence.is_sequence) == (True, True)


def test_the_fingerprint_knows_the_tasks(folder, tmp_path):
    prints = [source.load().fingerprint for source in every_source(folder)]
    assert prints == [source.load().fingerprint for source in every_source(folder)]
    permuted = PermutedMnist(path=folder, tasks=3)
    others = [{"permutation_seed": 1}, {"split_seed": 1}, {"tasks": 4}, {"val_fraction": 0.2}, {"train_rows": 100}]
    prints += [dataclasses.replace(permuted, **change).load().fingerprint for change in others]
    others = [{"angle_step": 45.0}, {"angle_step": 46.0}, {"tasks": 3}, {"test_fraction": 0.2}, {"test_rows": 100}]
    prints += [dataclasses.replace(RotatedDigits(), **change).load().fingerprint for change in others]
    pixels, labels = images(TEST, test=True)
    pixels[3, 5, 5] ^= 1
    write(tmp_path, *images(TRAIN, test=False))
    write(tmp_path, pixels, labels, name="t10k")
    prints.append(dataclasses.replace(permuted, path=str(tmp_path)).load().fingerprint)
    assert len(set(prints)) == len(prints)
    copied = write(tmp_path, *images(TEST, test=True), name="t10k")
    assert dataclasses.replace(permuted, path=copied).load().fingerprint == prints[0]


# --- what cannot be used

WRONG = [
    ("permuted_mnist", {"tasks": 1}, r"data.tasks is 1; allowed: a whole number >= 2"),
    (
        "permuted_mnist",
        {"train_rows": 271},
        r"data.train_rows is 271; allowed: at most 270, the rows to train on of the",
    ),
    (
        "permuted_mnist",
        {"test_rows": 91},
        r"data.test_rows is 91; allowed: at most 90, the rows to test on of the t10k",
    ),
    ("permuted_mnist", {"test_rows": 0}, r"data.test_rows is 0; allowed: a whole number >= 1"),
    ("permuted_mnist", {"val_fraction": 1.0}, r"data.val_fraction is 1.0; allowed: a number >= 0 and less than 1"),
    ("permuted_mnist", {"val_fraction": 0.001}, r"has 300 rows, which leaves its val part empty"),
    ("permuted_mnist", {"permutation_seed": -1}, r"data.permutation_seed is -1; allowed: a whole number >= 0"),
    ("permuted_mnist", {"path": "nowhere"}, r"data.path=nowhere: there is no such folder"),
    ("permuted_mnist", {"path": "???"}, r"data.path is missing: give it as data.path=..."),
    ("split_mnist", {"heads": "two"}, r"data.heads: Invalid value 'two', expected one of .one, each"),
    (
        "split_mnist",
        {"train_rows": 55},
        r"data.train_rows is 55; allowed: at most 54, the rows to train on of 0 and 1 in",
    ),
    ("split_digits", {"test_rows": 200}, r"data.test_rows is 200; allowed: at most \d+, .* of 0 and 1 in the digits"),
    ("rotated_digits", {"tasks": 1}, r"data.tasks is 1; allowed: a whole number >= 2"),
    ("rotated_digits", {"tasks": 5}, r"data.angle_step is 90 and data.tasks 5; allowed: a step below 90 for so many"),
    ("rotated_digits", {"angle_step": 120}, r"data.angle_step is 120 and data.tasks 4; allowed: a step below 120"),
    ("rotated_digits", {"angle_step": -90}, r"data.angle_step is -90.0; allowed: a finite number > 0"),
    ("rotated_digits", {"test_fraction": 0}, r"data.test_fraction is 0.0; allowed: a number strictly between 0 and 1"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_settings_that_cannot_be_used(folder, name, change, message):
    values = {"name": name, **({"path": folder} if "mnist" in name else {}), **change}
    with pytest.raises(UserError, match=message) as found:
        build("data", OmegaConf.create(values)).load()
    assert "\n" not in str(found.value)


BROKEN = [
    ("t10k", None, r"has no file t10k-images-idx3-ubyte"),
    ("t10k", lambda pixels, labels: (pixels[:, :4], labels), r"of \(6, 6\) pixels to train on and of \(4, 6\) to test"),
    (
        "t10k",
        lambda pixels, labels: (pixels, labels % 9),
        r"the t10k files of data.path=.* hold no image of 9; allowed",
    ),
    ("t10k", lambda pixels, labels: (pixels[:0], labels[:0]), r"the t10k files of data.path=.* hold no image of 0"),
    ("train", lambda pixels, labels: (pixels, labels // 2), r"the train files of data.path=.* hold no image of 5"),
    ("train", lambda pixels, labels: (pixels[:20], labels), r"holds 20 images and 300 labels in its train files"),
    ("train", lambda pixels, labels: (idx(pixels)[:-1], labels), r"a complete file"),
]


@pytest.mark.parametrize("cls", [PermutedMnist, SplitMnist])
@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_files_that_cannot_be_used(tmp_path, cls, name, change, message):
    for which, rows in (("train", TRAIN), ("t10k", TEST)):
        pixels, labels = images(rows, test=which == "t10k")
        if which != name:
            write(tmp_path, pixels, labels, name=which)
        elif change is not None:
            write(tmp_path, *change(pixels, labels), name=which)
    with pytest.raises(UserError, match=message) as found:
        cls(path=str(tmp_path)).load()
    assert "\n" not in str(found.value)


# --- the source's own part to choose by


def test_no_part_of_the_source_to_choose_by_changes_nothing():
    """These fingerprints were taken before there was such a part."""
    assert Diabetes().load().fingerprint == "71aacc99940235bb"
    assert Diabetes(split_seed=4, source_test_fraction=0.3).load().fingerprint == "b0861d40f0065bbd"
    assert Digits(task=DigitsTask.union, train_rows=50).load().fingerprint == "c7c48ad2fbb5f4ea"
    assert list(Diabetes().load().source) == ["train", "test"]


@pytest.mark.parametrize("source", [Diabetes(), Digits(), Synthetic()], ids=["diabetes", "digits", "synthetic"])
def test_a_part_of_the_source_to_choose_by(source):
    plain, kept = source.load(), dataclasses.replace(source, source_val_fraction=0.25).load()
    assert list(kept.source) == ["train", "val", "test"]
    total = sum(len(part.y) for part in plain.source.values())
    assert len(kept.source["val"].y) == int(total * 0.25 + 0.5)
    assert {name for name, _ in kept.parts()} == {*(name for name, _ in plain.parts()), "source_val"}
    raw = source.tables()[0]
    train = np.concatenate([kept.source[name].x.astype(np.float64) for name in kept.source])
    assert len(np.unique(train, axis=0)) == len(np.unique(raw.x, axis=0))  # every row in one part only
    for part in ("train", "val", "test"):  # which rows the target's parts are does not depend on it
        assert len(kept.target[part].y) == len(plain.target[part].y)
        # Inputs are in units of other rows' statistics: the same up to a shift and a scale.
        one, two = (np.ravel(data.target[part].x[:, 2].astype(np.float64)) for data in (plain, kept))
        assert np.corrcoef(one, two)[0, 1] > 1 - 1e-6
        if plain.kind == "classification":
            np.testing.assert_array_equal(kept.target[part].y, plain.target[part].y)
            np.testing.assert_array_equal(kept.source["test"].y, plain.source["test"].y)
    axis = None if raw.image else 0  # pixels share their statistics
    statistics = kept.source["train"].x.astype(np.float64)
    np.testing.assert_allclose(statistics.mean(axis), 0, atol=1e-5)  # of the rows to train on, and of no others
    assert np.abs(kept.source["val"].x.astype(np.float64).mean(axis)).max() > 1e-4


def test_a_source_of_which_nothing_is_left():
    with pytest.raises(UserError, match=r"data.source_val_fraction \+ data.source_test_fraction is 1; allowed: less"):
        Diabetes(source_val_fraction=0.8).load()
    with pytest.raises(UserError, match=r"data.source_val_fraction is 1.0; allowed: a number >= 0 and less than 1"):
        build("data", OmegaConf.create({"name": "diabetes", "source_val_fraction": 1.0}))


# --- the published files


def test_the_published_files():
    folder = Path(os.environ.get("THAW_DATA", "")) / "mnist"
    if not os.environ.get("THAW_DATA") or not folder.is_dir():
        pytest.skip("the published MNIST files are looked for in $THAW_DATA/mnist")
    data = PermutedMnist(path=str(folder), tasks=2, val_fraction=0.0).load()
    assert {name: part.x.shape for name, part in data.parts()} == {
        f"task_{task}_{name}": (rows, 784) for task in (1, 2) for name, rows in (("train", 60000), ("test", 10000))
    }
    # Counts of each digit to test on, and the mean and deviation that the literature standardises MNIST with.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for task in data.tasks:
        assert np.bincount(task["test"].y).tolist() == counts
        pixels = task["train"].x
        found = (pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64))
        np.testing.assert_allclose(found, (0.1307, 0.3081), atol=1e-4)
    split = SplitMnist(path=str(folder)).load()
    assert [len(task["test"].y) for task in split.tasks] == [
        a + b for a, b in zip(counts[::2], counts[1::2], strict=True)
    ]
    assert [len(task["train"].y) + len(task["val"].y) for task in split.tasks] == [12665, 12089, 11263, 12183, 11800]
