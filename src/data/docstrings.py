"""``data=docstrings``: the docstrings and the language reference of the installed Python, without a download."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import logging
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config.hparams import FRACTION, SHARE, hparam
from ..errors import UserError
from ..notices import warn_once
from ..store import key_of, stored
from .base import check_fractions, only_positive, split_rows
from .language import LmObjective, language_rows
from .pairs import LonePolicy, Pairing, pairing_rows, split_sentences
from .text_source import LabeledTexts, TextSource, TextTransfer

DocstringsTask = Enum("DocstringsTask", ["package", "follows"])

# Each has at least 140 usable docstrings. tkinter and idlelib have more, but are not installed everywhere.
PACKAGES = {
    "_pydecimal": "decimal",
    "asyncio": "asyncio",
    "email": "email",
    "importlib": "importlib",
    "logging": "logging",
    "multiprocessing": "multiprocessing",
    "unittest": "unittest",
    "xml": "xml",
}
# Tests, third-party packages, and what only some versions or installations have.
LEFT_OUT = frozenset({"__pycache__", "test", "tests", "idle_test", "site-packages", "dist-packages"}) | frozenset(
    {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle.py", "turtledemo"}
)
LIBRARY = Path(sysconfig.get_path("stdlib"))
SHORTEST = 40  # characters of a docstring, or of two sentences
FEWEST = 40  # docstrings of a package
KEY_WORDS = 3  # first words of a hidden text that a document must contain to be searched
FORMAT = 1  # of the stored docstrings: part of their key
ORIGIN = "data=docstrings"


class Docstring(NamedTuple):
    """One docstring of the standard library."""

    package: str  # top-level package or module
    text: str  # with single spaces


@dataclass(frozen=True)
class Docstrings(TextSource):
    """Pre-train on Python's documentation with masked tokens; fine-tune on classifying docstrings.

    The source task is masked language modelling of the language reference (``pydoc_data.topics``) and of the standard
    library's docstrings. With ``pairs``, rows are two texts of one document, and the objective can also learn whether
    the second is the next one (``next``) or whether they are in order (``order``); ``lone_sentences``: see
    :class:`src.data.pairs.PairRules`. ``task``, the target task: ``package`` predicts which of 8 packages a docstring
    is from, with equal numbers of each; ``follows`` predicts whether a sentence follows the first one of a docstring or
    is from another docstring, half of each.

    Nothing that is tested on was pre-trained on: the corpus excludes documents that contain a docstring of the
    validation or test part (for ``follows``: its two sentences) word for word. Texts of fewer than 40 characters and
    duplicates are left out. The texts differ slightly between versions of Python. ``source_test_fraction`` and
    ``source_val_fraction`` are shares of the corpus's documents.
    """

    task: DocstringsTask = hparam(DocstringsTask.package)
    pairs: Pairing | None = hparam(None)
    lone_sentences: LonePolicy | None = hparam(None)
    source_test_fraction: float = hparam(0.1, FRACTION)
    source_val_fraction: float = hparam(0.0, SHARE)

    def load(self) -> TextTransfer:
        """Read, split and encode."""
        check_fractions(source_val_fraction=self.source_val_fraction, source_test_fraction=self.source_test_fraction)
        library = read_library(self.tokenizer_cache)
        rng = np.random.default_rng(self.split_seed)
        if self.task is DocstringsTask.package:
            chosen = balanced(library, rng)
        else:
            texts = [one.text for one in library if len(two_sentences(one.text)) > 1]
            chosen = LabeledTexts(texts, None, [""] * len(texts), ORIGIN)  # labels follow
        parts = self.split_texts({"train": chosen}, rng)
        hidden = [text for name in ("val", "test") for text in parts[name].first]
        if self.task is DocstringsTask.follows:
            hidden = [" ".join(two_sentences(text)) for text in hidden]
            parts = {name: make_pairs(part) for name, part in parts.items()}
        documents = exclude_containing([*read_topics(), *(one.text for one in library)], hidden)
        shares = only_positive(test=self.source_test_fraction, val=self.source_val_fraction)
        rows = split_rows(len(documents), rng, shares, ORIGIN)
        corpus = {name: [documents[row] for row in part] for name, part in rows.items()}
        counts = ", ".join(f"{len(part.first)} {name} examples" for name, part in parts.items())
        warn_once(f"{ORIGIN}: {counts}", logging.INFO)
        vocabulary = self.vocabulary(lambda: corpus["train"])
        origin = f"{ORIGIN}, the source task"
        if self.pairs is None:
            kind, source = "masked", language_rows(self, corpus, vocabulary, LmObjective.masked, origin)
        else:
            rows = pairing_rows(self, corpus, vocabulary, pairing=self.pairs, lone=self.lone_sentences, origin=origin)
            kind, source = "pretraining", rows
        target = self.labeled_transfer(parts, vocabulary, sorted(set(parts["train"].labels)))
        words = self.num_outputs(vocabulary)
        pairs = self.pairs and self.pairs.name
        return dataclasses.replace(target, source=source, source_kind=kind, source_outputs=words, pairs=pairs)


def balanced(library: Sequence[Docstring], rng: np.random.Generator) -> LabeledTexts:
    """Return docstrings of the 8 packages, as many of each as the smallest has, drawn at random."""
    by_package = {name: [one.text for one in library if one.package == name] for name in PACKAGES}
    name = min(by_package, key=lambda package: len(by_package[package]))
    if (least := len(by_package[name])) < FEWEST:
        raise UserError(
            f"{ORIGIN} finds {least} docstrings of {name} in {LIBRARY}; allowed: an installation of Python "
            f"with the sources of its standard library, which has at least {FEWEST}"
        )
    first, labels = [], []
    for name, texts in by_package.items():
        first += [texts[row] for row in rng.permutation(len(texts))[:least]]
        labels += [PACKAGES[name]] * least
    return LabeledTexts(first, None, labels, ORIGIN)


def two_sentences(text: str) -> list[str]:
    """Return the first two sentences of a text, or the only one."""
    return split_sentences(text)[:2]


def make_pairs(texts: LabeledTexts) -> LabeledTexts:
    """Return the first two sentences of each docstring; every other second sentence is replaced by another docstring's.

    The replacements rotate the second sentences among these docstrings, so no single sentence is informative.
    """
    first, second = map(list, zip(*map(two_sentences, texts.first), strict=True))
    second[1::2] = [*second[3::2], *second[1:2]]
    labels = ["other" if row % 2 else "follows" for row in range(len(first))]
    return LabeledTexts(first, second, labels, texts.origin)


def exclude_containing(documents: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Return the distinct documents, sorted, that contain none of the hidden texts word for word.

    Only documents with a hidden text's first three words in a row are searched for it.
    """
    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for text in hidden:
        by_key[tuple(text.split()[:KEY_WORDS])].append(text)
    sizes = {len(key) for key in by_key}
    kept = []
    for document in sorted(set(documents)):
        words = document.split()
        keys = {tuple(words[i : i + size]) for size in sizes for i in range(len(words))} & by_key.keys()
        if not any(text in document for key in keys for text in by_key[key]):
            kept.append(document)
    return kept


def read_topics() -> list[str]:
    """Return the paragraphs of the language reference that ``help()`` shows."""
    if importlib.util.find_spec("pydoc_data") is None:
        raise UserError(f"{ORIGIN} needs pydoc_data, a part of the standard library that is not installed here")
    from pydoc_data.topics import topics

    paragraphs = (collapse_whitespace(part) for text in topics.values() for part in re.split(r"\n\s*\n", text))
    return [part for part in paragraphs if len(part) >= SHORTEST]


def read_library(cache: str | None) -> list[Docstring]:
    """Return the distinct docstrings of the standard library, ordered by file and line.

    Files are parsed, not imported. This takes some seconds, so the result is stored in the folder ``cache``.
    """
    files = [path for path in sorted(LIBRARY.rglob("*.py")) if is_chosen(path.relative_to(LIBRARY).parts)]
    if not files:
        raise UserError(f"{ORIGIN} finds no sources in {LIBRARY}; allowed: a Python with its standard library")
    return stored(
        cache,
        "docstrings",
        key_of([FORMAT, sys.version, [[str(path), path.stat().st_size] for path in files]]),
        lambda: parsed(tuple(files)),
        encode=lambda found: [json.dumps(found).encode()],
        decode=lambda content: [Docstring(*one) for one in json.loads(bytes(content))],
    )


def is_chosen(parts: tuple[str, ...]) -> bool:
    """Return whether a file of the standard library, by the parts of its path, is read."""
    return not LEFT_OUT.intersection(parts) and not parts[0].startswith("config-")


@functools.lru_cache(maxsize=1)
def parsed(files: tuple[Path, ...]) -> list[Docstring]:
    """Return the distinct docstrings of source files."""
    found: dict[str, str] = {}
    for path in files:
        package = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
        for text in docstrings_of(path.read_bytes()):
            if len(text) >= SHORTEST:
                found.setdefault(text, package)
    return [Docstring(package, text) for text, package in found.items()]


def docstrings_of(source: bytes) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions in order; none if it cannot be parsed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, for instance of invalid escapes
        try:
            module = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    todo: list[ast.AST] = [module]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield collapse_whitespace(ast.get_docstring(node, clean=False) or "")
        inner = [getattr(node, name, None) for name in ("body", "orelse", "handlers", "finalbody")]
        todo += [below for nodes in reversed(inner) if isinstance(nodes, list) for below in reversed(nodes)]


def collapse_whitespace(text: str) -> str:
    """Return a text with every run of white space replaced by one space."""
    return " ".join(text.split())
