"""From a recipe and its data to a run: stages, trainable parameters, the head and cache keys, each decided here, once.

Everything that a user can get wrong about a run is refused here, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from ..checkpoints import huggingface
from ..config.schema import option_class, option_name, option_names
from ..data.base import Transfer
from ..errors import UserError, listed
from ..models.base import Model, head_paths, is_statistic
from ..objectives.base import Objective
from ..objectives.kinds import for_kind
from ..optim.optimizers import FreezeImpl
from ..optim.partition import ParamLabels
from ..pretraining.base import PretrainTask
from ..retention.base import FinetuneSetup
from ..strategies.full import Full
from ..training.cache_key import stage_key
from ..training.stage import Stage, added_shapes, initial, param_labels, with_added
from ..training.trainer import Precision
from .spec import Recipe

PRETRAINING_VERSION = 3  # raise it when pretrain.py computes something else that no `Stage` shows


class TrainableSummary(NamedTuple):
    """Which parameters fine-tuning trains, phase by phase."""

    labels: tuple[ParamLabels, ...]
    lengths: tuple[int, ...]  # updates of each phase
    sizes: dict[str, int]  # parameters by path; 0 for batch statistics

    @property
    def paths(self) -> set[str]:
        """The paths that some phase trains."""
        return {path for labels in self.labels for path in labels.trainable}

    @property
    def trainable(self) -> int:
        """The number of parameters that some phase trains."""
        return sum(self.sizes[path] for path in self.paths)

    @property
    def total(self) -> int:
        """The number of parameters, those that the strategy adds included."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class ResolvedRun:
    """One run, ready to be executed."""

    recipe: Recipe
    data: Transfer
    trainable: TrainableSummary
    freeze_impl: FreezeImpl | None = None  # of fine-tuning; None: as the strategy says

    def bind(self, recipe: Recipe) -> ResolvedRun:
        """Return the run of a recipe that differs in traced hyperparameters only."""
        return replace(self, recipe=recipe)

    # --- pre-training ----------------------------------------------------------------------------------------------

    @cached_property
    def pretrain_task(self) -> PretrainTask:
        """The network and the objective that learn the source task."""
        return self.recipe.pretrain.pretrain_task(self.recipe.model, self.data)

    @cached_property
    def pretrain_stage(self) -> Stage:
        """The stage that learns the source task: all parameters are trained."""
        recipe, task = self.recipe, self.pretrain_task
        return Stage(
            model=task.model,
            outputs=task.outputs,
            objective=task.objective,
            strategy=Full(),
            optimizer=recipe.pretrain.optimizer,
            schedule=recipe.pretrain.schedule,
            lr=recipe.lr_pre,
            steps=recipe.pretrain_steps,
            seed=recipe.seed,
            batch_size=recipe.pretrain.batch_size or recipe.batch_size,
            log_every=recipe.log_every,
        )

    @property
    def learns_source(self) -> bool:
        """Whether there is a source task to learn; otherwise a checkpoint is all there is of it."""
        return self.recipe.pretrain.trains and bool(self.data.source)

    @property
    def starts_from_source(self) -> bool:
        """Whether fine-tuning starts from a source task that this run learns."""
        return self.recipe.strategy.pretrained and self.learns_source

    @property
    def pretrain_identity(self) -> Any:
        """What decides the pre-training: equal for runs that share it."""
        settings = tuple(self.recipe.pretrain.feature_eval_settings().items())
        return self.pretrain_stage, settings, self.data.source_fingerprint, self.recipe.strategy.pretrained

    @cached_property
    def cache_key(self) -> str:
        """The name of the pre-training in the stage cache."""
        settings = self.recipe.pretrain.feature_eval_settings()
        extra = {**device_kind(), "recipe": PRETRAINING_VERSION, "measures": settings}
        if (checkpoint := huggingface.fingerprint(self.recipe.model)) is not None:
            extra["checkpoint"] = checkpoint
        return stage_key(self.pretrain_stage, self.data.source_fingerprint, extra)

    # --- fine-tuning -----------------------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> tuple[Stage, ...]:
        """The stage of each phase of fine-tuning."""
        return finetune_phases(self.recipe, self.data, self.freeze_impl)

    @property
    def replaces_head(self) -> bool:
        """Whether fine-tuning starts with a new head in place of the source task's."""
        return self.pretrain_task.new_head


def device_kind() -> dict[str, str]:
    """Return the kind of device, which cache keys depend on: devices round differently."""
    return {"platform": jax.devices()[0].device_kind}


def resolve(recipe: Recipe, data: Transfer, freeze_impl: FreezeImpl | None = None) -> ResolvedRun:
    """Return the run of a recipe on its data.

    Args:
        recipe: what to do.
        data: both tasks.
        freeze_impl: how fine-tuning freezes parameters; ``None``: as the strategy says.

    Raises:
        UserError: the recipe does not fit the data: inputs that the model does not take, a pattern that matches no
            parameter, nothing to train, a schedule or phases that do not fit the number of updates.
    """
    check_inputs(recipe.model, data.target["train"].x)
    if recipe.strategy.pretrained:
        recipe.pretrain.check(recipe.model, data, pretrain_batch(recipe, data))
        check_eval_every(recipe)
    if not data.source and recipe.strategy.pretrained and not recipe.model.has_checkpoint:
        raise UserError(
            "data has no source task and the model no checkpoint, so there is nothing to start from; allowed: "
            "model.checkpoint=<folder or name>, strategy=scratch, or data with a source task"
        )
    recipe.pretrain.schedule.check(recipe.pretrain_steps, "pretrain.schedule")
    learns_source = recipe.pretrain.trains and bool(data.source)
    objective = recipe.pretrain.pretrain_task(recipe.model, data).objective if learns_source else None
    phases = finetune_phases(recipe, data, freeze_impl)
    return ResolvedRun(recipe, data, summarize_trainable(phases, data.features, objective), freeze_impl)


def finetune_phases(recipe: Recipe, data: Transfer, freeze_impl: FreezeImpl | None = None) -> tuple[Stage, ...]:
    """Return the stage of each phase of fine-tuning; their updates are numbered consecutively.

    Raises:
        UserError: the strategy's phases, the schedule or the trainer do not fit the run.
    """
    if recipe.trainer.frozen_precision is not Precision.float32:
        freeze_impl = FreezeImpl.split  # only parameters outside the train state can be stored in another precision
    rows = len(data.target["train"].x)
    batch = min(recipe.batch_size or rows, rows)
    recipe.trainer.check(data.kind, batch)
    count = len(recipe.strategy.tables(recipe.model.groups()))
    lengths = recipe.strategy.phase_steps(count, recipe.finetune_steps, -(-rows // batch))
    for length in lengths:
        recipe.schedule.check(length)
    stage = replace(finetune_stage(recipe, data.outputs, for_kind(data.kind, data.vocabulary)), freeze_impl=freeze_impl)
    firsts = [sum(lengths[:phase]) for phase in range(count)]
    return tuple(
        replace(stage, phase=phase, steps=length, first=first)
        for phase, (length, first) in enumerate(zip(lengths, firsts, strict=True))
    )


def finetune_stage(recipe: Recipe, outputs: int, objective: Objective) -> Stage:
    """Return the stage that learns a task with the recipe's strategy, optimizer and retention method."""
    return Stage(
        model=recipe.model,
        outputs=outputs,
        objective=objective,
        strategy=recipe.strategy,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        lr=recipe.lr_fine,
        steps=recipe.finetune_steps,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        log_every=recipe.log_every,
        trainer=recipe.trainer,
        retention=recipe.retention,
    )


def summarize_trainable(
    phases: Sequence[Stage], features: tuple[int, ...], source_objective: Objective | None
) -> TrainableSummary:
    """Return which parameters the phases train, and check them against the retention method.

    Args:
        phases: the stages of one run.
        features: the shape of a row of inputs.
        source_objective: of the source task; ``None`` where there are no rows of it, only a checkpoint.
    """
    first = phases[0]
    shapes = jax.eval_shape(lambda: initial(first, features, 0))
    whole = with_added(first, shapes)
    sizes = {path: 0 if is_statistic(path) else math.prod(leaf.shape) for path, leaf in whole.items()}
    labels = tuple(param_labels(stage, whole) for stage in phases)
    summary = TrainableSummary(labels, tuple(stage.steps for stage in phases), sizes)
    head, strategy = head_paths(first.model, shapes), first.strategy
    setup = FinetuneSetup(summary.paths, head, strategy.adapter_params, strategy.pretrained, source_objective)
    first.retention.check(setup)
    return summary


def new_head_paths(run: ResolvedRun, params: Mapping[str, Any]) -> frozenset[str]:
    """Return the paths of the source's head if fine-tuning replaces or resets it; otherwise none."""
    head = head_paths(run.pretrain_stage.model, params)
    reset = not head.isdisjoint(added_shapes(run.phases[0], params))
    return head if run.replaces_head or reset else frozenset()


# --- checks --------------------------------------------------------------------------------------------------------


def pretrain_batch(recipe: Recipe, data: Transfer) -> int:
    """Return the rows per update that pre-training is configured for; the data may have fewer."""
    return recipe.pretrain.batch_size or recipe.batch_size or len((data.source or data.target)["train"].x)


def check_eval_every(recipe: Recipe) -> None:
    """Refuse an evaluation of features between two logged rows: its numbers join a row."""
    every = recipe.pretrain.feature_eval_every()
    if every is not None and every % recipe.log_every:
        raise UserError(f"pretrain.eval_every is {every}; allowed: a multiple of log_every ({recipe.log_every})")


def check_inputs(model: Model, x: np.ndarray) -> None:
    """Refuse data of a kind that the model does not take: texts, images or numbers."""
    given, taken = _inputs(x.dtype), _inputs(model.input_dtype)
    if given == "numbers" and taken == "images" and x.ndim == 4:  # images with values from 0 to 1
        return
    if given != taken:
        fits = [name for name in option_names("model") if _inputs(option_class("model", name).input_dtype) == given]
        raise UserError(
            f"model={option_name(model)} takes {taken}, and the data is {given}; allowed: model={listed(fits)}"
        )


def _inputs(dtype: Any) -> str:
    if np.dtype(dtype) == np.uint8:
        return "images"
    return "texts" if np.issubdtype(np.dtype(dtype), np.integer) else "numbers"
