"""``data=synthetic``: two regressions of adjustable similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.hparams import COUNT, NATURAL, NON_NEGATIVE, UNIT, hparam
from .base import DataSource, Table


@dataclass(frozen=True)
class Synthetic(DataSource):
    """Targets of two random teachers ``v . tanh(W x)`` with standard normal inputs and additive noise.

    ``similarity`` s mixes the target's teacher from the source's, a, and an independent one, b, as ``s * a + sqrt(1 -
    s^2) * b`` for ``W`` and ``v``: at 1 the two tasks are identical, at 0 independent; in between, their noiseless
    targets correlate by about s squared. It changes only the target task's targets, not its inputs or noise, so runs of
    different similarities are paired. For a sweep over ``similarity`` and ``train_rows``, ``target_rows=2000`` leaves
    enough rows for validation and test.
    """

    similarity: float = hparam(0.8, UNIT)
    source_rows: int = hparam(1000, COUNT)
    target_rows: int = hparam(200, COUNT)
    features: int = hparam(10, COUNT)
    teacher_width: int = hparam(8, COUNT)
    noise: float = hparam(0.1, NON_NEGATIVE)  # standard deviation, relative to that of the noiseless targets
    data_seed: int = hparam(0, NATURAL)

    def tables(self) -> tuple[Table, Table, str]:
        """Return the rows of both teachers."""
        rng = np.random.default_rng(self.data_seed)
        shapes = (self.teacher_width, self.features), (self.teacher_width,)
        first, other = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
        mixed = [self.similarity * a + np.sqrt(1 - self.similarity**2) * b for a, b in zip(first, other, strict=True)]

        def rows(count: int, teacher: list[np.ndarray], origin: str) -> Table:
            x = rng.standard_normal((count, self.features))
            clean = np.tanh(x @ teacher[0].T / np.sqrt(self.features)) @ teacher[1]
            return Table(x, clean + self.noise * clean.std() * rng.standard_normal(count), origin)

        return (
            rows(self.source_rows, first, "the synthetic source (data.source_rows)"),
            rows(self.target_rows, mixed, "the synthetic target (data.target_rows)"),
            "regression",
        )
