"""Language modelling: every token is predicted once, and what is tested on is a block of its own."""

import itertools
import logging

import numpy as np
import pytest

from src.data.language import LmObjective, one_stream
from src.data.plain_text import Documents, PlainText, split_blocks
from src.data.tokenization import Subwords, load_vocabulary
from src.errors import UserError
from src.notices import warn_once
from tests.data.texts import minilm, real, some_texts, word_level, write_word_list


@pytest.fixture(autouse=True)
def _say_again():
    warn_once.cache_clear()


def source(path, **settings):
    return PlainText(path=str(path), **({"tokenizer_cache": None, "vocab_size": 400, "max_seq_len": 16} | settings))


def written(folder, texts, name="a.txt"):
    (folder / name).write_text("\n\n".join(texts) + "\n")
    return str(folder / name)


@pytest.mark.parametrize("length", [8, 9, 100])
def test_a_causal_stream(length):
    words = word_level([f"w{i}" for i in range(60)])
    documents = [np.arange(1, 8, dtype=np.int32), np.arange(10, 40, dtype=np.int32)]
    stream = [*range(1, 8), 0, *range(10, 40), 0]
    x, y = one_stream(documents, length, words, LmObjective.causal)
    there = x[:, 2] == 1
    assert x[:, 0][there].tolist() == stream[:-1]
    assert y[there].tolist() == stream[1:]  # across rows too: no token but the first goes unpredicted
    assert (y[~there] == -1).all()
    assert not x[:, 1].any()
    assert x.shape == (-(-(len(stream) - 1) // length), 3, length)
    assert x.dtype == y.dtype == np.int32


@pytest.mark.parametrize("length", [8, 10, 100])
def test_a_masked_stream(tmp_path, length):
    words = load_vocabulary(write_word_list(tmp_path))
    documents = [np.arange(5, 12, dtype=np.int32), np.array([1, *range(6, 20)], np.int32)]
    x, y = one_stream(documents, length, words, LmObjective.masked)
    ids, there = x[:, 0], x[:, 2] == 1
    assert (ids[:, 0] == words.cls).all()
    read = []
    for row, own in zip(ids, there, strict=True):
        assert row[own][-1] == words.sep
        read += row[own][1:-1].tolist()
    assert read == [*range(5, 12), words.sep, 1, *range(6, 20)]
    np.testing.assert_array_equal(y, np.where(there & (ids > 4), ids, -1))  # 0 to 4 are special


@pytest.mark.parametrize("objective", LmObjective)
def test_documents_side_by_side_do_not_see_each_other(tmp_path, objective):
    texts = some_texts(60)
    subwords = Subwords.bpe if objective is LmObjective.causal else Subwords.wordpiece
    data = source(written(tmp_path, texts), objective=objective, examples=4, subwords=subwords).load()
    words = data.vocabulary
    found = []
    for x, y in data.target.values():
        assert x[:, 2].max() <= 4
        for row, targets in zip(x, y, strict=True):
            for number in range(1, row[2].max() + 1):
                own = row[2] == number
                ids, wanted = row[0][own], targets[own]
                if objective is LmObjective.causal:
                    assert wanted.tolist() == [*ids[1:], -1]
                    found.append(words.decode(ids[:-1]))
                else:
                    assert (ids[0], ids[-1]) == (words.cls, words.sep)
                    np.testing.assert_array_equal(wanted, np.where(np.isin(ids, words.special), -1, ids))
                    found.append(words.decode(ids[1:-1]))
        assert (y[x[:, 2] == 0] == -1).all()

    def letters(pieces):
        return sorted("".join(pieces).replace(" ", "").replace("##", ""))

    assert letters(found) == letters(texts)


def test_blocks_are_contiguous_and_of_the_asked_sizes():
    documents = [f"{i:03d}" * (1 + i % 5) for i in range(200)]
    parts = split_blocks(documents, {"val": 0.1, "test": 0.2}, "here")
    assert list(itertools.chain(*parts.values())) == documents
    total = sum(map(len, documents))
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert sum(map(len, parts[name])) / total == pytest.approx(share, abs=15 / total)
    with pytest.raises(
        UserError, match=r"here has 2 documents, which leaves the val part empty; allowed: more documents"
    ):
        split_blocks(["a" * 50, "b" * 50], {"val": 0.1, "test": 0.5}, "here")


def test_files_folders_and_documents(tmp_path):
    texts = some_texts(30)
    (tmp_path / "many" / "more").mkdir(parents=True)
    for i in range(3):
        written(tmp_path / "many" / ("more" if i == 1 else "."), texts[10 * i : 10 * i + 10], f"{i}.txt")
    (tmp_path / "many" / "readme.md").write_text("not this")
    one = source(written(tmp_path, [*texts[:10], *texts[20:], *texts[10:20]])).load()  # "0", "2", "more/1" in order
    folder = source(tmp_path / "many").load()
    assert folder.fingerprint == one.fingerprint
    whole = source(tmp_path / "many", documents=Documents.files, val_fraction=0.3, test_fraction=0.3)
    assert set(whole.load().target) == {"train", "val", "test"}
    spaced = tmp_path / "spaced.txt"
    spaced.write_text("\n \n" + "\r\n \t\r\n\r\n".join([*texts[:10], *texts[20:], *texts[10:20]]) + "\n\n")
    assert source(spaced).load().fingerprint == one.fingerprint


def test_kinds_and_parts(tmp_path):
    target, before = written(tmp_path, some_texts(60)), written(tmp_path, some_texts(80, 1), "b.txt")
    data = source(target).load()
    assert (data.kind, data.source_kind, data.source, data.new_head) == ("causal", "causal", {}, False)
    assert data.outputs == data.source_outputs == 400
    data = source(target, source_path=before, objective=LmObjective.masked, vocab_size=500).load()
    assert (data.kind, data.source_kind, set(data.source)) == ("masked", "masked", {"train", "test"})
    assert (data.outputs, data.features) == (500, (3, 16))
    assert data.vocabulary.size <= 500
    own = source(target, val_path=before, test_path=before).load()
    for mine, theirs in zip(own.target["val"], own.target["test"], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_fewer_rows(tmp_path):
    path = written(tmp_path, some_texts(100))
    whole = source(path).load()
    total, before = whole.rows()["train"], set()
    for count in (1, 5, 30, total):
        data = source(path, train_rows=count).load()
        rows = {np.r_[x.ravel(), y].tobytes() for x, y in zip(*data.target["train"], strict=True)}
        assert len(data.target["train"].x) == count
        assert before <= rows
        before = rows
        np.testing.assert_array_equal(data.target["test"].x, whole.target["test"].x)
    assert data.fingerprint == whole.fingerprint
    with pytest.raises(UserError, match=f"data.train_rows is {total + 1}; allowed: at most {total}"):
        source(path, train_rows=total + 1).load()


def test_what_the_terminal_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = source(written(tmp_path, some_texts(60))).load()
    tokens = int((data.target["train"].y >= 0).sum())
    assert any(f"{tokens:,} train tokens in {data.rows()['train']} rows" in line for line in caplog.messages)


def test_texts_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "own").mkdir()
    path = written(tmp_path, some_texts(60))
    for given, settings, message in (
        (tmp_path / "empty", {}, r"data.path=.*empty: the folder has no file that ends in .txt"),
        (tmp_path / "none.txt", {}, r"data.path=.*none.txt: there is no such file or folder"),
        (tmp_path / "blank.txt", {}, r"data.path=.*blank.txt has no text; allowed: at least one document"),
        (tmp_path / "latin.txt", {}, r"byte 3 of .*latin.txt \(0xe9\) is not UTF-8"),
        (path, {"val_path": "nowhere"}, r"data.val_path=nowhere: there is no such file or folder"),
        (path, {"val_fraction": 0.5, "test_fraction": 0.5}, r"data.test_fraction \+ data.val_fraction is 1; allowed"),
        (
            path,
            {"objective": LmObjective.masked, "subwords": Subwords.bpe},
            r"has no \[MASK\] token, which masked language",
        ),
    ):
        with pytest.raises(UserError, match=message) as found:
            source(given, **settings).load()
        assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=r"data.tokenizer=.* has 20 tokens and data.vocab_size .* is 12"):
        source(path, tokenizer=write_word_list(tmp_path / "own"), vocab_size=12).load()


def test_shakespeare_is_read_to_the_last_letter(tmp_path):
    play, small = real("tinyshakespeare") / "input.txt", written(tmp_path, some_texts(60))
    settings = {"documents": Documents.files, "subwords": Subwords.bpe, "max_seq_len": 256}
    x, y = source(small, val_path=small, test_path=str(play), **settings).load().target["test"]
    words = source(small, val_path=small, test_path=small, **settings).load().vocabulary
    assert words.decode(np.append(x[0, 0, :1], y[y >= 0])) == play.read_text().strip("\n")


def test_published_articles():
    folder = real("wikitext2_small")
    data = source(
        folder / "valid.txt",
        test_path=str(folder / "test.txt"),
        objective=LmObjective.masked,
        tokenizer=minilm(),
        vocab_size=None,
    ).load()
    assert data.outputs == 30522
    for part in data.target.values():
        assert np.mean(part.x[:, 2] == 0) < 0.01
