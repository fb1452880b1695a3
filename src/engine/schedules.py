"""Learning-rate schedules as unit-peak shapes: ``shape(step, total_steps)`` times a traced rate.

``step`` counts the updates already made, from 0. The shapes take traced step numbers and traced totals, so neither the
rate nor the length of a run is compiled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from src.config import UNIT, knob


@dataclass(frozen=True)
class Schedule:
    """Base of every schedule."""

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the multiplier of the peak rate for update number ``step`` of ``total_steps``."""
        raise TypeError(f"{type(self).__name__} does not say its shape")

    def check(self, steps: int) -> None:
        return None


@dataclass(frozen=True)
class Constant(Schedule):
    """``schedule=constant``: the peak rate throughout."""

    def shape(self, step: Any, total_steps: Any) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class WarmupLinear(Schedule):
    """``schedule=warmup_linear``: up linearly over the first ``warmup`` of the run, then linearly down to 0.

    The form of Hugging Face's ``get_linear_schedule_with_warmup``: with ``w`` warm-up steps of ``T``, ``step / w``
    below ``w`` and ``(T - step) / (T - w)`` from there on (continuous at ``w``, unlike BERT's original code).
    """

    warmup: float = knob(0.1, UNIT)

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the multiplier; ``warmup`` steps are ``round(warmup * total_steps)``."""
        rising, falling = _warmup_parts(self.warmup, step, total_steps)
        return jnp.where(rising < 1.0, rising, 1.0 - falling)


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """``schedule=warmup_cosine``: up linearly over the first ``warmup`` of the run, then half a cosine down to 0.

    Loshchilov and Hutter, SGDR (arXiv 1608.03983, eq. 5) with one period and no restart.
    """

    warmup: float = knob(0.1, UNIT)

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the multiplier; ``warmup`` steps are ``round(warmup * total_steps)``."""
        rising, falling = _warmup_parts(self.warmup, step, total_steps)
        return jnp.where(rising < 1.0, rising, 0.5 * (1.0 + jnp.cos(jnp.pi * falling)))


def _warmup_parts(warmup: float, step: Any, total_steps: Any) -> tuple[Any, Any]:
    """Return how far the warm-up is (1 when over) and how far the decay after it is, both from 0 to 1."""
    warmup_steps = jnp.round(warmup * total_steps)
    rising = jnp.where(warmup_steps > 0, step / jnp.maximum(warmup_steps, 1), 1.0)
    falling = (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1)
    return rising, jnp.clip(falling, 0.0, 1.0)
