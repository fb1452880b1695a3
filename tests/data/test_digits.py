"""The changed digits: what is done to which row, and that nothing leaks from one task into another's test."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from src.data.digits import Digits, DigitsTask

CHANGED = [DigitsTask.rotated, DigitsTask.inverted, DigitsTask.both, DigitsTask.union]


@pytest.fixture(scope="module")
def tables():
    return {task: Digits(task=task).tables() for task in CHANGED}


def test_the_default_task_is_scikit_learn_s_table_in_one_unit():
    """Undone with the one mean and deviation of the rows to pre-train on, every part has that table's pixels."""
    x, y = load_digits(return_X_y=True)
    data = Digits().load()
    train = data.source["train"].x.astype(np.float64)
    deviation = 1 / (train.max() - train.min())  # of ink from 0 to 1
    mean = -train.min() * deviation
    for parts, chosen, first in ((data.source, y < 5, 0), (data.target, y >= 5, 5)):
        ink = np.concatenate([part.x * deviation + mean for part in parts.values()])
        labels = np.concatenate([part.y for part in parts.values()]) + first
        found, expected = (np.c_[pixels, digits] for pixels, digits in ((ink, labels), (x[chosen] / 16, y[chosen])))
        found[:, :-1] = np.rint(found[:, :-1] * 16) / 16
        np.testing.assert_allclose(ink, found[:, :-1], atol=1e-6)
        np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    ink = train * deviation + mean
    np.testing.assert_allclose((ink.mean(), ink.std()), (mean, deviation), rtol=1e-5)


def test_the_halves_are_all_digits_each_once(tables):
    """Together they are scikit-learn's table; each digit is in both by equal numbers, whatever the split's seed."""
    x, y = load_digits(return_X_y=True)
    source, target, kind = tables[DigitsTask.inverted]
    assert kind == "classification"
    both = np.concatenate([np.c_[source.x, source.y], np.c_[1 - target.x, target.y]])
    expected = np.c_[x / 16, y]
    np.testing.assert_array_equal(both[np.lexsort(both.T)], expected[np.lexsort(expected.T)])
    assert len({row.tobytes() for row in source.x} & {row.tobytes() for row in 1 - target.x}) == 0
    assert np.abs(np.bincount(source.y) - np.bincount(target.y)).max() <= 1
    other = Digits(task=DigitsTask.inverted, split_seed=5).tables()
    np.testing.assert_array_equal(other[0].x, source.x)
    np.testing.assert_array_equal(other[1].x, target.x)


def test_what_is_done_to_the_images(tables):
    plain = 1 - tables[DigitsTask.inverted][1].x
    rotated, both, union = (tables[task][1].x for task in (DigitsTask.rotated, DigitsTask.both, DigitsTask.union))
    for row in range(0, len(plain), 97):
        image, turned = plain[row].reshape(8, 8), rotated[row].reshape(8, 8)
        for r in range(8):
            for c in range(8):
                assert turned[7 - c, r] == image[r, c]  # a quarter turn, counter-clockwise
    np.testing.assert_array_equal(both, 1 - rotated)
    is_rotated = np.all(union == rotated, axis=1)
    is_inverted = np.all(union == 1 - plain, axis=1)
    assert np.all(is_rotated ^ is_inverted)
    labels = tables[DigitsTask.union][1].y
    per_digit = [np.bincount(labels[chosen]) for chosen in (is_rotated, is_inverted)]
    assert np.abs(per_digit[0] - per_digit[1]).max() <= 1


def test_every_task_sees_the_same_digits_in_the_same_parts():
    """An adapter of one task has then seen no digit that another task tests on; the head is the source's."""
    loaded = {task: Digits(task=task, split_seed=2).load() for task in CHANGED}
    first = loaded[DigitsTask.inverted]
    assert (first.source_outputs, first.outputs, first.new_head) == (10, 10, False)
    low, high = first.source["train"].x.min(), first.source["train"].x.max()  # paper and ink, standardised
    for task, data in loaded.items():
        for part, split in data.source.items():
            np.testing.assert_array_equal(split.x, first.source[part].x)
        for part, split in data.target.items():
            np.testing.assert_array_equal(split.y, first.target[part].y)
            plain = low + high - first.target[part].x.reshape(-1, 8, 8)
            turned = np.rot90(plain, axes=(1, 2))
            allowed = {
                DigitsTask.rotated: [turned],
                DigitsTask.inverted: [low + high - plain],
                DigitsTask.both: [low + high - turned],
                DigitsTask.union: [turned, low + high - plain],
            }[task]
            found = split.x.reshape(-1, 8, 8)
            near = [np.isclose(found, image, atol=1e-5).all(axis=(1, 2)) for image in allowed]
            assert np.any(near, axis=0).all(), (task, part)
    assert len({data.fingerprint for data in loaded.values()}) == 4


@pytest.mark.parametrize("task", list(DigitsTask))
def test_digits_stay_in_the_source_s_units(task):
    """Scaled column by column, the ink of pixels that the source hardly inks would be up to hundreds of deviations."""
    data = Digits(task=task).load()
    train = data.source["train"].x.astype(np.float64)
    np.testing.assert_allclose((train.mean(), train.std()), (0, 1), atol=1e-5)
    assert max(np.abs(part.x).max() for _, part in data.parts()) < 3
    raw = Digits(task=task).tables()[1].x
    assert raw.min() == 0
    assert raw.max() == 1
