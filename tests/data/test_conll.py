"""Tags of words: converted, at the first piece of their word, and refused where they are none."""

import logging
from collections import Counter

import numpy as np
import pytest

from src.data.conll import Conll, align_tags, read_sentences, to_iob2
from src.data.tokenization import load_vocabulary
from src.errors import UserError
from src.metrics.text import entities
from src.notices import warn_once
from tests.data.texts import minilm, real, write_word_list

TEXT = """-DOCSTART- -X- O

The X I-PER
cats X I-PER
saw X B-PER
playing X O

-DOCSTART- -X- O

a X I-LOC
dog X I-PER
"""


@pytest.fixture(autouse=True)
def _say_again():
    warn_once.cache_clear()


@pytest.mark.parametrize(
    ("iob1", "iob2"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),
        ("I-A B-A I-A", "B-A B-A I-A"),
        ("I-A I-B I-B", "B-A B-B I-B"),
        ("O O", "O O"),
        ("B-A I-A O B-B B-B", "B-A I-A O B-B B-B"),  # IOB2 stays as it is
        ("", ""),
    ],
)
def test_iob1_becomes_iob2(iob1, iob2):
    assert to_iob2(iob1.split()) == iob2.split()
    assert entities(iob2.split(), strict=True) == entities(iob1.split())  # the same entities


def test_sentences():
    assert read_sentences(TEXT, 0, None, "here") == [
        (["The", "cats", "saw", "playing"], ["B-PER", "I-PER", "B-PER", "O"]),
        (["a", "dog"], ["B-LOC", "B-PER"]),
    ]
    assert read_sentences("B-A x\tword\r\n".replace("\r", ""), 2, 0, "here") == [(["word"], ["B-A"])]


def test_the_first_piece_has_the_tag(tmp_path):
    words = load_vocabulary(write_word_list(tmp_path))
    number = {word: words.encode([word])[0] for word in ("the", "cats", "saw", "playing")}
    pieces = [number[word] for word in ("the", "cats", "saw", "playing")]
    whole = align_tags(pieces, [4, 5, 6, 7], words, 8)
    assert whole.example.ids.tolist() == [2, 5, 6, 17, 8, 15, 16, 3]
    assert whole.labels.tolist() == [-1, 4, 5, -1, 6, 7, -1, -1]
    assert not whole.truncated
    for length in (7, 6):  # no half words
        short = align_tags(pieces, [4, 5, 6, 7], words, length)
        assert short.example.ids.tolist() == [2, 5, 6, 17, 8, 3]
        assert short.truncated
    assert align_tags(pieces, [4, 5, 6, 7], words, 5).labels.tolist() == [-1, 4, 5, -1, -1]


@pytest.mark.parametrize("examples", [1, 5])
def test_rows_hold_every_tag_in_its_place(tmp_path, examples):
    path = tmp_path / "a.txt"
    path.write_text(TEXT * 20)
    data = Conll(path=str(path), tokenizer=write_word_list(tmp_path), max_seq_len=32, examples=examples).load()
    assert data.kind == "labels"
    assert data.labels == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    assert (data.outputs, data.source, data.new_head) == (5, {}, True)
    counts = Counter()
    for x, y in data.target.values():
        assert y.shape == x[:, 0].shape
        assert (y[x[:, 2] == 0] == -1).all()
        for row, labels in zip(x, y, strict=True):
            for number in range(1, row[2].max() + 1):
                own = row[2] == number
                tags = tuple(data.labels[i] for i in labels[own] if i >= 0)
                counts[data.vocabulary.decode(row[0][own]), tags] += 1
    assert counts == {
        ("the cats saw playing", ("B-PER", "I-PER", "B-PER", "O")): 20,
        ("a dog", ("B-LOC", "B-PER")): 20,
    }


def test_fewer_rows_and_cuts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "a.txt"
    path.write_text(TEXT * 20)
    words = write_word_list(tmp_path)
    whole = Conll(path=str(path), tokenizer=words, max_seq_len=8).load()
    few = Conll(path=str(path), tokenizer=words, max_seq_len=8, train_rows=7).load()
    assert (whole.rows()["train"], few.rows()["train"]) == (32, 7)
    np.testing.assert_array_equal(few.target["train"].x, whole.target["train"].x[:7])
    np.testing.assert_array_equal(few.target["test"].y, whole.target["test"].y)
    assert not any("cut to" in line for line in caplog.messages)
    longer = TEXT.replace("a X I-LOC", "a X I-LOC\n" + "dogs X O\n" * 5 + "a X O")
    path.write_text(longer * 20)
    Conll(path=str(path), tokenizer=words, max_seq_len=8).load()
    assert any("data.max_seq_len=8 truncated" in line and "of 32 (train)" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a O\nb\n", {}, "has 1 columns in line 2; allowed: at least 2"),
        ("a x O\nb x O\n", {"tag_column": 3}, "has 3 columns in line 1; allowed: at least 4"),
        ("a E-PER\n", {}, "has the tag 'E-PER' in line 1; allowed: O, B-... and I-..."),
        ("a I-\n", {}, "has the tag 'I-' in line 1"),
        ("\n\n", {}, "has no sentences"),
        ("a O\n\n" * 20, {}, "has no entities to train on"),
        (b"a O\n\xff O\n", {}, r"byte 4 of .* \(0xff\) is not UTF-8"),
        ("a I-X\n\n" * 20, {"val_path": "b.txt"}, "the val part has entities of type 'Y', which .* allowed: X"),
        ("a I-X\n\n" * 20, {"val_path": "no.txt"}, "data.val_path=no.txt: there is no such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, monkeypatch, content, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "b.txt").write_text("b I-Y\n")
    with pytest.raises(UserError, match=message) as found:
        Conll(path="a.txt", tokenizer=write_word_list(tmp_path), **settings).load()
    assert "\n" not in str(found.value)


def test_the_published_entities():
    """WikiGold as published (Balasuriya et al. 2009): 39,007 words; each entity once after its conversion."""
    path = str(real("wikigold") / "wikigold.conll.txt")
    text = (real("wikigold") / "wikigold.conll.txt").read_text()
    sentences = read_sentences(text, 0, None, path)
    assert sum(len(one.words) for one in sentences) == 39007
    kinds = Counter(tag[2:] for one in sentences for tag in one.tags if tag[:2] == "B-")
    assert kinds == {"LOC": 1014, "PER": 934, "ORG": 898, "MISC": 712}
    # Counted another way: runs of one tag in the file, where no entity touches another of its type (it has no B-).
    tags = [line.split()[-1] if line.strip() else "O" for line in text.split("\n")]
    runs = Counter(tag[2:] for before, tag in zip(["O", *tags], tags, strict=False) if tag != "O" and tag != before)
    assert runs == kinds
    data = Conll(path=path, tokenizer=minilm(), max_seq_len=256).load()
    first = [data.labels[i] for part in data.target.values() for i in part.y[part.y >= 0]]
    assert len(first) == 39007  # nothing was cut
    assert Counter(tag[2:] for tag in first if tag[:2] == "B-") == kinds
