"""Small texts, a tokenizer of known words, and where real ones are found."""

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from src.data.tokenization import END_OF_TEXT, WORDPIECE_SPECIAL, wrap_tokenizer

WORDS = ["the", "cat", "dog", "saw", "a", "red", "bird", "and", "ran", "away", "play", "##ing", "##s", ".", ","]


def write_word_list(folder, words=WORDS):
    """Write a BERT's ``vocab.txt``: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the words from 5."""
    (folder / "vocab.txt").write_text("\n".join([*WORDPIECE_SPECIAL, *words]) + "\n")
    return str(folder)


def word_level(words, special=END_OF_TEXT):
    """Return a vocabulary of whole words with an end-of-text token only, as GPT-2 has it."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([special, *words])}, unk_token=special))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([special])
    return wrap_tokenizer(backend, "data.tokenizer=words")


def some_texts(count=200, seed=0):
    """Return sentences of made-up words, of 1 to 20 words."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 8))) for _ in range(150)]
    return [" ".join(rng.choice(words, rng.integers(1, 21))) for _ in range(count)]


def real(name):
    """Return a folder of real data, or skip."""
    folder = Path(os.environ.get("THAW_DATA", "")) / name
    if not os.environ.get("THAW_DATA") or not folder.is_dir():
        pytest.skip(f"the published files are looked for in $THAW_DATA/{name}")
    return folder


def minilm():
    """Return the folder of a published WordPiece tokenizer (30,522 tokens, uncased), or skip."""
    folder = os.environ.get("THAW_TOKENIZER", "")
    if not (Path(folder) / "tokenizer.json").is_file():
        pytest.skip("an uncased BERT's tokenizer is looked for in the folder $THAW_TOKENIZER")
    return folder
