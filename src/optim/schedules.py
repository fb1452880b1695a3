"""Learning-rate schedules as unit-peak shapes: ``shape(step, total_steps)`` times a traced rate.

``step`` counts the updates already made, from 0. Steps, totals and settings may be traced, so one compiled program
serves all of them; Optax's schedules need these as Python numbers. Each formula is a function that computes the rate
for a given ``peak`` in float32. The options of ``schedule=`` are these functions at a peak of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..config.hparams import NATURAL, UNIT, Check, hparam
from ..errors import UserError

AT_LEAST_ONE = Check("a finite number >= 1", lambda v: math.isfinite(v) and v >= 1)


def warmup_linear(step: Any, total_steps: Any, warmup_steps: Any, peak: Any) -> Any:
    """Return the rate of an update: linearly up from 0 to ``peak``, then linearly down to 0 at the end.

    The form of Hugging Face's ``get_linear_schedule_with_warmup``: with ``w`` warm-up steps of ``T``, ``t / w`` below
    ``w`` and ``(T - t) / (T - w)`` from there on. Google's BERT (``optimization.py``) has ``1 - t / T`` after the
    warm-up: there the rate drops at ``w`` to ``1 - w / T`` of the peak. Past the end the rate stays 0.
    """
    rising, left = _parts(step, total_steps, warmup_steps)
    return peak * jnp.where(step < warmup_steps, rising, left)


def warmup_cosine(step: Any, total_steps: Any, warmup_steps: Any, peak: Any) -> Any:
    """Return the rate of an update: linearly up to ``peak``, then half a cosine down to 0 (SGDR, arXiv 1608.03983)."""
    rising, left = _parts(step, total_steps, warmup_steps)
    return peak * jnp.where(step < warmup_steps, rising, 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left))))


def slanted_triangular(step: Any, total_steps: Any, peak: Any, cut_fraction: Any = 0.1, ratio: Any = 32) -> Any:
    """Return the rate of an update: a short linear rise from ``peak / ratio`` to ``peak``, then a long linear fall.

    Howard and Ruder, ULMFiT (arXiv 1801.06146, eq. 3): ``cut = floor(T * cut_fraction)``, ``p = t / cut`` below ``cut``
    and falling linearly from 1 after it, rate ``peak * (1 + p * (ratio - 1)) / ratio``. The published fall divides by
    ``cut * (1 / cut_fraction - 1)``; where the floor rounds, that is less than the rest of the run, and rates become
    negative (``T = 55``). Here it divides by ``T - cut``, as AllenNLP does, so ``p`` is 0 at the end for every ``T``. A
    run of fewer than ``1 / cut_fraction`` updates has ``cut = 0`` and starts at the peak.
    """
    # 0.53 * 100 is 52.999996 in float32 (and 0.29 * 100 less than 29 in float64): do not floor a rounding error.
    cut = jnp.floor(total_steps * cut_fraction * (1.0 + 2.0**-21))
    rising, left = _parts(step, total_steps, cut)
    return peak * (1.0 + jnp.where(step < cut, rising, left) * (ratio - 1.0)) / ratio


def one_cycle(
    step: Any, total_steps: Any, peak: Any, *, pct_start: Any = 0.25, div: Any = 25.0, div_final: Any = 1e5
) -> Any:
    """Return the rate of an update: half a cosine up from ``peak / div``, half a cosine down to ``peak / div_final``.

    One cycle (Smith and Topin, arXiv 1708.07120) in the variant and with the defaults of fastai's ``fit_one_cycle``:
    two cosine legs instead of the paper's linear ones, the lowest rate relative to the peak and reached after the last
    update. PyTorch's ``OneCycleLR`` differs: its ``final_div_factor`` divides the *first* rate (lowest ``peak /
    (div_factor * final_div_factor)``), the defaults are 0.3, 25 and 1e4, and its last update is already at the lowest
    rate. Only the rate is cycled, not the momentum.
    """
    top = pct_start * total_steps  # not rounded: the peak may be between two updates
    rising = _cosine(1.0 / div, 1.0, step / jnp.maximum(top, 1e-6))
    falling = _cosine(1.0, 1.0 / div_final, (step - top) / jnp.maximum(total_steps - top, 1e-6))
    return peak * jnp.where(step < top, rising, falling)


def _cosine(start: Any, end: Any, position: Any) -> Any:
    """Return half a cosine from ``start`` (position 0) to ``end`` (position 1), constant outside."""
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(position, 0.0, 1.0)))


def _parts(step: Any, total_steps: Any, rise_steps: Any) -> tuple[Any, Any]:
    """Return the completed share of the rise, and the remaining share of the fall after it."""
    left = (total_steps - step) / jnp.maximum(total_steps - rise_steps, 1)
    return step / jnp.maximum(rise_steps, 1), jnp.clip(left, 0.0, 1.0)


@dataclass(frozen=True)
class Schedule:
    """Base of every schedule."""

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the learning rate, as a share of the peak rate, for update number ``step`` of ``total_steps``."""
        raise TypeError(f"{type(self).__name__} does not define shape()")

    def check(self, steps: int, key: str = "schedule") -> None:
        """Refuse settings that do not fit a run of ``steps`` updates. Most schedules fit every run.

        Args:
            steps: updates of the run.
            key: the schedule's key in the configuration, for errors.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """``schedule=constant``: the peak rate throughout."""

    def shape(self, step: Any, total_steps: Any) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Warmup(Schedule):
    """Base of the schedules with a warm-up, whose length is a share of the run or a number of updates."""

    warmup: float = hparam(0.1, UNIT, traced=True)
    warmup_steps: int | None = hparam(None, NATURAL, traced=True)

    def length(self, total_steps: Any) -> Any:
        """Return the number of warm-up updates: ``warmup_steps`` if given, else ``round(warmup * total_steps)``."""
        return jnp.round(self.warmup * total_steps) if self.warmup_steps is None else self.warmup_steps

    def check(self, steps: int, key: str = "schedule") -> None:
        """Refuse a warm-up that is longer than the run."""
        if self.warmup_steps is not None and self.warmup_steps > steps:
            raise UserError(
                f"{key}.warmup_steps is {self.warmup_steps}; allowed: at most the {steps} updates of the run"
            )


@dataclass(frozen=True)
class WarmupLinear(Warmup):
    """``schedule=warmup_linear``: up linearly, then linearly down to 0 (:func:`warmup_linear`)."""

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the share of the peak rate."""
        return warmup_linear(step, total_steps, self.length(total_steps), 1.0)


@dataclass(frozen=True)
class WarmupCosine(Warmup):
    """``schedule=warmup_cosine``: up linearly, then half a cosine down to 0 (:func:`warmup_cosine`)."""

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the share of the peak rate."""
        return warmup_cosine(step, total_steps, self.length(total_steps), 1.0)


@dataclass(frozen=True)
class SlantedTriangular(Schedule):
    """``schedule=slanted_triangular``: ULMFiT's short rise and long fall (:func:`slanted_triangular`)."""

    cut_fraction: float = hparam(0.1, UNIT, traced=True)
    ratio: float = hparam(32.0, AT_LEAST_ONE, traced=True)

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the share of the peak rate."""
        return slanted_triangular(step, total_steps, 1.0, self.cut_fraction, self.ratio)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """``schedule=one_cycle``: one cosine rise and fall, fastai's variant (:func:`one_cycle`)."""

    pct_start: float = hparam(0.25, UNIT, traced=True)
    div: float = hparam(25.0, AT_LEAST_ONE, traced=True)
    div_final: float = hparam(1e5, AT_LEAST_ONE, traced=True)

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the share of the peak rate."""
        return one_cycle(step, total_steps, 1.0, pct_start=self.pct_start, div=self.div, div_final=self.div_final)
