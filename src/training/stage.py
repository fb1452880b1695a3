"""What a training stage is, which of its parameters are optimized, and the parameters that it starts from.

A :class:`Stage` holds everything that is fixed about a stage. Its traced hyperparameters are arguments of the compiled
programs, so stages that differ only in those share one program.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from ..config.hparams import hparam, hyperparameters
from ..models.base import Model, is_statistic
from ..objectives.base import Objective
from ..optim.optimizers import FreezeImpl, Optimizer, transformation
from ..optim.partition import ParamLabels, match_rules
from ..optim.schedules import Schedule
from ..retention.base import NoRetention, Retention
from ..strategies.base import Strategy
from ..types import Params
from .trainer import TrainerConfig


@dataclass(frozen=True)
class Stage:
    """The specification of a training stage. Hashable; the traced fields are not part of the compiled program."""

    model: Model
    outputs: int
    objective: Objective
    strategy: Strategy
    optimizer: Optimizer
    schedule: Schedule
    lr: float = hparam(traced=True)
    steps: int = hparam(traced=True)
    seed: int = hparam(traced=True)  # of the row order, dropout and the parameters that a strategy adds
    first: int = hparam(0, traced=True)  # updates of the phases before this one
    trainer: TrainerConfig = hparam(TrainerConfig())
    retention: Retention = hparam(NoRetention())
    batch_size: int | None = None  # rows per update; None: all rows
    log_every: int = 10  # updates between two logged rows
    freeze_impl: FreezeImpl | None = None  # how parameters are frozen; None: as the strategy says
    phase: int = 0  # index of the strategy's rule table
    bottom: int = 0  # number of lowest groups that are left out; the inputs are their outputs (feature_cache.py)

    @property
    def stochastic(self) -> bool:
        """Whether a training pass draws random numbers."""
        return self.model.stochastic or getattr(self.strategy, "dropout", None) is not None

    def rate(self, count: Any) -> Any:
        """Return the learning rate of update ``count`` (from 0)."""
        return self.lr * self.schedule.shape(count, self.steps)


# Constants that are folded into the seed, one for each use. Initial parameters come from the seed itself.
ORDER_STREAM, DROPOUT_STREAM, ADDED_STREAM, REHEARSAL_STREAM = 0x0DA7A, 0xD40, 0xADDED, 0x4EA7
CORRUPTION_STREAM, MEMORY_STREAM = 0xC0440, 0x3E3


def stream_key(stage: Stage, stream: int) -> Array:
    """Return the key of one use of the stage's seed."""
    return jax.random.fold_in(jax.random.PRNGKey(stage.seed), stream)


def traced(stage: Stage) -> dict[str, np.ndarray]:
    """Return the stage's traced hyperparameters as arrays, by dotted path."""
    integers = {"seed": np.uint32, "steps": np.int32, "first": np.int32}
    return {path: np.asarray(value, integers.get(path, np.float32)) for path, value in hyperparameters(stage).items()}


# --- parameters ----------------------------------------------------------------------------------------------------


def initial(stage: Stage, features: tuple[int, ...], stream: int) -> Params:
    """Return the model's initial parameters: from ``PRNGKey(seed)``, or from a stream > 0 folded into it."""
    key = stream_key(stage, stream) if stream else jax.random.PRNGKey(stage.seed)
    return stage.model.init(key, features, stage.outputs)


def added(stage: Stage, params: Params) -> Params:
    """Return the parameters that the strategy adds, or resets, when fine-tuning begins."""
    return stage.strategy.prepare(stream_key(stage, ADDED_STREAM), params, stage.model) if stage.phase == 0 else {}


def added_shapes(stage: Stage, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of what :func:`added` returns."""
    return jax.eval_shape(functools.partial(added, stage), dict(params))


def with_added(stage: Stage, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters and what the strategy adds; the latter as shapes only."""
    return {**params, **added_shapes(stage, params)}


def param_labels(stage: Stage, params: Mapping[str, Any]) -> ParamLabels:
    """Return each parameter's learning-rate multiplier, or ``FROZEN``, in the stage's phase."""
    groups = stage.model.groups()
    return match_rules(stage.strategy.tables(groups)[stage.phase], params, groups, part=stage.bottom > 0)


def optimized_paths(stage: Stage, labels: ParamLabels) -> tuple[str, ...]:
    """Return the paths that the optimizer sees: the trainable ones, or all with the two reference implementations."""
    everything = (stage.freeze_impl or stage.strategy.freeze_impl) is not FreezeImpl.split
    return tuple(path for path in (labels.lr_scale if everything else labels.trainable) if not is_statistic(path))


def trainable_statistics(labels: ParamLabels) -> frozenset[str]:
    """Return the batch statistics that are updated: those of trainable groups. All others stay as they are."""
    return frozenset(path for path in labels.trainable if is_statistic(path))


def frozen_paths(stage: Stage, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of a run's parameters that are not part of the train state."""
    labels = param_labels(stage, params)
    state = {*optimized_paths(stage, labels), *trainable_statistics(labels)}
    return tuple(path for path in params if path not in state)


# --- the optimizer -------------------------------------------------------------------------------------------------


def optimizer_groups(stage: Stage, paths: tuple[str, ...]) -> dict[str, str] | None:
    """Return the phase since which each path has been trainable without a break; ``None`` if there is one phase.

    Each group has an optimizer state of its own. A parameter that is unfrozen later starts with a fresh state: Adam's
    bias correction divides by ``1 - b ** count``, so a shared count would make its first updates several times too
    large.
    """
    groups = stage.model.groups()
    tables = stage.strategy.tables(groups)
    if len(tables) == 1:
        return None
    trainable = [set(match_rules(table, paths, groups, part=True).trainable) for table in tables[: stage.phase + 1]]
    since = dict.fromkeys(paths, stage.phase)
    for path in paths:
        while since[path] > 0 and path in trainable[since[path] - 1]:
            since[path] -= 1
    return {path: str(phase) for path, phase in since.items()}


def gradient_transformation(stage: Stage, labels: ParamLabels) -> optax.GradientTransformation:
    """Return the stage's Optax transformation."""
    paths = optimized_paths(stage, labels)
    lr_scale = {path: labels.lr_scale[path] for path in labels.lr_scale if not is_statistic(path)}
    freeze_impl = stage.freeze_impl or stage.strategy.freeze_impl
    return transformation(stage.optimizer, stage.rate, lr_scale, freeze_impl, optimizer_groups(stage, paths))
