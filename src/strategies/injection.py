"""Base of the strategies that add parameters to a frozen model, and functions that they share."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from ..config.hparams import hparam
from ..errors import UserError, did_you_mean, listed
from ..optim.partition import FROZEN, Groups, Rule, compile_pattern
from ..types import Params
from .base import Strategy

# Dense (in, out) and convolution (height, width, in, out). A kernel with three dimensions is ambiguous: a convolution
# over sequences, or a dense layer with heads.
DIMENSIONS = (2, 4)


@dataclass(frozen=True)
class Injection(Strategy):
    """Base of the strategies that freeze the trunk and train their ``adapter_params``.

    ``train_head``: whether the head is trained too. Adapters that are composed later must share one head.
    """

    train_head: bool = hparam(True)

    def lines(self) -> tuple[Rule, ...]:
        """Return the rules of the adapter parameters."""
        return ((leaf_pattern(*self.adapter_params), 1.0),)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return rules that train the adapter parameters and, with ``train_head``, the head."""
        # First, because a group's expression (`Dense_0/.*`) matches the adapter parameters inside it too.
        head = ((groups[-1][0], 1.0),) if self.train_head else ()
        return (*self.lines(), *head, (".*", FROZEN))


def leaf_pattern(*names: str) -> str:
    """Return the regular expression for parameters whose path ends in one of these names."""
    return f".*/({'|'.join(names)})"


def target_kernels(setting: str, patterns: Sequence[str], params: Params, groups: Groups) -> tuple[str, ...]:
    """Return the paths of the kernels that patterns match, in the parameters' order.

    A pattern is a group's name, ``trunk``, or a regular expression that matches the whole path of a kernel
    (``Dense_0/kernel``) or of its module (``Dense_0``). Other matches, such as the biases of a group, are ignored. A
    pattern must match a kernel. ``setting``: the patterns' key in the configuration, for errors.
    """
    kernels = [path for path in params if path.endswith("/kernel")]
    found = {path for pattern in patterns for path in _named(setting, pattern, kernels, params, groups)}
    for path in found:
        if params[path].ndim not in DIMENSIONS:
            raise UserError(
                f"{setting} names {path}, which has the shape {shape_text(params[path].shape)}; "
                "allowed: kernels of 2 dimensions (dense) and 4 (convolution)"
            )
    return tuple(path for path in kernels if path in found)


def matching(pattern: str, kernels: Iterable[str], groups: Groups) -> list[str]:
    """Return the kernels whose path or module path a pattern matches."""
    expression = compile_pattern(pattern, groups)
    return [path for path in kernels if expression.fullmatch(path) or expression.fullmatch(module_of(path))]


def module_of(path: str) -> str:
    """Return the path of a parameter's module."""
    return path.rpartition("/")[0]


def shape_text(shape: Sequence[int]) -> str:
    """Return ``"10 x 8"``."""
    return " x ".join(map(str, shape))


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the ``(fan-in, outputs)`` of a kernel: a convolution is a matrix on patches of its input."""
    return int(np.prod(shape[:-1])), shape[-1]


def leaf_key(key: Array, path: str) -> Array:
    """Return the random key of one parameter. It depends on its path only, not on the other parameters."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def along_last(vector: Float[Array, " D"], like: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Return a vector that broadcasts along the last axis of ``like``, in its dtype."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)


def _named(setting: str, pattern: str, kernels: list[str], params: Params, groups: Groups) -> list[str]:
    found = matching(pattern, kernels, groups)
    if not found:
        others = [path for path in params if compile_pattern(pattern, groups).fullmatch(path)]
        names = ["trunk", *(name for name, _ in groups)]
        known = [*names, *kernels, *map(module_of, kernels)]
        fault = f"matches only {listed(others)}" if others else f"matches no kernel{did_you_mean(pattern, known)}"
        raise UserError(
            f"{setting}: the pattern '{pattern}' {fault}; allowed: groups ({listed(names)}) "
            f"or expressions on kernels ({listed(kernels)})"
        )
    return found
