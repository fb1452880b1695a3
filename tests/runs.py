"""Stages of runs for tests: one recipe, or several that differ in traced hyperparameters only."""

from typing import NamedTuple

import jax

from src.optim.optimizers import FreezeImpl
from src.recipe.evaluate import evaluate_target
from src.recipe.finetune import finetune as finetune_steps
from src.recipe.finetune import retention_state_of
from src.recipe.pretrain import pretrain as pretrain_steps
from src.recipe.pretrain import pretrain_or_load, untrained
from src.recipe.resolve import ResolvedRun, TrainableSummary, finetune_phases, resolve
from src.recipe.run import finetune_together, pretrain_together
from src.recipe.run import run as run_resolved
from src.training.calls import Evaluate, InitParams, execute, execute_together
from src.training.compiled import Cost
from src.training.feature_cache import Inputs
from src.training.loop import Fit
from src.training.stage import Stage, initial, param_labels, with_added
from src.training.vectorize import RunAxis
from src.types import ignore


class Ends(NamedTuple):
    """The ends of fine-tuning, one for each run."""

    fits: list[Fit]
    metrics: list[dict[str, float]]
    cost: Cost


def resolve_all(recipes, data, axis=RunAxis.none):
    """Return the runs unchecked, with the frozen half outside the state where they have a run axis."""
    impl = None if axis is RunAxis.none else FreezeImpl.split
    return [ResolvedRun(recipe, data, trainable(recipe, data), impl) for recipe in recipes]


def trainable(recipe, data):
    """Return what fine-tuning trains; no retention method refuses it."""
    first, *_ = stages = finetune_phases(recipe, data)
    params = with_added(first, jax.eval_shape(lambda: initial(first, data.features, 0)))
    lengths = tuple(stage.steps for stage in stages)
    return TrainableSummary(tuple(param_labels(stage, params) for stage in stages), lengths, {})


def run(recipe, data, log_fn=lambda stage, row: None, cache=None):
    """Run one recipe from start to end."""
    return run_resolved(resolve(recipe, data), log_fn, cache)


def pretrain(recipes, data, axis=RunAxis.none, log_fn=ignore):
    """Learn the source task."""
    return execute_together([pretrain_steps(one, log_fn) for one in resolve_all(recipes, data, axis)], axis)


def pretrain_once(recipes, data, cache, axis=RunAxis.none, log_fn=ignore):
    """Learn the source task, or load it."""
    runs = resolve_all(recipes, data, axis)
    if axis is RunAxis.none:
        return [execute(pretrain_or_load(runs[0], cache, log_fn))]
    return pretrain_together(runs, cache, axis)


def start_untrained(recipes, data, axis=RunAxis.none):
    """Return the start of runs that learn no source task."""
    return execute_together([untrained(one) for one in resolve_all(recipes, data, axis)], axis)


def finetune(recipes, data, starts, log_fns, axis=RunAxis.none, cache=None):
    """Fine-tune and evaluate the target task."""

    def steps(one, start, log_fn):
        fine = yield from finetune_steps(one, start, log_fn, cache)
        return fine, (yield from evaluate_target(one, fine))

    runs = zip(resolve_all(recipes, data, axis), starts, log_fns, strict=True)
    ends = execute_together([steps(*each) for each in runs], axis)
    return Ends([fine.fit for fine, _ in ends], [metrics for _, metrics in ends], ends[0][0].cost)


def run_finetuning(recipes, data, pretrained, log_fns, axis=RunAxis.none, cache=None):
    """Fine-tune and evaluate both tasks."""
    return finetune_together(resolve_all(recipes, data, axis), pretrained, log_fns, axis, cache)


def phases(recipes, data, axis=RunAxis.none):
    """Return the stages of each phase, one for each run."""
    return [list(stages) for stages in zip(*(one.phases for one in resolve_all(recipes, data, axis)), strict=True)]


def pretraining_stage(recipe, data):
    """Return the stage that learns the source task."""
    return resolve(recipe, data).pretrain_stage


def retention_states(recipes, data, starts, cache=None):
    """Return what the retention method keeps, one for each run."""
    runs = zip(resolve_all(recipes, data), starts, strict=True)
    return execute_together([retention_state_of(one, start, cache) for one, start in runs], RunAxis.none)


def measure(stages, params, splits):
    """Return all metrics of each split, one dict for each stage."""
    return [execute(_call(Evaluate(*each, Inputs(splits)))) for each in zip(stages, params, strict=True)]


def first_params(stage: Stage, data, stream=0):
    """Return a stage's initial parameters."""
    return execute(_call(InitParams(stage, data.features, stream)))


def pretrained(recipe, data):
    """Return the parameters after pre-training."""
    return pretrain([recipe], data)[0].params


def finetuned(recipe, data, params, log_fn=ignore):
    """Return the end of fine-tuning."""
    return finetune([recipe], data, [params], [log_fn]).fits[0]


def _call(call):
    return (yield call)


def resolve_trainable(recipe, data):
    """Return which parameters fine-tuning trains."""
    return resolve(recipe, data).trainable


def initial_params(stages, data, axis=RunAxis.none, stream=0):
    """Return each stage's initial parameters."""
    return execute_together([_call(InitParams(stage, data.features, stream)) for stage in stages], axis)


def finetuning_stage(recipe, data):
    """Return the stage of the first phase of fine-tuning."""
    return resolve(recipe, data).phases[0]
