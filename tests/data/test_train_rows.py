"""How many labels fine-tuning gets: nested, balanced, and nothing else changes."""

import dataclasses

import numpy as np
import pytest

from src.data.base import DataSource, Table, rank_in_class
from src.data.diabetes import Diabetes
from src.data.digits import Digits, DigitsTask
from src.data.synthetic import Synthetic
from src.errors import UserError

SOURCES = [Diabetes(), Digits(), Digits(task=DigitsTask.union), Synthetic()]
WITH_ALL = pytest.mark.parametrize("source", SOURCES, ids=["diabetes", "digits", "union", "synthetic"])


def loaded(source, rows):
    return dataclasses.replace(source, train_rows=rows).load()


@WITH_ALL
def test_more_rows_include_the_fewer_and_nothing_else_changes(source):
    whole = source.load()
    total = len(whole.target["train"].x)
    before: set[bytes] = set()
    for count in (1, 7, 10, 33, total):
        data = loaded(source, count)
        rows = {np.r_[x, y].tobytes() for x, y in zip(*data.target["train"], strict=True)}
        assert len(data.target["train"].y) == count
        assert before <= rows
        before = rows
        for name, part in whole.parts():
            if name != "train":
                for mine, theirs in zip(dict(data.parts())[name], part, strict=True):
                    np.testing.assert_array_equal(mine, theirs)
        assert (data.outputs, data.source_outputs) == (whole.outputs, whole.source_outputs)
    assert loaded(source, total).fingerprint == whole.fingerprint  # all of them are what null gives


@WITH_ALL
def test_more_than_there_are(source):
    total = len(source.load().target["train"].x)
    with pytest.raises(UserError, match=f"data.train_rows is {total + 1}; allowed: at most {total}, the rows to train"):
        loaded(source, total + 1)


def test_labels_are_balanced():
    for count in (10, 12, 50, 300):
        seen = np.bincount(loaded(Digits(), count).target["train"].y, minlength=5)
        assert seen.max() - seen.min() <= 1, count
    assert np.bincount(loaded(Digits(), 10).target["train"].y).tolist() == [2] * 5
    assert np.bincount(loaded(Digits(task=DigitsTask.rotated), 30).target["train"].y).tolist() == [3] * 10


def test_a_rare_label_gives_all_it_has():
    @dataclasses.dataclass(frozen=True)
    class Rare(DataSource):
        def tables(self):
            labels = np.array(["rare"] * 6 + ["often"] * 94)
            return (
                Table(np.arange(100.0)[:, None], labels, "a"),
                Table(np.arange(100.0)[:, None], labels, "b"),
                "classification",
            )

    whole = np.bincount(Rare().load().target["train"].y)  # "often" is label 0
    assert whole[1] > 1
    seen = np.bincount(Rare(train_rows=40).load().target["train"].y)
    assert seen.tolist() == [40 - whole[1], whole[1]]


def test_a_regression_takes_the_first_of_the_shuffle():
    whole, few = Diabetes().load().target["train"], loaded(Diabetes(), 20).target["train"]
    np.testing.assert_array_equal(few.x, whole.x[:20])
    np.testing.assert_array_equal(few.y, whole.y[:20])


def test_rank_in_class():
    assert rank_in_class(np.array(["a", "b", "a", "a", "c", "b"])).tolist() == [0, 0, 1, 2, 0, 1]


def test_similarity_changes_nothing_but_the_target_s_targets():
    """Which makes a sweep of similarity and train_rows a paired one: the same inputs, the same noise draws."""
    base, other = (Synthetic(similarity=s, train_rows=20).load() for s in (1.0, 0.3))
    for part in ("train", "test"):
        for mine, theirs in zip(base.source[part], other.source[part], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(base.target[part].x, other.target[part].x)
        assert not np.array_equal(base.target[part].y, other.target[part].y)


def test_what_a_similarity_means():
    """Two tasks' targets correlate by s * rho(s), rho the correlation of tanh of two normals that correlate by s.

    For wide teachers W x is normal for given x; rho by Gauss-Hermite quadrature.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    weight = weight / weight.sum()
    for s in (0.3, 0.8):
        other = s * node[:, None] + np.sqrt(1 - s**2) * node[None, :]
        product = weight @ (np.tanh(node)[:, None] * np.tanh(other)) @ weight
        expected = s * product / (weight @ np.tanh(node) ** 2)
        assert abs(expected - s**2) < 0.02
        found = []
        for data_seed in range(40):
            settings = {"teacher_width": 100, "features": 50, "noise": 0.0, "data_seed": data_seed, "target_rows": 200}
            target = Synthetic(similarity=s, source_rows=1, **settings).tables()[1]
            rng = np.random.default_rng(data_seed)
            w, v = rng.standard_normal((100, 50)), rng.standard_normal(100)
            source_targets = np.tanh(target.x @ w.T / np.sqrt(50)) @ v
            found.append(np.corrcoef(source_targets, target.y)[0, 1])
        deviation = np.std(found) / np.sqrt(len(found))
        assert abs(np.mean(found) - expected) < 4 * deviation
        assert deviation < 0.03
