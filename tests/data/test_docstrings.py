"""Python's own words: what is read of them, and that nothing that is tested on was read before."""

import inspect
import json
import logging
import textwrap

import numpy as np
import pytest

from src.data import docstrings
from src.data.docstrings import (
    PACKAGES,
    Docstring,
    Docstrings,
    DocstringsTask,
    collapse_whitespace,
    docstrings_of,
    exclude_containing,
    make_pairs,
    read_library,
)
from src.data.pairs import Pairing
from src.data.text_source import LabeledTexts
from src.errors import UserError
from src.notices import warn_once
from src.objectives.kinds import for_kind
from src.objectives.pairs import MaskedPairs
from tests.data.texts import word_level


@pytest.fixture(autouse=True)
def _say_again():
    warn_once.cache_clear()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def small(monkeypatch):
    """A standard library of 60 made-up docstrings in each of the 8 packages, and as many elsewhere."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 8))) for _ in range(300)]

    def sentence():
        return " ".join(rng.choice(words, 8)).capitalize() + "."

    made = [
        Docstring(name, f"{sentence()} {sentence()} {sentence()}") for name in [*PACKAGES, "other"] for _ in range(60)
    ]
    topics = [sentence() + sentence() for _ in range(50)]
    topics += [f"Before it. {made[i].text} After it." for i in range(0, len(made), 9)]  # quote what may be hidden
    monkeypatch.setattr(docstrings, "read_library", lambda cache: made)
    monkeypatch.setattr(docstrings, "read_topics", lambda: topics)
    return made, topics


def source(**settings):
    return Docstrings(**({"tokenizer_cache": None, "vocab_size": 400, "max_seq_len": 64} | settings))


def squeezed(text):
    return "".join(text.lower().replace("##", "").split())


def decoded(split, data):
    return [squeezed(data.vocabulary.decode(ids)) for ids in split.x[:, 0]]


@pytest.mark.parametrize("task", DocstringsTask)
@pytest.mark.parametrize("examples", [1, 4])
def test_nothing_that_is_tested_on_was_read_before(small, task, examples):
    """Whatever rows it was cut into: the corpus is put together again and searched."""
    data = source(task=task, examples=examples).load()
    read = "".join("".join(decoded(part, data)) for part in data.source.values())
    made, topics = small
    quoted = "".join(map(squeezed, topics))

    def found(split, where):
        rows = [data.vocabulary.decode(row[0][row[2] == n]) for row in split.x for n in range(1, row[2].max() + 1)]
        return [squeezed(row) in where for row in rows]

    if task is DocstringsTask.package:
        assert not any(found(data.target["val"], read) + found(data.target["test"], read))
        assert any(found(data.target["test"], quoted))  # so that leaving out had something to do
        assert np.mean(found(data.target["train"], read)) > 0.5 or examples > 1
        return
    follows = data.labels.index("follows")
    hidden = [row for name in ("val", "test") for row, y in rows_of(data.target[name]) if y == follows]
    texts = [squeezed(data.vocabulary.decode(ids)) for ids in hidden]
    assert len(texts) > 20
    assert set(texts) <= {squeezed(" ".join(docstrings.two_sentences(one.text))) for one in made}
    assert not any(text in read for text in texts)
    assert any(text in quoted for text in texts)


def rows_of(split):
    """Yield each example's ids and its label, packed or not."""
    for x, y in zip(*split, strict=True):
        for number in range(1, x[2].max() + 1):
            yield x[0][x[2] == number], y if np.ndim(y) == 0 else y[number - 1]


def test_packages_are_balanced(small):
    data = source().load()
    assert (data.kind, data.source_kind) == ("classification", "masked")
    assert data.labels == tuple(sorted(PACKAGES.values()))
    assert (data.outputs, data.source_outputs, data.new_head) == (8, 400, True)
    y = np.concatenate([part.y for part in data.target.values()])
    assert np.bincount(y).tolist() == [60] * 8
    few = source(train_rows=16).load()
    assert np.bincount(few.target["train"].y).tolist() == [2] * 8
    assert few.source_fingerprint == data.source_fingerprint  # so that pre-training is shared
    np.testing.assert_array_equal(few.target["test"].x, data.target["test"].x)


def test_the_source_is_masked(small):
    data = source(source_val_fraction=0.1).load()
    assert set(data.source) == {"train", "val", "test"}
    words = data.vocabulary
    for x, y in data.source.values():
        ids = x[:, 0]
        plain_token = (x[:, 2] > 0) & ~np.isin(ids, words.special)
        np.testing.assert_array_equal(y, np.where(plain_token, ids, -1))
        assert y.dtype == np.int32
        assert (ids[:, 0] == words.cls).all()


@pytest.mark.parametrize("pairing", Pairing)
def test_the_source_is_pairs_too(small, pairing, caplog):
    caplog.set_level(logging.INFO)
    data = source(pairs=pairing).load()
    assert (data.kind, data.source_kind, data.source_outputs) == ("classification", "pretraining", 400)
    words = data.vocabulary
    for x, y in data.source.values():
        assert y.shape == (len(x), 1 + x.shape[2])
        assert set(np.unique(y[:, 0])) == {0, 1}
        np.testing.assert_array_equal((x[:, 0] == words.sep).sum(axis=1), 2)
        plain_token = (x[:, 2] > 0) & ~np.isin(x[:, 0], words.special)
        np.testing.assert_array_equal(y[:, 1:], np.where(plain_token, x[:, 0], -1))
    said = [line for line in caplog.messages if "pairs of sentences" in line]
    assert len(said) == len(data.source)
    share = f"{data.source['train'].y[:, 0].mean():.1%} of them false"
    assert share in said[0]
    objective = for_kind("pretraining", data.vocabulary)
    assert isinstance(objective, MaskedPairs)
    assert (objective.mask_id, objective.vocab_size) == (words.mask, words.size)
    alone = source().load()
    assert alone.source_fingerprint != data.source_fingerprint
    for name, part in alone.target.items():
        np.testing.assert_array_equal(part.x, data.target[name].x)


def test_pairs_need_a_mask(small, tmp_path):
    word_level(["a", "b"]).backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has no \[MASK\] token, which pretraining on pairs of sentences needs"):
        source(pairs=Pairing.next, tokenizer=str(tmp_path)).load()


def test_sentences_that_follow(small):
    data = source(task=DocstringsTask.follows).load()
    made = {tuple(map(squeezed, docstrings.two_sentences(one.text))) for one in small[0]}
    assert data.labels == ("follows", "other")
    for x, y in data.target.values():
        assert abs(int((y == 0).sum()) - int((y == 1).sum())) <= 1
        for row, label in zip(x, y, strict=True):
            both = tuple(squeezed(data.vocabulary.decode(row[0][(row[2] > 0) & (row[1] == kind)])) for kind in (0, 1))
            assert (both in made) == (label == 0)


def test_second_sentences_are_handed_round():
    texts = LabeledTexts([f"First {i}. Second {i}. Third." for i in range(7)], None, ["follows"] * 7, "here")
    made = make_pairs(texts)
    assert made.first == [f"First {i}." for i in range(7)]
    assert made.second == [f"Second {i}." for i in (0, 3, 2, 5, 4, 1, 6)]
    assert made.labels == ["follows", "other"] * 3 + ["follows"]


def test_without():
    documents = ["a b c d e f", "x a b c d y", "b c d e", "a b c", "a b c"]
    assert exclude_containing(documents, ["a b c d"]) == ["a b c", "b c d e"]
    assert exclude_containing(documents, ["a b"]) == ["b c d e"]
    assert exclude_containing(documents, []) == sorted(set(documents))


def test_docstrings_are_what_inspect_finds():
    code = textwrap.dedent('''
        """Of the module."""
        class A:
            """Of a class."""
            if True:
                def f(self):
                    """Of a
                    method."""
            async def g(self):
                def inner():
                    "Inside."
        try:
            def h(): 'In a try.'
        except ValueError:
            def h(): 'In a handler.'
        else:
            def k(): b"bytes are none"
        def n(): pass
    ''')
    assert [text for text in docstrings_of(code.encode()) if text] == [
        "Of the module.",
        "Of a class.",
        "Of a method.",
        "Inside.",
        "In a try.",
        "In a handler.",
    ]
    assert list(docstrings_of(b"def (")) == []
    assert next(docstrings_of(json.__loader__.get_source("json").encode())) == collapse_whitespace(inspect.getdoc(json))


@pytest.mark.slow
def test_the_standard_library(cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    data = Docstrings(tokenizer_cache=cache).load()
    assert sum(data.rows()[name] for name in ("train", "val", "test")) >= 8 * 100
    assert data.rows()["source_train"] > 2000
    assert len({one.text for one in read_library(cache)}) == len(read_library(cache))
    monkeypatch.setattr(docstrings, "parsed", None)  # what was read is kept
    again = Docstrings(tokenizer_cache=cache).load()
    assert again.fingerprint == data.fingerprint
    assert any("train tokens in" in line and "rows" in line for line in caplog.messages)
    follows = Docstrings(tokenizer_cache=cache, task=DocstringsTask.follows, examples=4).load()
    assert follows.kind == "labels"


def test_an_installation_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "LIBRARY", tmp_path)
    with pytest.raises(UserError, match=r"data=docstrings finds no sources in .*; allowed: a Python with its standard"):
        source().load()
    (tmp_path / "json.py").write_text('"""' + "Enough words for one docstring of this module. " * 2 + '"""')
    docstrings.parsed.cache_clear()
    with pytest.raises(UserError, match=r"finds 0 docstrings of _pydecimal in .*; allowed: an installation of Python"):
        source().load()
    docstrings.parsed.cache_clear()
