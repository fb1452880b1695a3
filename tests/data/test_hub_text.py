"""Data sets of the Hub, as far as that can be told without one: a package of the same name stands in."""

import sys
import types

import pytest

from src.data.hub_text import HubText
from src.data.text import OnEmpty
from src.errors import UserError
from tests.data.texts import some_texts


class Part(dict):
    """A table as the package has it: columns by name."""

    @property
    def column_names(self):
        return list(self)


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one data set, whose test labels are secret."""
    parts = {
        "train": Part(sentence=some_texts(40), label=[i % 2 for i in range(40)]),
        "validation": Part(sentence=some_texts(6, 1), label=[0, 1] * 3),
        "test": Part(sentence=some_texts(6, 2), label=[-1] * 6),
        "gaps": Part(sentence=["a", None, "b"] * 8, label=[0, 1, 1] * 8),
    }

    def load_dataset(name, subset, split):
        if name == "far/away":
            raise ConnectionError("no network\nat all")
        if split not in parts or (name, subset) != ("some/set", "one"):
            raise ValueError(f"Unknown split {split}\nmore")
        return parts[split]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def source(**settings):
    given = {"dataset": "some/set", "subset": "one", "text": "sentence", "tokenizer_cache": None, "vocab_size": 300}
    return HubText(**(given | settings))


def test_parts_and_labels(hub):
    data = source().load()
    assert data.rows() == {"train": 36, "val": 6, "test": 4}
    assert data.labels == ("0", "1")
    assert data.target["val"].y.tolist() == [0, 1] * 3
    assert [data.vocabulary.decode(ids) for ids in data.target["val"].x[:, 0]] == some_texts(6, 1)
    pairs = source(second_text="sentence").load()
    assert pairs.target["train"].x[:, 1].any()
    gaps = source(train_split="gaps", val_split=None, empty=OnEmpty.skip).load()
    assert sum(gaps.rows().values()) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"text": "sentense"},
            r"data.text: data.dataset=some/set has no column 'sentense' \(did you mean 'sentence'\?\)",
        ),
        ({"test_split": "test"}, "data.test_split=test: data.dataset=some/set has no labels in this split"),
        ({"val_split": "dev"}, "data.dataset=some/set, data.subset=one, data.val_split=dev cannot be loaded: Unknown"),
        ({"train_split": "gaps"}, "data.dataset=some/set, gaps has 8 empty texts, the first in row 1; allowed: none"),
        ({"dataset": "far/away"}, "data.dataset=far/away is not on this disk, and the Hub cannot be reached"),
    ],
)
def test_what_cannot_be_used(hub, settings, message):
    with pytest.raises(UserError, match=message) as found:
        source(**settings).load()
    assert "\n" not in str(found.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"data.dataset=some/set needs the package datasets, .*; install thaw-jax\[hub\]"
    ):
        source().load()
