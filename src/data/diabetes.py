"""``data=diabetes``: pre-train on the patients of one sex, fine-tune on those of the other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..config.hparams import hparam
from .base import DataSource, Table, read_embedded

Sex = Enum("Sex", ["first", "second"])  # the study codes them 1 and 2 and does not say which is which
SEX_COLUMN = 1


@dataclass(frozen=True)
class Diabetes(DataSource):
    """Disease progression of 442 patients after a year (Efron et al., Least Angle Regression, 2004), a regression.

    Features: age, body-mass index, blood pressure and six blood serum measurements. ``pretrain_on``: the sex of the
    source task, as the study codes it (``first``: 235 patients; ``second``: 207).
    """

    pretrain_on: Sex = hparam(Sex.first)

    def tables(self) -> tuple[Table, Table, str]:
        """Return the patients of each sex."""
        x = read_embedded("diabetes_data_raw.csv.gz")
        y = read_embedded("diabetes_target.csv.gz")
        chosen = x[:, SEX_COLUMN] == self.pretrain_on.value
        x = np.delete(x, SEX_COLUMN, axis=1)  # constant within each part
        return (
            Table(x[chosen], y[chosen], "the source part of the diabetes data"),
            Table(x[~chosen], y[~chosen], "the target part of the diabetes data"),
            "regression",
        )
