"""``strategy=lora``: a low-rank update of each target kernel is trained instead of the kernel."""

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
from ..models.layers import dropout, lowrank, scale
from ..optim.partition import Rule
from ..types import Params
from .injection import (
    Injection,
    as_matrix,
    leaf_key,
    leaf_pattern,
    matching,
    module_of,
    shape_text,
    target_kernels,
)

PATTERN_RANK = Check("pattern:rank with a whole rank >= 1", lambda v: re.fullmatch(r".+:[1-9]\d*", v) is not None)


@dataclass(frozen=True)
class Lora(Injection):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685, section 4.1): ``h = W0 x + s B A x``, ``A`` random, ``B`` zero.

    Flax kernels are ``(in, out)``: ``x W0 + s (x A) B``. ``(x A) B`` is computed beside the kernel, because the
    gradient of ``W0 + A B`` costs as much as the kernel's.

    ``alpha``: ``s = alpha / rank``; the paper's scripts take 16 for rank 8, PEFT's default is 8. ``rank_stabilised``:
    ``s = alpha / sqrt(rank)`` (rsLoRA, arXiv 2312.03732). ``rank_pattern``: other ranks by pattern; the first match
    decides. ``dropout``: of the input of ``A``. ``loraplus_lr_ratio``: learning rate of ``B`` over that of ``A``
    (LoRA+, arXiv 2402.12354: 16). ``targets``: see :func:`~src.strategies.injection.target_kernels`.
    """

    adapter_params: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    rank: int = hparam(8, COUNT)
    rank_pattern: tuple[str, ...] = hparam((), PATTERN_RANK)
    alpha: float = hparam(16.0, POSITIVE, traced=True)
    rank_stabilised: bool = hparam(False)
    dropout: float | None = hparam(None, UNIT, traced=True)
    loraplus_lr_ratio: float = hparam(1.0, POSITIVE, traced=True)
    targets: tuple[str, ...] = hparam(("trunk",))

    def lines(self) -> tuple[Rule, ...]:
        """Return the rules: B at its own learning rate, the others at 1."""
        others = (name for name in self.adapter_params if name != "lora_b")
        return ((leaf_pattern("lora_b"), self.loraplus_lr_ratio), (leaf_pattern(*others), 1.0))

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return ``lora_a (in, rank)`` and ``lora_b (rank, out)`` beside each target kernel.

        Those of a convolution are ``(height, width, in, rank)`` and ``(1, 1, rank, out)``. A is uniform on
        ``+-1/sqrt(fan-in)`` (PEFT's ``kaiming_uniform_(a=sqrt(5))``).
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
        # In reverse, so that the first matching pattern decides.
        for pattern, _, rank in reversed([line.rpartition(":") for line in self.rank_pattern]):
            hits = matching(pattern, targets, groups)
            if not hits:
                raise UserError(f"strategy.rank_pattern: '{pattern}' matches no target; allowed: {listed(targets)}")
            found.update(dict.fromkeys(hits, ("strategy.rank_pattern", int(rank))))
        for path, (setting, rank) in found.items():
            matrix = as_matrix(params[path].shape)
            if rank > min(matrix):
                raise UserError(
                    f"{setting}: rank {rank} is above the {shape_text(matrix)} matrix of {path}; "
                    f"allowed: at most {min(matrix)}"
                )
        return {path: rank for path, (_, rank) in found.items()}
