"""The trainer's knobs: how updates are computed, which weights are kept, when to stop. They act in fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..config.hparams import COUNT, FRACTION, NON_NEGATIVE, hparam
from ..errors import UserError

Precision = Enum("Precision", ["float32", "bfloat16"])
Keep = Enum("Keep", ["last", "best"])


SMOOTHED = ("classification", "labels")  # kinds of tasks whose labels can be smoothed


@dataclass(frozen=True)
class Plain:
    """``trainer=plain``. What is ``null`` or at its default costs nothing.

    ``accumulate``: equal parts that a batch is cut into; their gradients are added up, weighted by the true number of
    terms in each, and give the whole batch's. ``precision``: of the forward and backward pass; the master weights stay
    float32, and bfloat16 needs no loss scaling. ``frozen_precision``: in which the frozen half is stored meanwhile.
    ``ema``: decay of an exponential moving average of the weights, which is then what is evaluated and kept (Polyak and
    Juditsky 1992). ``label_smoothing``: Szegedy et al. (arXiv 1512.00567, section 7). ``patience``: evaluations of the
    validation loss without an improvement of more than ``min_delta`` before the run stops; implies ``keep=best``.
    ``keep``: the weights of the last update, or of the best evaluation; a loss that is not a number is never best.
    Where a strategy has phases, both belong to the last one. ``feature_cache``: megabytes that may be spent on keeping
    what a frozen bottom returns for each row.
    """

    accumulate: int = hparam(1, COUNT)
    precision: Precision = hparam(Precision.float32)
    frozen_precision: Precision = hparam(Precision.float32)
    ema: float | None = hparam(None, FRACTION, traced=True)
    label_smoothing: float | None = hparam(None, FRACTION, traced=True)
    patience: int | None = hparam(None, COUNT)
    min_delta: float = hparam(0.0, NON_NEGATIVE, traced=True)
    keep: Keep = hparam(Keep.last)
    feature_cache: float = hparam(1000.0, NON_NEGATIVE)

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best evaluation are kept."""
        return self.patience is not None or self.keep is Keep.best

    def check(self, kind: str, batch: int) -> None:
        """Refuse what does not fit the task.

        Args:
            kind: of the task: ``"regression"``, ``"classification"`` ...
            batch: rows of an update.
        """
        if batch % self.accumulate:
            raise UserError(
                f"trainer.accumulate is {self.accumulate}, which does not divide a batch of {batch} rows; "
                f"allowed: a divisor of {batch}"
            )
        if self.label_smoothing is not None and kind not in SMOOTHED:
            raise UserError(
                f"trainer.label_smoothing is {self.label_smoothing:g} on a task of kind {kind}; "
                "allowed: null, there are no classes"
            )
