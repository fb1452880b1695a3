"""Optimizers: one Optax chain over the trainable half, with every rate an argument of the compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import optax

from ..config.hparams import NON_NEGATIVE, POSITIVE, UNIT, hparam
from ..models.base import is_statistic
from .partition import FROZEN


class FreezeImpl(Enum):
    """How frozen parameters are kept still; all three give the same bits."""

    split = 1  # only the trainable half is differentiated and optimised
    multi_transform = 2  # optax.multi_transform with optax.set_to_zero for the frozen label
    masked = 3  # optax.masked for the trainable half chained with masked(set_to_zero) for the rest


@dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: ``weight_decay`` (decoupled, per unit of learning rate) and ``clip_norm``.

    ``clip_norm`` bounds the global norm of the *trainable* gradients; ``null`` leaves them alone.
    ``decay_bias_and_norm`` false leaves biases and the scales of normalisation layers out of the decay, as BERT's
    recipe does (Devlin et al., ``optimization.py``). Batch statistics are never decayed.
    """

    weight_decay: float = hparam(0.0, NON_NEGATIVE, traced=True)
    clip_norm: float | None = hparam(None, POSITIVE, traced=True)
    decay_bias_and_norm: bool = hparam(True)

    def direction(self) -> optax.GradientTransformation:
        """Return the transformation from gradients to the step before decay and learning rate."""
        raise TypeError(f"{type(self).__name__} does not say its direction")

    def decays(self, path: str) -> bool:
        """Tell whether weight decay acts on the parameter at a flat path."""
        exempt = not self.decay_bias_and_norm and path.rsplit("/", 1)[-1] in ("bias", "scale")
        return not (exempt or is_statistic(path))


@dataclass(frozen=True)
class Sgd(Optimizer):
    """``optimizer=sgd``: the gradient itself."""

    def direction(self) -> optax.GradientTransformation:
        """Return the identity."""
        return optax.identity()


@dataclass(frozen=True)
class Momentum(Optimizer):
    """``optimizer=momentum``: heavy-ball or Nesterov momentum (Sutskever et al. 2013)."""

    momentum: float = hparam(0.9, UNIT, traced=True)
    nesterov: bool = hparam(False)

    def direction(self) -> optax.GradientTransformation:
        """Return the running sum ``m = momentum * m + gradient``."""
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam(Optimizer):
    """``optimizer=adam`` (Kingma and Ba, arXiv 1412.6980). ``b1`` and ``b2`` are compiled in.

    As traced numbers they would round ``1 - b2`` in float32 and change Adam's updates.
    """

    b1: float = hparam(0.9, UNIT)
    b2: float = hparam(0.999, UNIT)
    eps: float = hparam(1e-8, POSITIVE)

    def direction(self) -> optax.GradientTransformation:
        """Return Adam's bias-corrected ratio of moments."""
        return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


@dataclass(frozen=True)
class Adamw(Adam):
    """``optimizer=adamw``: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    weight_decay: float = hparam(0.01, NON_NEGATIVE, traced=True)


def transformation(
    optimizer: Optimizer,
    rate: Callable[[Any], Any],
    multiplier: Mapping[str, Any],
    form: FreezeImpl,
    optimizer_groups: Mapping[str, str] | None = None,
) -> optax.GradientTransformation:
    """Return the whole transformation for one stage.

    Args:
        optimizer: its settings, traced ones possibly tracers.
        rate: from the number of updates made to the learning rate.
        multiplier: path -> learning-rate multiplier or ``FROZEN``, for every parameter.
        form: how frozen parameters are kept still. With ``FreezeImpl.split`` the transformation must only be given the
            trainable half; the other two take all parameters.
        cohorts: path -> label of those that share a state of the optimizer (a count of updates); ``None``: all do.
    """
    moving = {path: value for path, value in multiplier.items() if value is not FROZEN}
    steps = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm is not None else []
    direction = optimizer.direction()
    if optimizer_groups is not None:
        direction = optax.partition(
            {label: optimizer.direction() for label in set(optimizer_groups.values())}, dict(optimizer_groups)
        )
    steps += [direction, _decay(optimizer, moving)]
    if any(not isinstance(value, float) or value != 1.0 for value in moving.values()):
        steps.append(_scale_by_path(moving))
    steps.append(optax.scale_by_schedule(lambda count: -rate(count)))
    train = optax.chain(*steps)
    if form is FreezeImpl.split:
        return train
    if form is FreezeImpl.multi_transform:
        labels = {path: "frozen" if value is FROZEN else "trainable" for path, value in multiplier.items()}
        return optax.multi_transform({"trainable": train, "frozen": optax.set_to_zero()}, labels)
    mask = {path: value is not FROZEN for path, value in multiplier.items()}
    # Alone, masked() lets the raw gradient of a masked-out leaf pass through, and apply_updates *adds* it: gradient
    # ascent without a learning rate. The second half turns those into zeros.
    return optax.chain(
        optax.masked(train, mask),
        optax.masked(optax.set_to_zero(), {path: not value for path, value in mask.items()}),
    )


def _decay(optimizer: Optimizer, moving: Iterable[str]) -> optax.GradientTransformation:
    """Add decoupled weight decay to the updates of those parameters that take it."""
    if all(map(optimizer.decays, moving)):
        return optax.add_decayed_weights(optimizer.weight_decay)

    def mask(tree: Any) -> dict[str, bool]:
        # Of the tree that arrives: the reference forms hand over the frozen paths too, as empty nodes.
        return {path: optimizer.decays(path) for path in tree}

    return optax.add_decayed_weights(optimizer.weight_decay, mask)


def _scale_by_path(multiplier: Mapping[str, Any]) -> optax.GradientTransformation:
    """Scale each update by its path's multiplier, after the optimizer: Adam would undo a scaled gradient."""

    def scale(updates: Any, _params: Any) -> Any:
        return {
            path: update if isinstance(update, optax.MaskedNode) else update * multiplier[path]
            for path, update in updates.items()
        }

    return optax.stateless(scale)
