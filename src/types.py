"""Types that every package shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Shaped


class Split(NamedTuple):
    """One split of a task's data: inputs and targets, row by row."""

    x: Float[Any, "N ..."]  # NumPy on the host, JAX inside a program
    y: Shaped[Any, " N"]


# Flat, {"Dense_0/kernel": array}. Batch statistics are leaves like any other (`BatchNorm_0/mean`), so freezing a group
# freezes them too; they have no gradient.
Params = dict[str, Array]


Row = dict[str, float]  # a logged step: its number and the values measured there

LogFn = Callable[[Row], None]


def ignore(_row: Row) -> None:
    """Log nothing."""
