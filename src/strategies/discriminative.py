"""``strategy=discriminative``: layer-wise learning-rate decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..config.hparams import RATIO, UNIT, Check, hparam
from ..errors import UserError
from ..optim.partition import Groups, Rule
from .base import Strategy

FACTOR = Check("a finite number >= 1", lambda v: math.isfinite(v) and v >= 1)


@dataclass(frozen=True)
class Discriminative(Strategy):
    """Discriminative learning rates (ULMFiT, arXiv 1801.06146, section 3.2), or layer-wise learning-rate decay.

    Group ``g`` of ``G``, counted from 0 at the bottom, gets ``lr * max(decay ** (G - 1 - g), min_scale)``. The groups
    are embeddings or stem, the blocks, the head: ``G = L + 2`` for ``L`` blocks over embeddings.

    ``decay``: 0.9 (ELECTRA .8 and .9, BEiT .9, MAE .65 to .75). ``xi``: ULMFiT's divisor, used instead of ``decay``:
    ``decay = 1 / xi``. ``min_scale``: a lower bound, as in timm.

    **A strong decay freezes.** ULMFiT's 2.6 was chosen for five groups. With 12 blocks, embeddings and head, ``2.6 **
    13`` is 248,115: a rate of 2e-5 becomes 8e-11, and the update of most float32 weights rounds to zero.

    **Conventions differ by one.** As in timm, the top block has ``decay`` and the embeddings ``decay ** (L + 1)``. In
    ELECTRA everything below the head has one more factor ``decay``. Each run prints the scales.
    """

    decay: float = hparam(0.9, RATIO, traced=True)
    xi: float | None = hparam(None, FACTOR, traced=True)
    min_scale: float | None = hparam(None, UNIT, traced=True)

    def __post_init__(self) -> None:
        """Refuse ``xi`` together with ``decay``. Tracers are not checked; their values were."""
        if self.xi is not None and isinstance(self.decay, float) and self.decay != Discriminative.decay:
            raise UserError(
                f"strategy.xi is {self.xi} and strategy.decay is {self.decay}; allowed: one of them (decay is 1 / xi)"
            )

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule a group, from the head down."""
        scales = layer_scales(groups, self.decay if self.xi is None else _inverse(self.xi))
        if self.min_scale is not None:
            scales = [_maximum(self.min_scale, scale) for scale in scales]
        return tuple((name, scale) for (name, _), scale in zip(groups, scales, strict=True))[::-1]


def _inverse(factor: Any) -> Any:
    # 0 stands for every traced number in the static part of a configuration, where only the patterns matter.
    return 0.0 if isinstance(factor, int) and factor == 0 else 1 / factor


def _maximum(least: Any, scale: Any) -> Any:
    plain = isinstance(least, (int, float)) and isinstance(scale, (int, float))
    return max(scale, least) if plain else jnp.maximum(scale, least)


def layer_scales(groups: int | Sequence[Any], decay: Any) -> list[Any]:
    """Return each group's learning-rate scale, bottom to top: ``[decay**(G-1), ..., decay, 1.0]``, as in timm and BEiT.

    Args:
        groups: the groups, embeddings and head included, or their number ``G``.
        decay: factor from a group to the one below it (``1 / xi`` in ULMFiT); may be a tracer.
    """
    count = groups if isinstance(groups, int) else len(groups)
    factor = float(decay) if isinstance(decay, int) else decay
    return [factor ** (count - 1 - group) for group in range(count)]
