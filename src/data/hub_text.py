"""``data=hub_text``: a data set of the Hub with texts and labels, by its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config.hparams import hparam
from ..errors import UserError, first_line
from .base import check_column
from .text import OnEmpty, drop_empty
from .text_source import LabeledTexts, LabeledTextSource


@dataclass(frozen=True, kw_only=True)
class HubText(LabeledTextSource):
    """Texts, or pairs of texts, with labels, from the Hub or its cache on disk; requires the extra ``hub``.

    ``dataset`` is the id (``nyu-mll/glue``), ``subset`` its configuration (``sst2``). Columns are as in ``data=text``.
    ``train_split``, ``val_split`` and ``test_split`` name the splits; ``null`` splits a fraction off the first, because
    the labels of published test splits are often not public.
    """

    dataset: str = hparam()
    subset: str | None = hparam(None)
    train_split: str = hparam("train")
    val_split: str | None = hparam("validation")
    test_split: str | None = hparam(None)
    text: str = hparam("text")
    second_text: str | None = hparam(None)
    label: str = hparam("label")
    empty: OnEmpty = hparam(OnEmpty.refuse)

    def texts(self) -> dict[str, LabeledTexts]:
        """Load the splits."""
        parts = {"train": self.train_split, "val": self.val_split, "test": self.test_split}
        return {name: self._fetch(name, split) for name, split in parts.items() if split is not None}

    def _fetch(self, name: str, split: str) -> LabeledTexts:
        table, origin = fetch(self.dataset, self.subset, split, f"data.{name}_split"), f"data.dataset={self.dataset}"
        columns: dict[str, list[str]] = {}
        for key, column in (("text", self.text), ("second_text", self.second_text), ("label", self.label)):
            if column is None:
                continue
            check_column(f"data.{key}", column, table.column_names, origin)
            columns[key] = ["" if value is None else str(value) for value in table[column]]
        if set(columns["label"]) <= {"-1", ""}:
            raise UserError(
                f"data.{name}_split={split}: {origin} has no labels in this split; "
                "allowed: null, to split a fraction off data.train_split"
            )
        texts = LabeledTexts(columns["text"], columns.get("second_text"), columns["label"], f"{origin}, {split}")
        return drop_empty(texts, self.empty, [f"row {row}" for row in range(len(texts.first))])


def fetch(dataset: str, subset: str | None, split: str, key: str) -> Any:
    """Return a split of a data set, downloaded if it is not in the cache."""
    origin = f"data.dataset={dataset}"
    try:
        from datasets import load_dataset  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise UserError(
            f"{origin} needs the package datasets, which is not installed; install thaw-jax[hub]"
        ) from error
    try:
        return load_dataset(dataset, subset, split=split)
    except ConnectionError as error:
        raise UserError(f"{origin} is not on this disk, and the Hub cannot be reached to fetch it") from error
    except (ValueError, OSError) as error:  # an unknown split, subset or data set
        reason = first_line(error)
        raise UserError(f"{origin}, data.subset={subset}, {key}={split} cannot be loaded: {reason}") from error
