"""Optimizers: one Optax chain for the trainable parameters; learning rate and weight decay may be traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import optax

from ..config.hparams import NON_NEGATIVE, POSITIVE, UNIT, hparam
from ..models.base import is_statistic
from .partition import FROZEN

# Weight decay by the last part of a parameter's path.
BIASES = ("bias", "adapter_down_bias", "adapter_up_bias")
NORM_SCALES = ("scale",)
# Adapter parameters that multiply what the base computes. Decay would pull them to 0, which switches the base's units
# off; ia3 is neutral at 1, dora_magnitude at the column norms of the kernel.
GAINS = ("ia3", "ia3_input", "dora_magnitude")


class FreezeImpl(Enum):
    """How frozen parameters are left unchanged. All three compute the same bits."""

    split = 1  # the gradient and the optimizer state cover the trainable parameters only
    multi_transform = 2  # optax.multi_transform with optax.set_to_zero for the frozen parameters
    masked = 3  # optax.masked for the trainable parameters, chained with optax.masked(set_to_zero) for the frozen ones


@dataclass(frozen=True)
class Optimizer:
    """Base of every optimizer.

    ``weight_decay`` is decoupled: each update subtracts ``learning rate * weight_decay * parameter``. ``clip_norm``
    bounds the global norm of the trainable gradients; ``None`` turns clipping off. With ``decay_bias_and_norm`` false,
    biases (those of adapters too) and the scales of normalisation layers are not decayed, as in BERT's
    ``optimization.py``. Batch statistics, IA3 vectors and DoRA magnitudes are never decayed.
    """

    weight_decay: float = hparam(0.0, NON_NEGATIVE, traced=True)
    clip_norm: float | None = hparam(None, POSITIVE, traced=True)
    decay_bias_and_norm: bool = hparam(True)

    def direction(self) -> optax.GradientTransformation:
        """Return the transformation of the gradients that comes before weight decay and the learning rate."""
        raise TypeError(f"{type(self).__name__} does not define direction()")

    def decays(self, path: str) -> bool:
        """Return whether weight decay acts on the parameter at a flat path."""
        name = path.rsplit("/", 1)[-1]
        exempt = not self.decay_bias_and_norm and name in (*BIASES, *NORM_SCALES)
        return not (exempt or name in GAINS or is_statistic(path))


@dataclass(frozen=True)
class Sgd(Optimizer):
    """``optimizer=sgd``: stochastic gradient descent."""

    def direction(self) -> optax.GradientTransformation:
        """Return the identity."""
        return optax.identity()


@dataclass(frozen=True)
class Momentum(Optimizer):
    """``optimizer=momentum``: heavy-ball or Nesterov momentum (Sutskever et al. 2013)."""

    momentum: float = hparam(0.9, UNIT, traced=True)
    nesterov: bool = hparam(False)

    def direction(self) -> optax.GradientTransformation:
        """Return ``optax.trace``: ``m = momentum * m + gradient``."""
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam(Optimizer):
    """``optimizer=adam`` (Kingma and Ba, arXiv 1412.6980).

    ``b1`` and ``b2`` are compile-time constants: traced, ``1 - b2`` would be rounded in float32.
    """

    b1: float = hparam(0.9, UNIT)
    b2: float = hparam(0.999, UNIT)
    eps: float = hparam(1e-8, POSITIVE)

    def direction(self) -> optax.GradientTransformation:
        """Return ``optax.scale_by_adam``."""
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclass(frozen=True)
class Adamw(Adam):
    """``optimizer=adamw``: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    weight_decay: float = hparam(0.01, NON_NEGATIVE, traced=True)


def transformation(
    optimizer: Optimizer,
    rate: Callable[[Any], Any],
    lr_scale: Mapping[str, Any],
    form: FreezeImpl,
    optimizer_groups: Mapping[str, str] | None = None,
) -> optax.GradientTransformation:
    """Return the Optax transformation of one stage.

    Args:
        optimizer: the settings; traced fields may be tracers.
        rate: schedule, from the number of updates made to the learning rate.
        lr_scale: learning-rate scale, or ``FROZEN``, of every parameter by path.
        form: with ``FreezeImpl.split`` the transformation takes the trainable parameters only; else all.
        optimizer_groups: label by path; parameters of one label share an optimizer state with its own count of updates.
            ``None``: all parameters share one.
    """
    trainable = {path: value for path, value in lr_scale.items() if value is not FROZEN}
    steps = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm is not None else []
    direction = optimizer.direction()
    if optimizer_groups is not None:
        direction = optax.partition(
            {label: optimizer.direction() for label in set(optimizer_groups.values())}, dict(optimizer_groups)
        )
    steps += [direction, _decay(optimizer, trainable)]
    if any(not isinstance(value, float) or value != 1.0 for value in trainable.values()):
        steps.append(_scale_by_path(trainable))
    steps.append(optax.scale_by_schedule(lambda count: -rate(count)))
    train = optax.chain(*steps)
    if form is FreezeImpl.split:
        return train
    if form is FreezeImpl.multi_transform:
        labels = {path: "frozen" if value is FROZEN else "trainable" for path, value in lr_scale.items()}
        return optax.multi_transform({"trainable": train, "frozen": optax.set_to_zero()}, labels)
    mask = {path: value is not FROZEN for path, value in lr_scale.items()}
    # optax.masked alone passes the raw gradients of masked-out leaves through, and apply_updates would add them. The
    # second transformation sets them to zero.
    return optax.chain(
        optax.masked(train, mask),
        optax.masked(optax.set_to_zero(), {path: not value for path, value in mask.items()}),
    )


def _decay(optimizer: Optimizer, trainable: Iterable[str]) -> optax.GradientTransformation:
    """Return decoupled weight decay for the parameters that :meth:`Optimizer.decays` selects."""
    if all(map(optimizer.decays, trainable)):
        return optax.add_decayed_weights(optimizer.weight_decay)

    def mask(tree: Any) -> dict[str, bool]:
        # Of the tree at hand: multi_transform and masked also pass the frozen paths, as empty nodes.
        return {path: optimizer.decays(path) for path in tree}

    return optax.add_decayed_weights(optimizer.weight_decay, mask)


def _scale_by_path(lr_scale: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scale each update by its path's lr_scale. It follows the optimizer: Adam divides a scaled gradient again."""

    def scale(updates: Any, _params: Any) -> Any:
        return {
            path: update if isinstance(update, optax.MaskedNode) else update * lr_scale[path]
            for path, update in updates.items()
        }

    return optax.stateless(scale)
