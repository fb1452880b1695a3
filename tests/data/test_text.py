"""LabeledTexts with labels: what is read, how it is split and numbered, and what is refused."""

import json
import logging

import numpy as np
import pytest

from src.data.packing import padding_share
from src.data.text import OnEmpty, Text
from src.data.text_source import LabeledTextSource, LabelKind, Padding, TextSource
from src.errors import UserError
from src.notices import warn_once
from tests.data.texts import minilm, real, some_texts, write_word_list

NAMES = ["good", "bad", "so so"]


@pytest.fixture(autouse=True)
def _say_again():
    warn_once.cache_clear()


def written(folder, texts, labels, name="a.tsv", header="text\tlabel"):
    (folder / name).write_text("\n".join([header, *(f"{t}\t{y}" for t, y in zip(texts, labels, strict=True))]) + "\n")
    return str(folder / name)


def source(path, **settings):
    return Text(path=path, **({"tokenizer_cache": None, "vocab_size": 300} | settings))


def sentences(part, data):
    """Return a part's texts, row by row."""
    return [data.vocabulary.decode(ids) for ids in part.x[:, 0]]


def test_rows_and_labels(tmp_path):
    texts = some_texts(100)
    labels = [NAMES[i % 3] for i in range(100)]
    data = source(written(tmp_path, texts, labels)).load()
    assert (data.kind, data.source, data.new_head, data.outputs) == ("classification", {}, True, 3)
    assert data.labels == ("bad", "good", "so so")
    assert data.rows() == {"train": 80, "val": 10, "test": 10}
    seen = []
    for part in data.target.values():
        assert part.x.dtype == part.y.dtype == np.int32
        assert part.x.shape[1] == 3
        assert part.x.shape[2] % 8 == 0
        ids, types, numbers = part.x.transpose(1, 0, 2)
        assert not types.any()
        assert (ids[:, 0] == data.vocabulary.cls).all()
        for row, number in zip(ids, numbers, strict=True):
            length = number.sum()
            assert number.tolist() == [1] * length + [0] * (len(row) - length)
            assert row[length - 1] == data.vocabulary.sep
        seen += [(text, data.labels[y]) for text, y in zip(sentences(part, data), part.y, strict=True)]
    assert sorted(seen) == sorted(zip(texts, labels, strict=True))
    assert data.features == data.target["test"].x.shape[1:]


def test_the_split_is_the_seed_s(tmp_path):
    path = written(tmp_path, some_texts(60), [i % 2 for i in range(60)])
    data = [source(path, split_seed=seed).load() for seed in (0, 0, 1)]
    assert data[0].fingerprint == data[1].fingerprint != data[2].fingerprint


def test_fewer_rows_are_part_of_more_and_nothing_else_changes(tmp_path):
    path = written(tmp_path, some_texts(100), [i % 2 for i in range(100)])
    whole = source(path).load()
    before = set()
    for count in (2, 10, 40, 80):
        data = source(path, train_rows=count).load()
        rows = {np.r_[x.ravel(), y].tobytes() for x, y in zip(*data.target["train"], strict=True)}
        assert len(data.target["train"].y) == count
        assert before <= rows
        before = rows
        if count <= 40:
            assert abs(np.diff(np.bincount(data.target["train"].y)).item()) <= 1
        for name in ("val", "test"):
            for mine, theirs in zip(data.target[name], whole.target[name], strict=True):
                np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(
        UserError, match=r"data.train_rows is 81; allowed: at most 80, the rows to train on of data.path="
    ):
        source(path, train_rows=81).load()


def test_all_formats_say_the_same(tmp_path):
    texts, labels = some_texts(40), [str(i % 4) for i in range(40)]
    texts[3] = 'she said "no", twice'
    tsv = written(tmp_path, texts, labels)
    csv = tmp_path / "a.csv"
    csv.write_text(
        "label,text\r\n"
        + "".join(f'{y},"{t.replace(chr(34), chr(34) * 2)}"\r\n' for t, y in zip(texts, labels, strict=True))
    )
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        "\n".join(json.dumps({"text": t, "label": int(y), "more": [1]}) for t, y in zip(texts, labels, strict=True))
    )
    bare = written(tmp_path, texts, labels, "b.txt", "").replace("b.txt", "c.txt")
    (tmp_path / "c.txt").write_text((tmp_path / "b.txt").read_text().lstrip("\n"))
    marked = tmp_path / "d.tsv"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.tsv").read_bytes())
    prints = {source(str(path)).load().fingerprint for path in (tsv, csv, lines, marked)}
    prints.add(source(bare, header=False, text="0", label="1").load().fingerprint)
    assert len(prints) == 1


def test_pairs_have_two_types(tmp_path):
    words = write_word_list(tmp_path)
    path = tmp_path / "a.tsv"
    path.write_text("label\ta\tb\n" + "1\tthe cat\tthe red bird ran\n0\ta dog\taway\n" * 10)
    data = source(str(path), text="a", second_text="b", tokenizer=words).load()
    row = next(x for x, y in zip(*data.target["train"], strict=True) if y == 1)
    assert row.tolist() == [
        [2, 5, 6, 3, 5, 10, 11, 13, 3, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_files_of_their_own(tmp_path):
    train = written(tmp_path, some_texts(20, 1), [i % 2 for i in range(20)])
    val = written(tmp_path, some_texts(5, 2), [1] * 5, "v.tsv")
    data = source(train, val_path=val).load()
    assert data.rows() == {"train": 18, "val": 5, "test": 2}
    assert data.target["val"].y.tolist() == [1] * 5
    assert sentences(data.target["val"], data) == some_texts(5, 2)  # as they stand in the file
    data = source(train, val_path=val, test_path=train).load()
    assert data.rows() == {"train": 20, "val": 5, "test": 20}
    assert sentences(data.target["train"], data) != some_texts(20, 1)  # shuffled
    assert sorted(sentences(data.target["train"], data)) == sorted(some_texts(20, 1))


def test_regression_is_standardised_by_the_rows_to_train_on(tmp_path):
    values = np.random.default_rng(0).normal(3, 2, 50).round(3)
    data = source(written(tmp_path, some_texts(50), values), kind=LabelKind.regression).load()
    assert (data.kind, data.outputs, data.labels) == ("regression", 1, ())
    y = data.target["train"].y.astype(np.float64)
    assert data.target["train"].y.dtype == np.float32
    np.testing.assert_allclose((y.mean(), y.std()), (0, 1), atol=1e-6)
    mean, deviation = data.scale
    back = np.concatenate([part.y for part in data.target.values()]) * deviation + mean
    np.testing.assert_allclose(sorted(back), sorted(values), rtol=1e-5)


def test_packed_rows_say_the_same(tmp_path):
    texts, labels = some_texts(200), [i % 3 for i in range(200)]
    path = written(tmp_path, texts, labels)
    one, many = source(path, max_seq_len=64).load(), source(path, max_seq_len=64, examples=6).load()
    assert many.kind == "labels"
    for name, part in many.target.items():
        assert part.y.shape == (len(part.x), 6)
        assert part.x.shape[1:] == (3, 64)
        found = []
        for row, y in zip(part.x, part.y, strict=True):
            count = row[2].max()
            assert (y[:count] >= 0).all()
            assert (y[count:] == -1).all()
            found += [(tuple(row[0][row[2] == n + 1].tolist()), y[n]) for n in range(count)]
        alone = one.target[name]
        expected = [(tuple(row[0][row[2] == 1].tolist()), y) for row, y in zip(*alone, strict=True)]
        assert sorted(found) == sorted(expected)
    assert padding_share(many.target["train"].x) < 0.1 < padding_share(one.target["train"].x)


def test_width_of_rows(tmp_path):
    path = written(tmp_path, some_texts(50), [i % 2 for i in range(50)])
    fit = source(path, max_seq_len=128).load()
    longest = max(part.x[:, 2].sum(1).max() for part in fit.target.values())
    assert fit.features[1] == -(-longest // 8) * 8
    assert source(path, max_seq_len=128, padding=Padding.max_length).load().features == (3, 128)


def test_what_the_terminal_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    texts = ["the cat"] * 9 + ["the cat saw the dog and the bird ran away"]
    path = written(tmp_path, texts * 10, [i % 2 for i in range(100)])
    words = write_word_list(tmp_path)
    source(path, tokenizer=words, max_seq_len=8).load()
    (cut,) = [line for line in caplog.messages if "data.max_seq_len=8 truncated" in line]
    total = [int(word) for word in cut.replace("(", " ").split() if word.isdigit()]
    assert sum(total[::2]) == 10
    assert any("80 rows of 8 tokens to train on" in line and "of them padding" in line for line in caplog.messages)
    caplog.clear()
    source(path, tokenizer=words, max_seq_len=16, examples=4).load()
    (line,) = [line for line in caplog.messages if "one in a row they would have 16 tokens" in line]
    assert "80 examples to train on in " in line
    caplog.clear()
    source(path, tokenizer=words, max_seq_len=16, examples=4).load()
    assert caplog.messages == []  # once is enough, however many runs load it


LINES = "text\tlabel\nthe cat\t1\na dog\t0\n"
BROKEN = [
    (LINES + "one\ttwo\tthree\n", {}, r"has 3 columns in line 4; allowed: 2 as above it"),
    (LINES + "\n  \t1\n", {}, r"has 1 empty texts, the first in line 5; allowed: none, or data.empty=skip"),
    (LINES + "a cat\t \n", {}, r"column 'label' has no value in line 4"),
    (LINES, {"text": "txt"}, r"data.text: .* has no column 'txt' \(did you mean 'text'\?\); it has text, label"),
    (LINES, {"header": False}, r"data.text: .* has no column 'text'.*; it has 0, 1"),
    ("text\tlabel\n", {}, "has no rows below its header"),
    (b"text\tlabel\na\xe9b\t1\n", {}, r"byte 12 of .*a.tsv \(0xe9\) is not UTF-8; allowed: text in UTF-8"),
    (b"\xef\xbb\xbftext\tlabel\na\xe9b\t1\n", {}, r"byte 15 of .*a.tsv \(0xe9\) is not UTF-8"),
    ("text\tlabel\n" + "a\t1\n" * 20, {}, r"has one label only \(1\); allowed: at least two"),
    (LINES + "a\tnan\n" * 20, {"kind": LabelKind.regression}, "has the label 'nan'; allowed with a regression: finite"),
    (LINES, {}, "which leaves its (test|val) part empty; give it more"),
    (
        LINES,
        {"val_fraction": 0.5, "test_fraction": 0.6},
        r"data.test_fraction \+ data.val_fraction is 1.1; allowed: less",
    ),
    (LINES, {"kind": LabelKind.regression, "examples": 2}, "data.examples is 2; allowed with a regression: 1"),
]


@pytest.mark.parametrize(("content", "settings", "message"), BROKEN)
def test_files_that_cannot_be_used(tmp_path, content, settings, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as found:
        source(str(path), **settings).load()
    assert "\n" not in str(found.value)


def test_other_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"data.path=nowhere.tsv: there is no such file"):
        source("nowhere.tsv").load()
    (tmp_path / "a.xls").write_text("")
    with pytest.raises(UserError, match=r"a.xls ends in '.xls'; allowed: .csv, .tsv, .txt, .jsonl"):
        source(str(tmp_path / "a.xls")).load()
    (tmp_path / "a.csv").write_text('text,label\n"open,1\n')
    with pytest.raises(UserError, match=r"a.csv cannot be read as CSV in line \d: unexpected end of data"):
        source(str(tmp_path / "a.csv")).load()
    for line, message in (("{", "is no JSON in line 2: "), ("[1]", r"holds \[1\] in line 2; allowed: a JSON object")):
        (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n' + line)
        with pytest.raises(UserError, match=message):
            source(str(tmp_path / "a.jsonl")).load()
    with pytest.raises(TypeError, match="TextSource does not define"):
        TextSource().load()
    with pytest.raises(TypeError, match="LabeledTextSource does not define"):
        LabeledTextSource().load()


def test_labels_that_were_not_trained_on(tmp_path):
    train = written(tmp_path, some_texts(20), ["good", "bad"] * 10)
    test = written(tmp_path, some_texts(2), ["good", "goood"], "t.tsv")
    with pytest.raises(UserError, match=r"data.test_path=.*t.tsv has the label 'goood' \(did you mean 'good'\?\)"):
        source(train, test_path=test).load()


def test_whole_numbers_are_sorted_as_numbers(tmp_path):
    data = source(written(tmp_path, some_texts(60), ["10", "9", "-1"] * 20)).load()
    assert data.labels == ("-1", "9", "10")


def test_empty_texts_are_left_out_where_that_is_asked_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = written(tmp_path, [*some_texts(30), "", " "], [i % 2 for i in range(32)])
    assert sum(source(path, empty=OnEmpty.skip).load().rows().values()) == 30
    assert any("2 of 32 rows have an empty text and are left out" in line for line in caplog.messages)


def test_a_tokenizer_that_is_larger_than_the_model_s_table(tmp_path):
    path = written(tmp_path, some_texts(20), [i % 2 for i in range(20)])
    with pytest.raises(UserError, match=r"data.tokenizer=.* has 20 tokens and data.vocab_size \(the model's\) is 19"):
        source(path, tokenizer=write_word_list(tmp_path), vocab_size=19).load()


def test_the_published_sentences():
    """SST-2's sizes as published (Socher et al. 2013: 6,920, 872 and 1,821), half of the sentences positive."""
    folder = real("sst2")
    files = {"path": f"{folder}/train.tsv", "val_path": f"{folder}/dev.tsv", "test_path": f"{folder}/test.tsv"}
    settings = files | {"header": False, "text": "0", "label": "1", "tokenizer": minilm()}
    one = Text(**settings).load()
    assert one.rows() == {"train": 6920, "val": 872, "test": 1821}
    assert [int(part.y.sum()) for part in one.target.values()] == [3610, 444, 909]
    many = Text(**settings, examples=16).load()
    assert sum(int((part.y >= 0).sum()) for part in many.target.values()) == 6920 + 872 + 1821
    assert padding_share(one.target["train"].x) > 0.6
    assert padding_share(many.target["train"].x) < 0.01


def test_the_published_pairs():
    """The paraphrases as published (Dolan and Brockett 2005): 4,076 and 1,725 pairs, 67.5% and 66.5% of them alike."""
    folder = real("mrpc")
    data = Text(
        path=f"{folder}/msr_paraphrase_train.txt",
        test_path=f"{folder}/msr_paraphrase_test.txt",
        text="#1 String",
        second_text="#2 String",
        label="Quality",
        tokenizer=minilm(),
    ).load()
    counts = data.rows()
    assert (counts["train"] + counts["val"], counts["test"]) == (4076, 1725)
    alike = sum(int(data.target[name].y.sum()) for name in ("train", "val"))
    assert (alike, int(data.target["test"].y.sum())) == (2753, 1147)
