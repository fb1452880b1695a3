"""Data sources against scikit-learn's own loaders and re-computed statistics."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from src.data.base import DataSource, Table
from src.data.csv import Csv, LabelKind
from src.data.diabetes import Diabetes, Sex
from src.data.digits import Digits
from src.data.synthetic import Synthetic
from src.errors import UserError


def test_diabetes_is_scikit_learn_s():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    first, second, kind = Diabetes().tables()
    chosen = x[:, 1] == 1
    assert kind == "regression"
    assert (len(first.x), len(second.x)) == (235, 207)
    np.testing.assert_array_equal(first.x, np.delete(x, 1, axis=1)[chosen])
    np.testing.assert_array_equal(second.y, y[~chosen])
    swapped = Diabetes(pretrain_on=Sex.second).tables()
    np.testing.assert_array_equal(swapped[0].x, second.x)


def test_digits_are_scikit_learn_s():
    x, y = load_digits(return_X_y=True)
    low, high, kind = Digits().tables()
    assert kind == "classification"
    np.testing.assert_array_equal(low.x, x[y < 5] / 16)
    np.testing.assert_array_equal(high.y, y[y >= 5])
    data = Digits().load()
    assert data.new_head
    assert (data.source_outputs, data.outputs) == (5, 5)
    assert set(data.target["train"].y.tolist()) == {0, 1, 2, 3, 4}


def test_statistics_come_from_the_pretraining_rows_alone():
    data = Diabetes().load()
    train = data.source["train"]
    np.testing.assert_allclose(train.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.x.std(0), 1, atol=1e-6)
    np.testing.assert_allclose((train.y.mean(), train.y.std()), (0, 1), atol=1e-6)
    # The target part is in the same units: undoing the source's scaling gives the raw table's rows back.
    source, target, _ = Diabetes().tables()
    raw = {tuple(np.round(row, 4)) for row in target.x}
    seen = {"test": 0.2}
    from src.data.base import split_off

    kept = split_off(source, np.random.default_rng(0), seen)["train"][0]
    for part in data.target.values():
        for row in part.x:
            assert tuple(np.round(row * kept.std(0) + kept.mean(0), 4)) in raw


def test_parts_are_disjoint_and_complete():
    data = Diabetes().load()
    sizes = {name: len(part.x) for name, part in data.parts()}
    assert sizes == {"source_train": 188, "source_test": 47, "train": 103, "val": 52, "test": 52}
    rows = [row.tobytes() for part in data.target.values() for row in part.x]
    assert len(set(rows)) == len(rows) == 207


def test_the_fingerprint_knows_the_data():
    first = Diabetes().load().fingerprint
    assert first == Diabetes().load().fingerprint
    others = [Diabetes(split_seed=1), Diabetes(val_fraction=0.3), Diabetes(pretrain_on=Sex.second), Digits()]
    assert len({first, *(source.load().fingerprint for source in others)}) == 5


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_synthetic_similarity(similarity):
    """The correlation of the two teachers' targets on shared inputs follows the knob; at 1 they are one function."""
    source = Synthetic(similarity=similarity, noise=0.0, teacher_width=400, source_rows=3, target_rows=3)
    rng = np.random.default_rng(0)
    first, other = ([rng.standard_normal((400, 10)), rng.standard_normal(400)] for _ in range(2))
    s = similarity
    mixed = [s * a + np.sqrt(1 - s**2) * b for a, b in zip(first, other, strict=True)]
    pre, fine, _ = source.tables()
    np.testing.assert_allclose(pre.y, np.tanh(pre.x @ first[0].T / np.sqrt(10)) @ first[1])
    np.testing.assert_allclose(fine.y, np.tanh(fine.x @ mixed[0].T / np.sqrt(10)) @ mixed[1])


def test_a_constant_feature_is_only_centred():
    @dataclasses.dataclass(frozen=True)
    class Flat(DataSource):
        def tables(self):
            x = np.c_[np.full(40, 7.0), np.arange(40.0)]
            return Table(x, np.arange(40.0), "a"), Table(x + 1, np.arange(40.0), "b"), "regression"

    data = Flat().load()
    np.testing.assert_allclose(data.source["train"].x[:, 0], 0)
    np.testing.assert_allclose(data.target["train"].x[:, 0], 1)


def write(path, text):
    path.write_text(text)
    return str(path)


HEAD = "a,b,y\n"
GOOD = HEAD + "\n".join(f"{i},{i % 3},{i * 2}" for i in range(20))


def test_csv_reads_columns_by_name(tmp_path):
    swapped = "y,b,a\n" + "\n".join(f"{i * 2},{i % 3},{i}" for i in range(20))
    source = Csv(
        source_path=write(tmp_path / "s.csv", GOOD),
        target_path=write(tmp_path / "t.csv", swapped),
        label="y",
        features=("a", "b"),
    )
    first, second, kind = source.tables()
    assert kind == "regression"
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.y, second.y)


def test_csv_classification_with_text_labels(tmp_path):
    def table(labels):
        return "a,y\n" + "\n".join(f"{i},{labels[i % len(labels)]}" for i in range(20))

    def loaded(source, target):
        first, second = write(tmp_path / "s.csv", table(source)), write(tmp_path / "t.csv", table(target))
        return Csv(source_path=first, target_path=second, label="y", kind=LabelKind.classification).load()

    data = loaded(["cat", "dog"], ["cow", "ant", "bee"])
    assert (data.source_outputs, data.outputs, data.new_head) == (2, 3, True)
    same = loaded(["cat", "dog"], ["dog", "cat"])
    assert (same.outputs, same.new_head) == (2, False)
    for target, named in (
        (["cow", "dog", "cat"], r"\(cow in data.target_path=\S+ only\)"),
        (["cat", "cow"], r"\(dog in data.source_path=\S+ only, cow in data.target_path=\S+ only\)"),
    ):
        with pytest.raises(UserError, match=rf"share some of their classes and not all {named}; allowed: the same"):
            loaded(["cat", "dog"], target)
    with pytest.raises(UserError, match=r"\(3, 4 in data.source_path=\S+ only\)"):  # a subset would be numbered anew
        loaded([1, 2, 3, 4], [1, 2])


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (None, {}, r"data.target_path=.*t.csv: there is no such file"),
        ("a,c,y\n1,2,3", {"features": ("a", "b")}, "has no column 'b'.*it has a, c, y"),
        ("a,b,z\n1,2,3", {}, "data.label: .* has no column 'y'.*it has a, b, z"),
        ("a,y\n1,2\n2,3", {}, r"t.csv has no column b, which the other file has; allowed: .*data.features"),
        ("a,b,c,y\n1,2,3,4", {}, r"s.csv has no column c, which the other file has"),
        ("y,b,a\n1,2,3", {}, r"t.csv has the column 'b' where .*s.csv has 'a'"),
        ("a,b,a,y\n1,2,3,4", {}, "has the column 'a' twice"),
        (HEAD + "0,1,2,3\n" * 9, {}, "more cells than its header; allowed"),
        (HEAD + "0,1,2,3\n" + "1,2,3\n" * 9, {}, "more cells than its header"),
        (HEAD + "1,oops,2\n" * 9, {}, "column 'b' holds 'oops'; allowed: numbers"),
        (HEAD + "1,2,bad\n" * 9, {}, "column 'y' holds 'bad'; allowed: numbers"),
        (HEAD + "1,2,3\n1,,3\n" * 9, {}, "9 missing or infinite values in x, the first in row 1"),
        (HEAD + "1,2,3\n1,2,\n" * 9, {}, "column 'y' has no value in row 1"),
        (HEAD + "1,inf,3\n" * 9, {}, "missing or infinite"),
        (HEAD, {}, "has no rows below its header"),
        (HEAD + "1,2,3", {}, "1 rows, which leaves its"),
        ("", {}, "cannot be read as CSV"),
        (HEAD + "1,2,3\n1,2,3,4,5\n", {}, "cannot be read as CSV"),
        (HEAD + "1,2,3\n" * 9, {"features": ("a", "y")}, "names the label 'y'"),
        (HEAD + "1,2,3\n" * 9, {"kind": LabelKind.classification}, "one label only"),
        (
            HEAD + "1,2,0.5\n1,2,1\n" * 9,
            {"kind": LabelKind.classification},
            "column 'y' holds 0.5; allowed with data.kind",
        ),
        (
            HEAD + "".join(f"1,2,{i}\n" for i in range(51)),
            {"kind": LabelKind.classification},
            "column 'y' holds 51 different values; allowed with data.kind=classification: at most 50",
        ),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, target, settings, message):
    paths = {"source_path": write(tmp_path / "s.csv", GOOD), "target_path": str(tmp_path / "t.csv")}
    if target is not None:
        write(tmp_path / "t.csv", target)
    with pytest.raises(UserError, match=message):
        Csv(**{**paths, "label": "y", **settings}).load()


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b,y\n\xff\xfe,1,2\n")
    with pytest.raises(UserError, match="cannot be read as CSV"):
        Csv(source_path=write(tmp_path / "s.csv", GOOD), target_path=str(tmp_path / "t.csv"), label="y").load()


def test_rows_of_x_and_y_must_be_as_many():
    from src.data.base import check_table

    with pytest.raises(UserError, match="has 3 rows of x and 4 of y"):
        check_table(Table(np.zeros((3, 2)), np.zeros(4), "it"), "regression")
