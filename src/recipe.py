"""The recipe, top to bottom: pre-train on the source task, then fine-tune on the target task.

:func:`run` is what the command line runs; :func:`pretrain_then_finetune` is the reference function, on the same engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from src.config import Knobs, knob, static_part
from src.data.base import Transfer
from src.engine.loop import (
    Fit,
    Row,
    Split,
    Stage,
    Watch,
    fit,
    ignore,
    initial,
    number,
    placement,
    programs,
    traced,
)
from src.engine.optimizers import Optimizer, Sgd
from src.engine.partition import Placement
from src.engine.schedules import Constant, Schedule
from src.models.base import Model, Params, new_head
from src.models.mlp import Mlp
from src.objectives.supervised import OBJECTIVES, Supervised
from src.strategies.base import Strategy
from src.strategies.frozen import Frozen
from src.strategies.full import Full


@dataclass(frozen=True)
class Recipe(Knobs):
    """Everything that decides a run's numbers, apart from the data."""

    model: Model = knob(Mlp())
    pretrain: Supervised = knob(Supervised(Sgd(), Constant()))
    strategy: Strategy = knob(Frozen())
    optimizer: Optimizer = knob(Sgd())
    schedule: Schedule = knob(Constant())


@dataclass(frozen=True)
class Outcome:
    """What a run ends with."""

    params: Params
    metrics: dict[str, float]  # of the final parameters, by split; empty when the run diverged
    diverged: bool
    last_finite_step: int  # of the stage that the run ended in
    placement: Placement
    flops_per_step: float  # of fine-tuning; of pre-training when that diverged
    seconds: dict[str, float]  # wall time by stage

    @property
    def status(self) -> str:
        """``"completed"`` or ``"diverged"``."""
        return "diverged" if self.diverged else "completed"

    @property
    def objective(self) -> float:
        """The validation loss; infinite when the run diverged."""
        return float("inf") if self.diverged else self.metrics["val_loss"]


def pretraining_stage(recipe: Recipe, data: Transfer) -> Stage:
    """Return the stage that learns the source task: everything moves."""
    return Stage(
        model=recipe.model,
        outputs=data.source_outputs,
        objective=OBJECTIVES[data.kind],
        strategy=Full(),
        optimizer=recipe.pretrain.optimizer,
        schedule=recipe.pretrain.schedule,
        lr=recipe.lr_pre,
        steps=recipe.pretrain_steps,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        log_every=recipe.log_every,
    )


def finetuning_stage(recipe: Recipe, data: Transfer) -> Stage:
    """Return the stage that learns the target task under the strategy."""
    return Stage(
        model=recipe.model,
        outputs=data.outputs,
        objective=OBJECTIVES[data.kind],
        strategy=recipe.strategy,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        lr=recipe.lr_fine,
        steps=recipe.finetune_steps,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        log_every=recipe.log_every,
    )


def initial_params(stage: Stage, data: Transfer, stream: int = 0) -> Params:
    """Return the model's initial parameters from ``PRNGKey(seed)``, or from a stream folded into it."""
    features = data.source["train"].x.shape[1:]
    return programs(static_part(stage)).init(features, stream)(traced(stage))


def pretrain(recipe: Recipe, data: Transfer, watch: Watch = ignore) -> Fit:
    """Learn the source task from scratch."""
    stage = pretraining_stage(recipe, data)
    return fit(stage, initial_params(stage, data), data.source["train"], {}, watch)


def finetune(recipe: Recipe, data: Transfer, params: Params, watch: Watch = ignore) -> Fit:
    """Learn the target task from pre-trained parameters, with a new head where the label space is new."""
    stage = finetuning_stage(recipe, data)
    if data.new_head:
        params = new_head(recipe.model, params, initial_params(stage, data, stream=NEW_HEAD_STREAM))
    watched = {name: part for name, part in data.target.items() if name == "val"}
    return fit(stage, params, data.target["train"], watched, watch)


NEW_HEAD_STREAM = 1  # of the seed: a new head must not repeat the values that the first one started from


def where_it_moves(recipe: Recipe, data: Transfer) -> tuple[Placement, dict[str, int]]:
    """Return what the strategy's table matched, and each parameter's size, before anything is trained.

    Raises:
        UserError: a pattern that matches nothing, or nothing left to train.
    """
    stage = finetuning_stage(recipe, data)
    shapes = jax.eval_shape(lambda: initial(stage, data.source["train"].x.shape[1:], 0))
    return placement(stage, shapes), {path: math.prod(leaf.shape) for path, leaf in shapes.items()}


def run(recipe: Recipe, data: Transfer, watch: Callable[[str, Row], None]) -> Outcome:
    """Pre-train, fine-tune, evaluate.

    Args:
        recipe: what to do.
        data: both tasks.
        watch: called with ``"pretrain"`` or ``"finetune"`` and each logged row.

    Raises:
        UserError: the strategy's table does not fit the model; nothing has been trained then.
    """
    placed, _ = where_it_moves(recipe, data)
    started = time.perf_counter()
    pre = pretrain(recipe, data, partial(watch, "pretrain"))
    metrics = measure(pretraining_stage(recipe, data), pre.params, {"source_test": data.source["test"]})
    halfway = time.perf_counter()
    if pre.diverged:
        return Outcome(
            pre.params,
            {},
            True,
            pre.last_finite_step,
            placed,
            pre.flops_per_step,
            {"pretrain": halfway - started},
        )
    fine = finetune(recipe, data, pre.params, partial(watch, "finetune"))
    metrics |= measure(finetuning_stage(recipe, data), fine.params, data.target)
    seconds = {"pretrain": halfway - started, "finetune": time.perf_counter() - halfway}
    diverged = fine.diverged or not all(map(math.isfinite, metrics.values()))
    return Outcome(
        fine.params,
        {} if diverged else metrics,
        diverged,
        fine.last_finite_step,
        placed,
        fine.flops_per_step,
        seconds,
    )


def measure(stage: Stage, params: Params, splits: Mapping[str, Split]) -> dict[str, float]:
    """Return the stage's metrics of each split as numbers."""
    found = programs(static_part(stage)).evaluate(traced(stage), params, dict(splits))
    # JAX hands dictionaries back with sorted keys; people read train, val, test.
    return {name: number(found[name]) for split in splits for name in found if name.startswith(f"{split}_")}


def pretrain_then_finetune(
    seed: float,
    x_pre: Float[ArrayLike, "Np D"],
    y_pre: Float[ArrayLike, " Np"],
    x_fine: Float[ArrayLike, "Nf D"],
    y_fine: Float[ArrayLike, " Nf"],
    lr_pre: float,
    lr_fine: float,
    finetune_steps: float,
) -> Float[Array, " 1"]:
    """Pre-train ``Dense(8) -> relu -> Dense(1)`` for 3 SGD steps, then fine-tune it with ``Dense_0`` frozen.

    The loss is the mean squared error over ``(N,)`` predictions; initial values come from ``PRNGKey(int(seed))``.

    Args:
        seed: cast to int.
        x_pre: source features.
        y_pre: source targets.
        x_fine: target features.
        y_fine: target targets.
        lr_pre: learning rate of pre-training.
        lr_fine: learning rate of fine-tuning.
        finetune_steps: number of fine-tuning updates, cast to int; 0 evaluates the pre-trained network.

    Returns:
        The loss on ``(x_fine, y_fine)`` after the last update, shape (1,).
    """
    recipe = Recipe(
        seed=int(seed),
        lr_pre=float(lr_pre),
        lr_fine=float(lr_fine),
        pretrain_steps=3,
        finetune_steps=int(finetune_steps),
        log_every=100,
    )

    def part(x: ArrayLike, y: ArrayLike) -> Split:
        return Split(np.asarray(x, np.float32), np.asarray(y, np.float32))

    data = Transfer("regression", {"train": part(x_pre, y_pre)}, {"train": part(x_fine, y_fine)}, 1, 1, new_head=False)
    fine = finetune(recipe, data, pretrain(recipe, data).params)
    return jnp.array([measure(finetuning_stage(recipe, data), fine.params, data.target)["train_loss"]], jnp.float32)
