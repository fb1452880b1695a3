"""Tokenizers: read from files, trained the same way each time, refused in one sentence."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from src.data import tokenization
from src.data.tokenization import Subwords, corpus_key, load_vocabulary, trained_vocabulary
from src.errors import UserError
from tests.data.texts import WORDS, minilm, some_texts, word_level, write_word_list


def test_a_word_list_is_a_wordpiece_tokenizer(tmp_path):
    found = load_vocabulary(write_word_list(tmp_path))
    assert (found.pad, found.unknown, found.cls, found.sep, found.mask) == (0, 1, 2, 3, 4)
    assert found.special == (0, 1, 2, 3, 4)
    assert found.size == 5 + len(WORDS)
    number = {word: 5 + i for i, word in enumerate(WORDS)}
    # Longest match first: "plays" is "play" and "##s"; a word with a part that is not listed is unknown as a whole.
    (ids,) = found.encode(["The cats, PLAYING . playx"])
    assert ids.tolist() == [number[w] for w in ("the", "cat", "##s", ",", "play", "##ing", ".")] + [1]
    assert ids.dtype == np.int32
    assert found.decode([2, *ids[:-1], 3]) == "the cats, playing."


def test_special_tokens_in_a_text_are_text(tmp_path):
    found = load_vocabulary(write_word_list(tmp_path))
    (ids,) = found.encode(["the [SEP] cat [MASK]"])
    assert not {found.sep, found.mask} & set(ids.tolist())


@pytest.mark.parametrize(
    ("config", "words", "lower"),
    [
        (None, WORDS, True),
        (None, [*WORDS, "Cat"], False),
        ({"do_lower_case": True}, [*WORDS, "Cat"], True),
        ({"do_lower_case": False}, WORDS, False),
    ],
)
def test_whether_a_word_list_is_of_lower_case(tmp_path, config, words, lower):
    write_word_list(tmp_path, words)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (ids,) = load_vocabulary(str(tmp_path / "vocab.txt")).encode(["THE"])
    assert (ids.tolist() == [5]) is lower


def test_words_and_offsets(tmp_path):
    found = load_vocabulary(write_word_list(tmp_path))
    words = found.encode_words([["playing", "\u200b", "dogs"], ["the"]])
    number = {word: 5 + i for i, word in enumerate(WORDS)}
    assert [[ids.tolist() for ids in sentence] for sentence in words] == [
        [[number["play"], number["##ing"]], [1], [number["dog"], number["##s"]]],
        [[number["the"]]],
    ]
    text = "The  dogs ran."
    (pieces,) = found.encode_with_offsets([text])
    assert [text[a:b] for a, b in pieces.offsets] == ["The", "dog", "s", "ran", "."]


@pytest.mark.parametrize("subwords", Subwords)
def test_training_gives_the_same_tokenizer_each_time_and_in_each_process(tmp_path, subwords):
    texts = some_texts()
    first = trained_vocabulary(texts, subwords, 400, None)
    for again in (texts, texts[::-1]):
        other = trained_vocabulary(again, subwords, 400, None)
        assert other.backend.get_vocab() == first.backend.get_vocab()
        assert other.backend.to_str() == first.backend.to_str()
    assert first.size <= 400
    code = (
        "from src.data.tokenization import *; from tests.data.texts import some_texts;"
        f"print(trained_vocabulary(some_texts(), Subwords.{subwords.name}, 400, None).backend.to_str())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first.backend.to_str()
    assert done.stderr == ""


def test_what_is_trained_can_spell_the_corpus():
    texts = some_texts()
    words = trained_vocabulary(texts, Subwords.wordpiece, 300, None)
    for text, ids in zip(texts, words.encode(texts), strict=True):
        assert words.decode(ids) == text
        assert not set(ids.tolist()) & set(words.special)
    assert None not in (words.cls, words.sep, words.mask)
    assert (words.pad, words.unknown, words.cls, words.sep, words.mask) == (0, 1, 2, 3, 4)
    text = 'Bytes:\n\tany "text" goes, \N{SNOWMAN} too\n'
    spelled = trained_vocabulary(texts, Subwords.bpe, 300, None)
    assert spelled.decode(spelled.encode([text])[0]) == text
    assert (spelled.cls, spelled.mask, spelled.sep) == (None, None, 0)


def test_a_trained_tokenizer_is_kept(tmp_path, monkeypatch):
    texts = some_texts(50)
    first = trained_vocabulary(texts, Subwords.wordpiece, 200, str(tmp_path))
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(tokenization, "train_wordpiece", None)  # not called again
    again = trained_vocabulary(texts[::-1], Subwords.wordpiece, 200, str(tmp_path))
    assert again.backend.to_str() == first.backend.to_str()
    assert again.encode(texts)[7].tolist() == first.encode(texts)[7].tolist()
    monkeypatch.undo()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])  # a file that another version wrote, or that is broken, is made again
    trained_vocabulary(texts, Subwords.wordpiece, 200, str(tmp_path))
    assert file.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_key_of_a_trained_tokenizer():
    texts = some_texts(20)
    keys = {
        corpus_key(texts, Subwords.wordpiece, 200),
        corpus_key(texts, Subwords.bpe, 200),
        corpus_key(texts, Subwords.wordpiece, 201),
        corpus_key(texts[1:], Subwords.wordpiece, 200),
        corpus_key(["".join(texts)], Subwords.wordpiece, 200),
    }
    assert len(keys) == 5
    assert corpus_key(texts[::-1], Subwords.wordpiece, 200) in keys


def test_a_vocabulary_that_does_not_fit(tmp_path):
    found = load_vocabulary(write_word_list(tmp_path))
    found.check_fits(None)
    found.check_fits(20)
    with pytest.raises(
        UserError, match=r"has 20 tokens and data.vocab_size \(the model's\) is 19; allowed: a tokenizer"
    ):
        found.check_fits(19)


def test_a_token_that_is_not_there():
    with pytest.raises(UserError, match=r"data.tokenizer=words has no \[MASK\] token, which masking needs; allowed"):
        word_level(["a"]).needed("mask", "masking")


@pytest.mark.parametrize("subwords", Subwords)
def test_a_vocabulary_that_cannot_spell(subwords):
    with pytest.raises(UserError, match=r"data.vocab_size is 15; allowed: at least \d+, the letters of the corpus"):
        trained_vocabulary(some_texts(5), subwords, 15, None)


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"data.tokenizer=.*: the folder has no tokenizer.json and no vocab.txt"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\nword\n")
    with pytest.raises(
        UserError, match=r"vocab.txt has no \[UNK\], \[CLS\], \[SEP\], \[MASK\]; allowed: the vocab.txt"
    ):
        load_vocabulary(str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\nw\xf6rd\n")
    with pytest.raises(UserError, match=r"byte 7 of .*vocab.txt \(0xf6\) is not UTF-8; allowed: text in UTF-8"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer: ") as found:
        load_vocabulary(str(tmp_path))
    assert "\n" not in str(found.value)


def test_a_name_of_the_hub(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    write_word_list(tmp_path)

    def asked(name, file):
        if name == "some/offline":
            raise LocalEntryNotFoundError("cannot connect\nsecond line")
        if not (tmp_path / file).is_file() or name == "some/other":
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    assert load_vocabulary("some/model").encode(["the cat"])[0].tolist() == [5, 6]
    with pytest.raises(
        UserError, match=r"data.tokenizer=some/other: the model on the Hub has no tokenizer.json and no"
    ):
        load_vocabulary("some/other")
    with pytest.raises(UserError, match=r"no such folder, and the Hub cannot be reached to look for a model of that"):
        load_vocabulary("some/offline")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"data.tokenizer=no such name: there is no such folder, and no such model"):
        load_vocabulary("no such name")


def test_processes_that_fork_do_not_warn(tmp_path):
    """The library would warn on stderr, where the variable is unset, when a process forks after its threads ran."""
    code = (
        "import os; from src.data.tokenization import *; from tests.data.texts import some_texts;"
        "trained_vocabulary(some_texts(), Subwords.wordpiece, 300, None).encode(some_texts());"
        "child = os.fork();"
        "trained_vocabulary(some_texts(9), Subwords.wordpiece, 300, None).encode(['a b']);"
        "child or os._exit(0); os.waitpid(child, 0)"
    )
    clean = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean, timeout=60
    )
    assert done.stderr == ""


def test_a_published_tokenizer():
    """Ids as published with the uncased BERT: "[CLS] hello world [SEP]" is 101 7592 2088 102."""
    found = load_vocabulary(minilm())
    assert (found.size, found.cls, found.sep, found.pad, found.mask) == (30522, 101, 102, 0, 103)
    assert found.encode(["Hello world"])[0].tolist() == [7592, 2088]
    assert len(found.encode(["word " * 1000])[0]) == 1000  # its file cuts at 128 and pads: that is ours to do
    words = load_vocabulary(f"{minilm()}/vocab.txt")
    text = ["Na\u00efve caf\u00e9s, isn't it? unbelievably $4.50", "\u6f22\u5b57 and so on..."]
    for mine, theirs in zip(words.encode(text), found.encode(text), strict=True):
        assert mine.tolist() == theirs.tolist()
