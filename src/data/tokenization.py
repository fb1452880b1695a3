"""Words to numbers: a model's own tokenizer, or one that is trained on the corpus and kept.

Texts are encoded without special tokens; :mod:`src.data.packing` frames them, so that truncation is ours to count.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from ..store import Store, key_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Subwords = Enum("Subwords", ["wordpiece", "bpe"])

UNKNOWN = "[UNK]"
END_OF_TEXT = "<|endoftext|>"  # GPT-2's only special token
WORDPIECE_SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
TRAINED_SIZE = 8192  # tokens, where the model does not say
TOKENIZER = "tokenizer.json"  # the library's name for its file
FORMAT = 1  # of what training does: part of the key that a trained tokenizer is kept by


class Pieces(NamedTuple):
    """A text as tokens."""

    ids: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, "T 2"]  # each token's first character in the text, and the one behind its last


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer and the ids that it gives to what is not text; ``None`` where it has no such token."""

    backend: Tokenizer
    origin: str  # the configuration key that errors name
    cls: int | None  # begins an example
    sep: int | None  # ends a text: [SEP], or the end-of-text token of GPT-2
    mask: int | None
    unknown: int | None
    pad: int  # 0 where it has none: what pads is told by the example's number, not by its id

    @functools.cached_property
    def size(self) -> int:
        """The number of rows that the model's table of embeddings needs: the highest id and one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def written(self) -> str:
        """The tokenizer as its library writes it to a file."""
        return self.backend.to_str()

    @property
    def special(self) -> tuple[int, ...]:
        """The ids of what is not text, ascending."""
        ids = self.backend.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in ids.items() if token.special))

    @functools.cached_property
    def continuations(self) -> tuple[int, ...]:
        """The ids of the tokens that continue a word (``##ing``), ascending: a WordPiece's, others do not tell."""
        ids = self.backend.get_vocab(with_added_tokens=True)
        return tuple(sorted(number for token, number in ids.items() if token.startswith("##")))

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " T"]]:
        """Return the ids of each text, without special tokens and not cut."""
        found = self._encode(list(texts))
        return [np.array(one.ids, np.int32) for one in found]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        """Return the same, and which characters each token is made of."""
        found = self._encode(list(texts))
        return [Pieces(np.array(one.ids, np.int32), np.array(one.offsets, int).reshape(-1, 2)) for one in found]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[list[Int[np.ndarray, " T"]]]:
        """Return the ids of each word of each sentence; a word that leaves nothing is one unknown token.

        Words are encoded with a space before them: a byte-level BPE knows most words in that form only.
        """
        distinct = sorted({word for words in sentences for word in words})
        found = self.encode([f" {word}" for word in distinct])
        nothing = np.array([self.pad if self.unknown is None else self.unknown], np.int32)
        pieces = {word: ids if len(ids) else nothing for word, ids in zip(distinct, found, strict=True)}
        return [[pieces[word] for word in words] for words in sentences]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return self.backend.decode([int(number) for number in ids], skip_special_tokens=True)

    def needed(self, name: str, why: str) -> int:
        """Return the id of ``cls``, ``sep`` or ``mask``, or say what it is needed for."""
        number = getattr(self, name)
        if number is None:
            raise UserError(f"{self.origin} has no [{name.upper()}] token, which {why} needs; allowed: one that has it")
        return number

    def check_fits(self, vocab_size: int | None) -> None:
        """Refuse ids that the model has no embedding for; its tables would be read outside, silently."""
        if vocab_size is not None and self.size > vocab_size:
            raise UserError(
                f"{self.origin} has {self.size} tokens and data.vocab_size (the model's) is {vocab_size}; "
                "allowed: a tokenizer of at most as many"
            )

    def _encode(self, texts: list[str]) -> list:
        survive_forks()
        return self.backend.encode_batch(texts, add_special_tokens=False)


@functools.cache
def survive_forks() -> None:
    """Let processes that fork from now on encode on one core, without the library's warning.

    Its threads do not survive a fork: a child that asked for them would wait for ever. Left alone, the library sees to
    it and says so on stderr, each time; where the variable is set, it says nothing. Who has set it is left alone.
    """
    name = "TOKENIZERS_PARALLELISM"
    if name not in os.environ:
        os.register_at_fork(
            before=lambda: os.environ.__setitem__(name, "false"), after_in_parent=lambda: os.environ.pop(name, None)
        )


def wrap_tokenizer(backend: Tokenizer, origin: str) -> Vocabulary:
    """Wrap a tokenizer; what its file says of truncation and padding is left aside, and "[SEP]" in a text is text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    def number(*names: str) -> int | None:
        return next((found for name in names if (found := backend.token_to_id(name)) is not None), None)

    pad = number("[PAD]")
    return Vocabulary(
        backend,
        origin,
        cls=number("[CLS]"),
        sep=number("[SEP]", END_OF_TEXT),
        mask=number("[MASK]"),
        unknown=number(UNKNOWN, END_OF_TEXT),
        pad=0 if pad is None else pad,
    )


# --- a model's own ---------------------------------------------------------------------------------------------------


def load_vocabulary(name: str) -> Vocabulary:
    """Return the tokenizer in a folder, in a file, or of a model of the Hub by its id.

    It is read from ``tokenizer.json``, or from the ``vocab.txt`` of a WordPiece BERT where there is no such file.

    Raises:
        UserError: there is none, it cannot be read, or the Hub cannot be asked.
    """
    from tokenizers import Tokenizer

    origin = f"data.tokenizer={name}"
    path = Path(name)
    files = [path] if path.is_file() else [path / file for file in (TOKENIZER, "vocab.txt")]
    if path.is_dir() and not any(file.is_file() for file in files):
        raise UserError(f"{origin}: the folder has no tokenizer.json and no vocab.txt")
    file = next((file for file in files if file.is_file()), None) or from_hub(name, origin)
    if file.suffix == ".txt":
        return wrap_tokenizer(from_vocab_txt(file, origin), origin)
    try:
        return wrap_tokenizer(Tokenizer.from_file(str(file)), origin)
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{origin}: {file} is no tokenizer: {str(error).splitlines()[0]}") from error


def from_hub(name: str, origin: str) -> Path:
    """Return where the tokenizer of a model of the Hub lies on disk, downloaded if it has not been.

    Raises:
        UserError: no such model, no tokenizer in it, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    for file in (TOKENIZER, "vocab.txt"):
        try:
            found = Path(hf_hub_download(name, file))
            if file == "vocab.txt":  # whether it is of lower-cased text stands beside it, in most models
                with contextlib.suppress(EntryNotFoundError):
                    hf_hub_download(name, "tokenizer_config.json")
            return found
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise UserError(f"{origin}: there is no such folder, and no such model on the Hub") from error
        except LocalEntryNotFoundError as error:  # of a file that was never downloaded, when nobody answers
            raise UserError(
                f"{origin}: there is no such folder, and the Hub cannot be reached to look for a model of that name"
            ) from error
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{origin}: the Hub gave no {file}: {str(error).splitlines()[0]}") from error
    raise UserError(f"{origin}: the model on the Hub has no tokenizer.json and no vocab.txt")


def from_vocab_txt(file: Path, origin: str) -> Tokenizer:
    """Return the WordPiece tokenizer of a BERT's ``vocab.txt``: a token a line, its number is its id.

    Whether it is of lower-cased text says ``do_lower_case`` of the ``tokenizer_config.json`` beside it; without one, a
    list that has no capital letter outside of brackets is.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = read_text(file, origin).split("\n")
    ids = {word: number for number, word in enumerate(words) if word}
    missing = [token for token in WORDPIECE_SPECIAL if token not in ids]
    if missing:
        raise UserError(f"{origin}: {file} has no {', '.join(missing)}; allowed: the vocab.txt of a BERT")
    lower = not any(word != word.lower() for word in ids if not word.startswith("["))
    config = file.parent / "tokenizer_config.json"
    if config.is_file():
        try:
            lower = bool(json.loads(config.read_text("utf-8")).get("do_lower_case", lower))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{origin}: {config} is no JSON object") from error
    backend = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    return add_bert_steps(backend, normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer())


def add_bert_steps(backend: Tokenizer, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """Give a WordPiece model what stands before and behind it in a BERT."""
    from tokenizers import decoders

    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(WORDPIECE_SPECIAL))
    return backend


def read_text(file: Path, origin: str) -> str:
    """Return a file's text without a byte-order mark, its lines ended by a line feed.

    Raises:
        UserError: it cannot be read, or is not UTF-8; the message names the file and the byte.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{origin}: {file} cannot be read: {error.strerror}") from error
    return decode_utf8(content, str(file), origin)


def decode_utf8(content: bytes, name: str, origin: str) -> str:
    """Return what bytes are in UTF-8, as :func:`read_text` does; ``name`` is what errors call them."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = len(content) - len(error.object)  # where it begins with one, positions count behind it
        raise UserError(
            f"{origin}: byte {error.start + mark} of {name} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "allowed: text in UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- trained here ----------------------------------------------------------------------------------------------------


def trained_vocabulary(texts: Sequence[str], subwords: Subwords, size: int | None, folder: str | None) -> Vocabulary:
    """Return a tokenizer of the texts, at most ``size`` tokens large: the same one for the same texts, always.

    Args:
        texts: the corpus, in any order.
        subwords: WordPiece as in BERT, uncased (Devlin et al. 2019, arXiv 1810.04805), or byte-level BPE as in GPT-2
            (Radford et al. 2019), which keeps capitals and white space.
        size: tokens, special ones included; ``None``: 8192.
        folder: where it is kept; ``None``: nowhere.

    Raises:
        UserError: ``size`` is smaller than the alphabet and the special tokens.
    """
    from tokenizers import Tokenizer

    size = size or TRAINED_SIZE
    origin = f"the tokenizer of {size} tokens that is trained on the corpus"
    store, key = Store(folder, "tokenizer"), corpus_key(texts, subwords, size)
    backend = store.get(key, lambda content: Tokenizer.from_buffer(bytes(content)))
    if backend is None:
        survive_forks()
        backend = {Subwords.wordpiece: train_wordpiece, Subwords.bpe: train_bpe}[subwords](texts, size)
        store.put(key, [backend.to_str().encode()])
    return wrap_tokenizer(backend, origin)


def corpus_key(texts: Iterable[str], subwords: Subwords, size: int) -> str:
    """Return the key of a trained tokenizer; the order of the texts is no matter."""
    corpus = hashlib.sha256()
    for one in sorted(hashlib.sha256(text.encode()).digest() for text in texts):
        corpus.update(one)
    settings = {"format": FORMAT, "subwords": subwords.name, "size": size, "library": version("tokenizers")}
    return key_of(settings | {"corpus": corpus.hexdigest()})


def train_wordpiece(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a WordPiece vocabulary.

    The library numbers the letters inside of words (``##a``) in the order of a hash table, which differs from call to
    call, and breaks ties between merges by those numbers. Given as tokens to begin with, they have their numbers.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = (word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    distinct = set(words)
    letters = sorted({letter for word in distinct for letter in word})
    inner = sorted({f"##{letter}" for word in distinct for letter in word[1:]})
    check_vocab_size(size, len(WORDPIECE_SPECIAL) + len(letters) + len(inner))
    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))  # type: ignore[call-arg]
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*WORDPIECE_SPECIAL, *inner], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(iter(texts), trainer)
    # Anew: to the trained one, "##a" is a special token that it finds in texts.
    plain = Tokenizer(models.WordPiece(backend.get_vocab(with_added_tokens=False), unk_token=UNKNOWN))
    return add_bert_steps(plain, normalizer, splitter)


def train_bpe(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    check_vocab_size(size, 1 + len(letters))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(iter(texts), trainer)
    return backend


def check_vocab_size(size: int, least: int) -> None:
    """Refuse a vocabulary that could not even spell."""
    if size < least:
        raise UserError(
            f"data.vocab_size is {size}; allowed: at least {least}, the letters of the corpus and the special tokens"
        )
