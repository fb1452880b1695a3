"""The settings of the fine-tuning loop: precision, gradient accumulation, averaging, early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..config.hparams import COUNT, FRACTION, NON_NEGATIVE, hparam
from ..errors import UserError

Precision = Enum("Precision", ["float32", "bfloat16"])
Keep = Enum("Keep", ["last", "best"])


SMOOTHABLE = ("classification", "labels")  # kinds of tasks whose labels can be smoothed


@dataclass(frozen=True)
class TrainerConfig:
    """``trainer=plain``. A setting that is ``None`` or at its default adds nothing to the compiled program.

    ``accumulate``: equal parts of a batch whose gradients are computed one after the other and summed, weighted by the
    number of terms in each. ``precision``: of the forward and backward pass; the master weights are float32.
    ``frozen_precision``: in which frozen parameters are stored during fine-tuning. ``ema``: decay of an exponential
    moving average of the weights, which then is evaluated and kept (Polyak and Juditsky 1992). ``label_smoothing``:
    Szegedy et al. (arXiv 1512.00567, section 7). ``patience``: evaluations without an improvement of the validation
    loss by more than ``min_delta`` before the run stops; implies ``keep=best``. ``keep``: the weights of the last
    update or of the best evaluation; NaN is never best. In a strategy with phases, ``patience`` and ``keep`` apply to
    the last phase. ``feature_cache``: megabytes for the outputs of the frozen bottom groups, kept for every row.
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
        """Whether the weights of the best evaluation are kept rather than the last ones."""
        return self.patience is not None or self.keep is Keep.best

    def check(self, kind: str, batch: int) -> None:
        """Refuse settings that do not fit the task.

        Args:
            kind: of the task: ``"regression"``, ``"classification"`` ...
            batch: rows of an update.

        Raises:
            UserError: ``accumulate`` does not divide the batch, or labels that cannot be smoothed.
        """
        if batch % self.accumulate:
            raise UserError(
                f"trainer.accumulate is {self.accumulate}, which does not divide a batch of {batch} rows; "
                f"allowed: a divisor of {batch}"
            )
        if self.label_smoothing is not None and kind not in SMOOTHABLE:
            raise UserError(
                f"trainer.label_smoothing is {self.label_smoothing:g} on a task of kind {kind}; "
                "allowed: null, there are no classes"
            )
