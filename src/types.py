"""Types that every package shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Shaped


class Split(NamedTuple):
    """A part of a task's data: inputs and targets, row by row."""

    x: Float[Any, "N ..."]  # of NumPy on the host, of JAX inside a program
    y: Shaped[Any, " N"]


# {"Dense_0/kernel": array}: the flat form that everything outside this file handles. Batch statistics are leaves like
# any other (`BatchNorm_0/mean`), so freezing a group freezes them too; only no gradient is taken of them.
Params = dict[str, Array]


Row = dict[str, float]  # a logged step: its number and what was measured


LogFn = Callable[[Row], None]


def ignore(_row: Row) -> None:
    """Watch nothing."""
