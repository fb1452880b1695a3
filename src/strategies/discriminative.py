"""``strategy=discriminative``: everything moves, each group below the head slower than the one above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..config.hparams import RATIO, UNIT, Check, hparam
from ..errors import UserError
from ..optim.partition import Groups, Rule
from .base import Strategy
from .layers import layer_scales

FACTOR = Check("a finite number >= 1", lambda v: math.isfinite(v) and v >= 1)


@dataclass(frozen=True)
class Discriminative(Strategy):
    """Discriminative learning rates (Howard and Ruder, ULMFiT, arXiv 1801.06146, section 3.2), or layer decay.

    Group ``g`` of ``G``, counted from 0 at the bottom, gets ``lr * max(decay ** (G - 1 - g), min_scale)``: the head has
    the full rate. The groups are embeddings or stem, the blocks, the head: ``G = L + 2`` for ``L`` blocks over
    embeddings, whose exponent is then ``L + 1``.

    ``decay``: 0.9 (ELECTRA .8 and .9, BEiT .9, MAE .65 to .75). ``xi``: ULMFiT's way to say it, ``decay = 1 / xi``; it
    takes the place of ``decay``. ``min_scale``: a floor, as in timm; ``None``, the default, is none.

    **A hidden freeze.** ULMFiT's 2.6 was meant for five groups: its bottom learns 46 times slower than its head. Over
    12 layers, embeddings and head, ``2.6 ** 13`` is 248,115: from a usual rate of 2e-5 that leaves the bottom 8e-11,
    and most float32 weights round such a step away. The rate says "slowly", the weights stay: if that is meant,
    ``freeze_bottom`` does it for less.

    **Off by one.** Conventions differ in what lies between the top block and the head. Here, as in timm, nothing does:
    the top block has ``decay``, the embeddings ``decay ** (L + 1)``. In ELECTRA the top block is two steps below the
    head, so everything under the head is slower by one more ``decay``. Descriptions that count layers only, ``xi ** L``
    for the bottom, mean the lowest *block* here. Compare multipliers (each run prints them), not factors.
    """

    decay: float = hparam(0.9, RATIO, traced=True)
    xi: float | None = hparam(None, FACTOR, traced=True)
    min_scale: float | None = hparam(None, UNIT, traced=True)

    def __post_init__(self) -> None:
        """Refuse two answers to one question; inside a program the values are tracers and have been checked."""
        if self.xi is not None and isinstance(self.decay, float) and self.decay != Discriminative.decay:
            raise UserError(
                f"strategy.xi is {self.xi} and strategy.decay is {self.decay}; allowed: one of them (decay is 1 / xi)"
            )

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line a group, from the head down."""
        scales = layer_scales(groups, self.decay if self.xi is None else _inverse(self.xi))
        if self.min_scale is not None:
            scales = [_at_least(self.min_scale, scale) for scale in scales]
        return tuple((name, scale) for (name, _), scale in zip(groups, scales, strict=True))[::-1]


def _inverse(factor: Any) -> Any:
    # The static part of a specification has 0 for every traced number; only the table's structure counts there.
    return 0.0 if isinstance(factor, int) and factor == 0 else 1 / factor


def _at_least(least: Any, scale: Any) -> Any:
    plain = isinstance(least, (int, float)) and isinstance(scale, (int, float))
    return max(scale, least) if plain else jnp.maximum(scale, least)
