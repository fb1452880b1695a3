"""Parts of runs that the benchmarks time."""

from __future__ import annotations

from collections.abc import Sequence

from src.data.base import Transfer
from src.optim.optimizers import FreezeImpl
from src.recipe.finetune import retention_state_of
from src.recipe.pretrain import Pretrained, untrained
from src.recipe.pretrain import pretrain as pretrain_steps
from src.recipe.resolve import ResolvedRun, resolve
from src.recipe.run import RunResult, finetune_together
from src.recipe.spec import Recipe
from src.retention.base import RetentionState
from src.training.calls import execute
from src.training.loop import PhaseData, PhaseRun, PhaseRunner, RunProgress
from src.training.stage import Stage
from src.training.vectorize import RunAxis
from src.types import Params, Split, ignore


def first_phase(recipe: Recipe, data: Transfer) -> Stage:
    """Return the stage of the first phase of fine-tuning."""
    return resolve(recipe, data).phases[0]


def start_untrained(recipe: Recipe, data: Transfer) -> Pretrained:
    """Return the start of a run that learns no source task."""
    return execute(untrained(resolve(recipe, data)))


def pretrain(recipe: Recipe, data: Transfer) -> Pretrained:
    """Learn the source task."""
    return execute(pretrain_steps(resolve(recipe, data), ignore))


def retention_state(recipe: Recipe, data: Transfer, params: Params) -> RetentionState | None:
    """Return what the retention method keeps of the source task."""
    return execute(retention_state_of(resolve(recipe, data), params, None))


def runner(stage: Stage, params: Params, data: Split, state: RetentionState | None = None) -> PhaseRunner:
    """Return what makes the updates of a stage."""
    return PhaseRunner([PhaseRun(stage, params, RunProgress(ignore), state)], PhaseData(data), RunAxis.none)


def finetune(
    recipes: Sequence[Recipe], data: Transfer, start: Pretrained, axis: RunAxis = RunAxis.none
) -> list[RunResult]:
    """Fine-tune and evaluate recipes that share a start and differ in traced hyperparameters only."""
    impl = None if axis is RunAxis.none else FreezeImpl.split
    runs: list[ResolvedRun] = [resolve(recipe, data, impl) for recipe in recipes]
    return finetune_together(runs, [start] * len(runs), [ignore] * len(runs), axis)
