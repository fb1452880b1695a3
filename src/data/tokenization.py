"""Tokenizers: a model's own, or one trained on the corpus and stored.

Texts are encoded without special tokens; :mod:`src.data.packing` adds them, so that truncation can be counted.
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

from ..errors import UserError, first_line
from ..store import key_of, stored

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Subwords = Enum("Subwords", ["wordpiece", "bpe"])

UNKNOWN = "[UNK]"
END_OF_TEXT = "<|endoftext|>"  # the only special token of GPT-2
WORDPIECE_SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
TRAINED_SIZE = 8192  # tokens, if the model does not limit them
TOKENIZER = "tokenizer.json"  # the library's name for its file
FORMAT = 1  # of the training procedure: part of a stored tokenizer's key


class Pieces(NamedTuple):
    """A text as tokens."""

    ids: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, "T 2"]  # first character of each token, and the one after its last


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer with the ids of its special tokens; ``None`` where it has no such token."""

    backend: Tokenizer
    origin: str  # the configuration key that errors name
    cls: int | None  # at the start of an example
    sep: int | None  # at the end of a text: [SEP], or the end-of-text token of GPT-2
    mask: int | None
    unknown: int | None
    pad: int  # 0 if there is none: padding is recognised by its example number 0

    @functools.cached_property
    def size(self) -> int:
        """The rows that the model's embedding table needs: the highest id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def cls_ids(self) -> list[int]:
        """The tokens at the start of an example: one or none."""
        return [] if self.cls is None else [self.cls]

    @property
    def sep_ids(self) -> list[int]:
        """The tokens at the end of a text: one or none."""
        return [] if self.sep is None else [self.sep]

    @property
    def special(self) -> tuple[int, ...]:
        """The ids of special tokens, ascending."""
        ids = self.backend.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in ids.items() if token.special))

    @functools.cached_property
    def continuations(self) -> tuple[int, ...]:
        """The ids of WordPiece tokens that continue a word (``##ing``), ascending."""
        ids = self.backend.get_vocab(with_added_tokens=True)
        return tuple(sorted(number for token, number in ids.items() if token.startswith("##")))

    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " T"]]:
        """Return the ids of each text, without special tokens and not truncated."""
        return [np.array(one.ids, np.int32) for one in self._encode(texts)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        """Return the same with the characters that each token spans."""
        found = self._encode(texts)
        return [Pieces(np.array(one.ids, np.int32), np.array(one.offsets, int).reshape(-1, 2)) for one in found]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[list[Int[np.ndarray, " T"]]]:
        """Return the ids of each word of each sentence; a word without tokens becomes one unknown token.

        Words are encoded with a space before them, because a byte-level BPE has most words only in that form.
        """
        distinct = sorted({word for words in sentences for word in words})
        found = self.encode([f" {word}" for word in distinct])
        nothing = np.array([self.pad if self.unknown is None else self.unknown], np.int32)
        pieces = {word: ids if len(ids) else nothing for word, ids in zip(distinct, found, strict=True)}
        return [[pieces[word] for word in words] for words in sentences]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return self.backend.decode([int(number) for number in ids], skip_special_tokens=True)

    def needed(self, name: str, why: str) -> int:
        """Return the id of ``cls``, ``sep`` or ``mask``; the error says what needs it."""
        number = getattr(self, name)
        if number is None:
            raise UserError(f"{self.origin} has no [{name.upper()}] token, which {why} needs; allowed: one that has it")
        return number

    def check_fits(self, vocab_size: int | None) -> None:
        """Refuse ids beyond the model's embedding table: JAX would clamp them silently."""
        if vocab_size is not None and self.size > vocab_size:
            raise UserError(
                f"{self.origin} has {self.size} tokens and data.vocab_size (the model's) is {vocab_size}; "
                "allowed: a tokenizer of at most as many"
            )

    def _encode(self, texts: Sequence[str]) -> list:
        survive_forks()
        return self.backend.encode_batch(list(texts), add_special_tokens=False)


@functools.cache
def survive_forks() -> None:
    """Let forked processes encode on one core, as the library's threads do not survive a fork, without its warning."""
    name = "TOKENIZERS_PARALLELISM"
    if name not in os.environ:
        os.register_at_fork(
            before=lambda: os.environ.__setitem__(name, "false"), after_in_parent=lambda: os.environ.pop(name, None)
        )


def wrap_tokenizer(backend: Tokenizer, origin: str) -> Vocabulary:
    """Wrap a tokenizer without its truncation and padding; "[SEP]" within a text is not a special token."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    pad, unknown, cls, sep, mask, end = map(backend.token_to_id, (*WORDPIECE_SPECIAL, END_OF_TEXT))
    return Vocabulary(
        backend,
        origin,
        cls=cls,
        sep=end if sep is None else sep,
        mask=mask,
        unknown=end if unknown is None else unknown,
        pad=0 if pad is None else pad,
    )


def load_vocabulary(name: str) -> Vocabulary:
    """Return the tokenizer of a folder, a file or a Hub id, from ``tokenizer.json`` or a BERT's ``vocab.txt``."""
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
    except Exception as error:  # the library raises no specific exception
        raise UserError(f"{origin}: {file} is no tokenizer: {first_line(error)}") from error


def from_hub(name: str, origin: str) -> Path:
    """Return the path of a Hub model's tokenizer, downloaded if it is not in the cache."""
    from huggingface_hub import errors, hf_hub_download

    for file in (TOKENIZER, "vocab.txt"):
        try:
            found = Path(hf_hub_download(name, file))
            if file == "vocab.txt":  # whether it is of lower-cased text stands beside it, in most models
                with contextlib.suppress(errors.EntryNotFoundError):
                    hf_hub_download(name, "tokenizer_config.json")
            return found
        except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
            raise UserError(f"{origin}: there is no such folder, and no such model on the Hub") from error
        except errors.LocalEntryNotFoundError as error:  # of a file that was never downloaded, when nobody answers
            raise UserError(
                f"{origin}: there is no such folder, and the Hub cannot be reached to look for a model of that name"
            ) from error
        except errors.EntryNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{origin}: the Hub gave no {file}: {first_line(error)}") from error
    raise UserError(f"{origin}: the model on the Hub has no tokenizer.json and no vocab.txt")


def from_vocab_txt(file: Path, origin: str) -> Tokenizer:
    """Return the WordPiece tokenizer of a BERT's ``vocab.txt``, a token a line in the order of their ids.

    It lower-cases if ``tokenizer_config.json`` says so; without that file, if no token has a capital letter.
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
    """Add BERT's normalisation, pre-tokenisation, decoding and special tokens to a WordPiece model."""
    from tokenizers import decoders

    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(WORDPIECE_SPECIAL))
    return backend


def read_text(file: Path, origin: str) -> str:
    """Return a file's text in UTF-8, without a byte-order mark and with line feeds as line ends."""
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{origin}: there is no such file") from error
    except OSError as error:
        raise UserError(f"{origin}: {file} cannot be read: {error.strerror}") from error
    return decode_utf8(content, str(file), origin)


def decode_utf8(content: bytes, name: str, origin: str) -> str:
    """Return bytes decoded as by :func:`read_text`; ``name`` is what errors call them."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = len(content) - len(error.object)  # the bytes of a byte-order mark, which positions do not count
        raise UserError(
            f"{origin}: byte {error.start + mark} of {name} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "allowed: text in UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def trained_vocabulary(texts: Sequence[str], subwords: Subwords, size: int | None, folder: str | None) -> Vocabulary:
    """Return a tokenizer trained on texts; the same texts always give the same tokenizer.

    It is uncased WordPiece as in BERT (Devlin et al. 2019, arXiv 1810.04805), or byte-level BPE as in GPT-2 (Radford et
    al. 2019), which keeps case and white space, of at most ``size`` (default: 8192) tokens, special ones included. It
    is stored in ``folder``, unless that is ``None``.
    """
    from tokenizers import Tokenizer

    size = size or TRAINED_SIZE
    origin = f"the tokenizer of {size} tokens that is trained on the corpus"
    train = {Subwords.wordpiece: train_wordpiece, Subwords.bpe: train_bpe}[subwords]
    survive_forks()
    backend = stored(
        folder,
        "tokenizer",
        corpus_key(texts, subwords, size),
        lambda: train(texts, size),
        encode=lambda trained: [trained.to_str().encode()],
        decode=lambda content: Tokenizer.from_buffer(bytes(content)),
    )
    return wrap_tokenizer(backend, origin)


def corpus_key(texts: Iterable[str], subwords: Subwords, size: int) -> str:
    """Return the key of a trained tokenizer, which does not depend on the order of the texts."""
    corpus = hashlib.sha256(b"".join(sorted(hashlib.sha256(text.encode()).digest() for text in texts))).hexdigest()
    settings = {"format": FORMAT, "subwords": subwords.name, "size": size, "library": version("tokenizers")}
    return key_of(settings | {"corpus": corpus})


def train_wordpiece(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a WordPiece vocabulary.

    The library numbers the letters within words (``##a``) in the order of a hash table, which differs from call to
    call, and breaks ties between merges by these numbers. As initial tokens they have fixed numbers.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    distinct = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = sorted({letter for word in distinct for letter in word})
    inner = sorted({f"##{letter}" for word in distinct for letter in word[1:]})
    check_vocab_size(size, len(WORDPIECE_SPECIAL) + len(letters) + len(inner))
    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))  # type: ignore[call-arg]
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*WORDPIECE_SPECIAL, *inner], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(iter(texts), trainer)
    # In the trained tokenizer, "##a" is a special token, which would be found in texts; a new one has none of these.
    plain = Tokenizer(models.WordPiece(backend.get_vocab(with_added_tokens=False), unk_token=UNKNOWN))
    return add_bert_steps(plain, normalizer, splitter)


def train_bpe(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a byte-level BPE vocabulary."""
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
    """Refuse a vocabulary that is smaller than its alphabet."""
    if size < least:
        raise UserError(
            f"data.vocab_size is {size}; allowed: at least {least}, the letters of the corpus and the special tokens"
        )
