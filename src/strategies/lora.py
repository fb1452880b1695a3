"""``strategy=lora``: each target kernel gets a low-rank correction, which moves instead of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import COUNT, POSITIVE, UNIT, Check, hparam
from ..errors import UserError, listed
from ..models.base import Model, ModuleCall
from ..models.layers import dropout
from ..models.lowrank import lowrank, scale
from ..optim.partition import Rule
from ..types import Params
from .injection import Injection, as_matrix, leaf_key, leaf_pattern, matching, matrix_words, module_of, target_kernels

PATTERN_RANK = Check("pattern:rank with a whole rank >= 1", lambda v: re.fullmatch(r".+:[1-9]\d*", v) is not None)


@dataclass(frozen=True)
class Lora(Injection):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685, section 4.1): ``h = W0 x + s B A x``, ``A`` random, ``B`` zero.

    With this repository's kernels, ``(in, out)``, that is ``x W0 + s (x A) B``. The correction is computed beside the
    kernel, never added to it: ``W0 + A B`` would need the whole kernel's gradient.

    ``alpha``: ``s = alpha / rank``; the paper's scripts take 16 for rank 8, PEFT's default is 8. ``rank_stabilised``:
    ``s = alpha / sqrt(rank)`` (rsLoRA, arXiv 2312.03732). ``ranks``: other ranks by pattern, the first that matches.
    ``dropout``: of the correction's input. ``b_rate``: multiplier on the learning rate of ``B`` (LoRA+, arXiv
    2402.12354, takes 16). ``targets``: see :func:`~src.strategies.injection.target_kernels`.
    """

    adapter_params: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    rank: int = hparam(8, COUNT)
    ranks: tuple[str, ...] = hparam((), PATTERN_RANK)
    alpha: float = hparam(16.0, POSITIVE, traced=True)
    rank_stabilised: bool = hparam(False)
    dropout: float | None = hparam(None, UNIT, traced=True)
    b_rate: float = hparam(1.0, POSITIVE, traced=True)
    targets: tuple[str, ...] = hparam(("trunk",))

    def lines(self) -> tuple[Rule, ...]:
        """Return: B at its own rate, the others at 1."""
        others = (name for name in self.adapter_params if name != "lora_b")
        return ((leaf_pattern("lora_b"), self.b_rate), (leaf_pattern(*others), 1.0))

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return ``lora_a`` and ``lora_b`` beside each target kernel.

        ``(in, rank)`` and ``(rank, out)``; of a convolution ``(height, width, in, rank)`` and ``(1, 1, rank, out)``.
        A is uniform on ``+-1/sqrt(fan-in)`` (PEFT's ``kaiming_uniform_(a=sqrt(5))``).

        Raises:
            UserError: a pattern that names no kernel, a rank above what a kernel can have.
        """
        if not self.targets:
            raise UserError("strategy.targets is empty: there is nothing to adapt; allowed: groups or expressions")
        added: Params = {}
        for path, rank in self._ranks(params, model).items():
            kernel, beside = params[path], module_of(path)
            bound = 1 / math.sqrt(as_matrix(kernel.shape)[0])
            shape = (*kernel.shape[:-1], rank)
            ones = (1,) * (kernel.ndim - 2)
            added[f"{beside}/lora_a"] = jax.random.uniform(leaf_key(key, path), shape, kernel.dtype, -bound, bound)
            added[f"{beside}/lora_b"] = jnp.zeros((*ones, rank, kernel.shape[-1]), kernel.dtype)
        return added

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return ``module(x) + s (dropout(x) A) B``."""
        return ctx.call(ctx.x) + self.correction(ctx)

    def correction(self, ctx: ModuleCall) -> Array:
        """Return ``s (dropout(x) A) B``."""
        x, a, b = ctx.x, ctx.params["lora_a"], ctx.params["lora_b"]
        if self.dropout is not None and ctx.key is not None:
            x = dropout(ctx.key, x, self.dropout)
        return lowrank(ctx.module, x, a, (self.scale(ctx.params) * b).astype(b.dtype))

    def scale(self, params: Mapping[str, Array]) -> Float[Any, ""]:
        """Return ``s`` for the rank of ``lora_a``."""
        return scale(self.alpha, params["lora_a"].shape[-1], self.rank_stabilised)

    def _ranks(self, params: Params, model: Model) -> dict[str, int]:
        """Return the rank of each target kernel."""
        groups = model.groups()
        targets = target_kernels("strategy.targets", self.targets, params, groups)
        found: dict[str, tuple[str, int]] = dict.fromkeys(targets, ("strategy.rank", self.rank))
        # Backwards, so that the first pattern that matches has the last word.
        for pattern, _, rank in reversed([line.rpartition(":") for line in self.ranks]):
            hits = matching(pattern, targets, groups)
            if not hits:
                raise UserError(f"strategy.ranks: '{pattern}' matches no target; allowed: {listed(targets)}")
            found.update(dict.fromkeys(hits, ("strategy.ranks", int(rank))))
        for path, (setting, rank) in found.items():
            matrix = as_matrix(params[path].shape)
            if rank > min(matrix):
                raise UserError(
                    f"{setting}: rank {rank} is above the {matrix_words(matrix)} matrix of {path}; "
                    f"allowed: at most {min(matrix)}"
                )
        return {path: rank for path, (_, rank) in found.items()}
