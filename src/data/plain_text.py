"""``data=plain_text``: language modelling of the user's own text files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from ..config.hparams import FRACTION, hparam
from ..errors import UserError
from ..types import Split
from .language import LmObjective, language_rows
from .pairs import LonePolicy, Pairing, pairing_rows
from .text_source import TextFileSource, TextTransfer
from .tokenization import Vocabulary, read_text

Documents = Enum("Documents", ["blank_lines", "files"])
BLANK = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


@dataclass(frozen=True, kw_only=True)
class PlainText(TextFileSource):
    """Text without labels: a file, or a folder of ``.txt`` files in alphabetical order.

    ``objective``: ``causal`` predicts the next token, ``masked`` the masked ones. ``pairs``, beside ``masked``, adds
    pairs of sentences to both tasks, which requires ``model.head=pretraining``; ``lone_sentences``: see
    :class:`src.data.pairs.PairRules`. ``path``: the target task; ``source_path``: the source task, ``null`` with a
    checkpoint. ``documents``: separated by ``blank_lines``, or whole ``files``. ``val_path`` and ``test_path``:
    separate files or folders; ``null`` splits fractions off the end of ``path``, as blocks of whole documents, because
    random documents would have near-duplicates in the training part. ``train_rows`` counts rows, drawn with
    ``split_seed``.
    """

    objective: LmObjective = hparam(LmObjective.causal)
    pairs: Pairing | None = hparam(None)
    lone_sentences: LonePolicy | None = hparam(None)
    source_path: str | None = hparam(None)
    source_test_fraction: float = hparam(0.1, FRACTION)
    documents: Documents = hparam(Documents.blank_lines)

    def load(self) -> TextTransfer:
        """Read, split and encode."""
        if self.pairs is not None and self.objective is not LmObjective.masked:
            raise UserError(
                f"data.pairs is {self.pairs.name}, and data.objective is {self.objective.name}; allowed with pairs of "
                "sentences: masked"
            )
        origin, before = f"data.path={self.path}", f"data.source_path={self.source_path}"
        given, source = self.read_separate(self._read), {}
        shares = self.missing_shares(given)
        target = split_blocks(self._read(self.path, origin), shares, origin) | given
        if self.source_path is not None:
            source = split_blocks(self._read(self.source_path, before), {"test": self.source_test_fraction}, before)
        vocabulary = self.vocabulary(lambda: [*source.get("train", ()), *target["train"]])
        rows = self._rows(target, vocabulary, origin)
        words = self.num_outputs(vocabulary)
        return TextTransfer(
            kind=self.objective.name if self.pairs is None else "pretraining",
            source=self._rows(source, vocabulary, before) if source else {},
            target=rows | {"train": self._subsample(rows["train"], origin)},
            source_outputs=words,
            outputs=words,
            new_head=False,
            vocabulary=vocabulary,
            pairs=self.pairs and self.pairs.name,
        )

    def _rows(self, parts: Mapping[str, Sequence[str]], vocabulary: Vocabulary, origin: str) -> dict[str, Split]:
        """Return each part's documents as rows of inputs and targets."""
        if self.pairs is None:
            return language_rows(self, parts, vocabulary, self.objective, origin)
        return pairing_rows(self, parts, vocabulary, pairing=self.pairs, lone=self.lone_sentences, origin=origin)

    def _read(self, path: str, origin: str) -> list[str]:
        """Return the documents of a file or folder; blank ones are left out."""
        place = Path(path)
        files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
        if not files:
            raise UserError(f"{origin}: the folder has no file that ends in .txt")
        if not place.exists():
            raise UserError(f"{origin}: there is no such file or folder")
        whole = (read_text(file, origin) for file in files)
        pieces = whole if self.documents is Documents.files else (one for text in whole for one in BLANK.split(text))
        found = [one.strip("\n") for one in pieces if one.strip()]
        if not found:
            raise UserError(f"{origin} has no text; allowed: at least one document")
        return found

    def _subsample(self, part: Split, origin: str) -> Split:
        """Return ``train_rows`` of the rows, drawn with ``split_seed``, in the order of the text."""
        if self.train_rows is None:
            return part
        order = np.random.default_rng((self.split_seed, ROWS_STREAM)).permutation(len(part.x))
        rows = np.sort(self.train_subset(order, None, origin))
        return Split(part.x[rows], part.y[rows])


ROWS_STREAM = 3  # of split_seed


def split_blocks(documents: Sequence[str], shares: Mapping[str, float], origin: str) -> dict[str, list[str]]:
    """Return ``train`` and the named shares as consecutive blocks of whole documents.

    Shares count characters; a document belongs to the block that contains its middle.
    """
    sizes = np.array([len(text) for text in documents])
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    names = ["train", *(name for name in ("val", "test") if name in shares)]
    borders = np.cumsum([1 - sum(shares.values()), *(shares[name] for name in names[1:])])
    numbers = np.minimum(np.searchsorted(borders, middles, side="right"), len(names) - 1)
    found = {
        name: [text for text, own in zip(documents, numbers, strict=True) if own == n] for n, name in enumerate(names)
    }
    for name, part in found.items():
        if not part:
            raise UserError(
                f"{origin} has {len(documents)} documents, which leaves the {name} part empty; "
                "allowed: more documents, or a separate file"
            )
    return found
