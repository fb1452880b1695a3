"""Evaluations of a stage as pure functions of arrays, and the best evaluation so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models.base import ApplyOptions
from ..types import Params, Split
from .forward import by_chunks, forward
from .stage import Stage

EVALUATION_KEY = 0xE7A1  # of an objective's random draws in an evaluation: the same each time, whatever the seed


def evaluate(
    stage: Stage, trainable: Params, frozen: Params, splits: Mapping[str, Split], full: bool = False
) -> dict[str, Float[Array, ""]]:
    """Return ``{"val_loss": ...}``: the objective's metrics of each split, prefixed with its name.

    Args:
        stage: what is trained.
        trainable: the half in the train state, as :func:`src.training.step.eval_params` returns it.
        frozen: the other half.
        splits: by name.
        full: all metrics of a finished stage, not only those that are logged during training.
    """
    found, objective = {}, stage.objective
    for name, data in splits.items():
        x, y = objective.corrupt(jax.random.PRNGKey(EVALUATION_KEY), *data) if objective.corrupts else data
        outputs = _reduced_outputs(stage, trainable, frozen, Split(x, y))
        for metric, value in (objective.report if full else objective.metrics)(outputs, y).items():
            found[f"{name}_{metric}"] = value
    return found


def _reduced_outputs(stage: Stage, trainable: Params, frozen: Params, data: Split) -> Array:
    """Return what the objective's metrics need of all rows' outputs, in chunks of the size that the model allows."""

    def run(x: Array) -> Array:
        return forward(stage, trainable, frozen, x, ApplyOptions())[0]

    def reduced(part: Split) -> Array:
        return stage.objective.reduce_outputs(stage.objective.apply_eval(run, part.x), part.y)

    return by_chunks(reduced, stage.model.eval_batch_size(data.x.shape[1:]), data)


def predictions(stage: Stage, trainable: Params, frozen: Params, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs for all rows of each part, in chunks of the size that the model allows."""

    def outputs(x: Array) -> Array:
        return forward(stage, trainable, frozen, x, ApplyOptions())[0]

    return {name: by_chunks(outputs, stage.model.eval_batch_size(x.shape[1:]), x) for name, x in inputs.items()}


class Best(NamedTuple):
    """The best evaluation so far."""

    params: Params  # the trainable half
    loss: Float[Array, ""]
    step: Int[Array, ""]  # updates before it
    waited: Int[Array, ""]  # evaluations since


def update_best(stage: Stage, best: Best, trainable: Params, loss: Any, step: Any) -> Best:
    """Return the best evaluation after one more; once the patience is used up it no longer changes.

    A loss that is NaN is no improvement.
    """
    improved = loss < best.loss - jnp.where(jnp.isfinite(best.loss), stage.trainer.min_delta, 0.0)
    if stage.trainer.patience is not None:
        improved &= best.waited < stage.trainer.patience
    new = Best(trainable, jnp.asarray(loss, jnp.float32), jnp.asarray(step, jnp.int32), jnp.zeros((), jnp.int32))
    old = best._replace(waited=best.waited + 1)
    return jax.tree.map(lambda new, old: jnp.where(improved, new, old), new, old)


def init_best(trainable: Params) -> Best:
    """Return the best evaluation before the first one."""
    zero = jnp.zeros((), jnp.int32)
    return Best(jax.tree.map(jnp.zeros_like, trainable), jnp.full((), jnp.inf), zero, zero)
