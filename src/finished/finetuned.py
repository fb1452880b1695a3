"""Jobs whose weights can be averaged: fine-tunings that share their pre-training, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import ArrayLike, Float

from ..checkpoints.adapters import LORA_PARAMS
from ..config.choices import CacheMode
from ..config.schema import option_name
from ..errors import UserError, listed
from ..models.base import head_paths
from ..models.projected import Wrapped
from ..objectives.kinds import for_kind
from ..recipe.pretrain import Pretrained, pretrain_or_load
from ..recipe.resolve import finetune_stage, resolve
from ..strategies.full import Full
from ..tracking.cache import stage_cache
from ..training.calls import execute
from ..training.stage import Stage
from ..types import Params, ignore
from .evaluation import EvalTask, Interpolation
from .jobs import FinishedJob, read_job


def read_finetuned_job(folder: Path) -> FinishedJob:
    """Return a completed job that was fine-tuned, with its data loaded.

    Raises:
        UserError: no completed job, or one whose weights cannot be averaged.
    """
    job = read_job(folder)
    recipe, added = job.plan.recipe, set(job.plan.recipe.strategy.adapter_params)
    if added & set(LORA_PARAMS) and not added <= set(LORA_PARAMS):
        raise UserError(
            f"'{folder}' has strategy={option_name(recipe.strategy)}, whose change of the kernels is not a sum of "
            "low-rank changes; allowed: strategies that add such a sum, as lora does, or leave kernels whole"
        )
    if not recipe.strategy.pretrained:
        raise UserError(f"'{folder}' started from no pre-training; allowed: a job that was fine-tuned")
    if isinstance(recipe.pretrain.pretrain_task(recipe.model, job.data).model, Wrapped):
        raise UserError(
            f"'{folder}' was pre-trained by pretrain={option_name(recipe.pretrain)}, whose head is not part of the "
            "fine-tuned model, so its source task cannot be evaluated; allowed: pre-training that keeps the model's "
            "own head, as supervised and mlm do"
        )
    return job


def eval_stage(job: FinishedJob) -> Stage:
    """Return the stage that evaluates a job's merged weights: without LoRA's parameters, with those of others."""
    strategy = job.plan.recipe.strategy
    merged = Full() if set(strategy.adapter_params) <= set(LORA_PARAMS) else strategy
    return replace(
        finetune_stage(job.plan.recipe, job.data.outputs, for_kind(job.data.kind, job.data.vocabulary)), strategy=merged
    )


def compatibility_key(job: FinishedJob) -> tuple[Any, ...]:
    """Return what jobs must share for an average of their weights to be meaningful: pre-training, data, strategy."""
    stage = replace(resolve(job.plan.recipe, job.data).pretrain_stage, log_every=1)  # which changes no weights
    return stage, job.data.fingerprint, eval_stage(job).strategy


class FinetunedWeights(NamedTuple):
    """A job's weights before and after fine-tuning."""

    job: FinishedJob
    pretrained: Params
    params: Params  # LoRA merged into the kernels

    @property
    def source_head(self) -> dict[str, Any]:
        """The head that learned the source task."""
        own = head_paths(self.job.plan.recipe.model, self.pretrained)
        return {path: leaf for path, leaf in self.pretrained.items() if path in own}

    def interpolation(self, alphas: Float[ArrayLike, " points"]) -> Interpolation:
        """Return points from the pre-trained to the fine-tuned weights; a head of a new label space stays."""
        kept = tuple(self.source_head) if self.job.data.new_head else ()
        return Interpolation(self.pretrained, self.params, alphas, kept)

    def tasks(self) -> list[EvalTask]:
        """Return the target's validation and test rows, and the source's test rows.

        The source is evaluated with its own head where the target has another label space, else with the one head.
        """
        stage, data = eval_stage(self.job), self.job.data
        source_stage = replace(stage, outputs=data.source_outputs)
        source_head = self.source_head if data.new_head else {}
        return [
            EvalTask(stage, {name: data.target[name] for name in ("val", "test")}),
            EvalTask(source_stage, {"source_test": data.source["test"]}, source_head),
        ]


def read_finetuned(jobs: Sequence[FinishedJob]) -> list[FinetunedWeights]:
    """Return the weights of jobs that share a pre-training, which is taken from the stage cache or computed again.

    Raises:
        UserError: jobs of several pre-trainings or data, or a pre-training that can no longer be reproduced.
    """
    for job in jobs[1:]:
        if difference := _difference(jobs[0], job):
            raise UserError(
                f"'{jobs[0].folder}' and '{job.folder}' do not share {difference}, so an average of their weights is "
                "not meaningful; allowed: fine-tunings of one pre-training"
            )
    pre = pretraining_of(jobs[0])
    for job in jobs:
        recorded, computed = job.record.metrics.get("source_test_loss"), pre.metrics.get("source_test_loss")
        if recorded is not None and computed is not None and not math.isclose(recorded, computed, rel_tol=1e-3):
            raise UserError(
                f"the pre-training of '{job.folder}' cannot be reproduced: its source_test_loss was {recorded:g} and "
                f"is {computed:g}; allowed: the version of Thaw that ran the job"
            )
    return [FinetunedWeights(job, pre.params, job.merged_params()) for job in jobs]


def _difference(a: FinishedJob, b: FinishedJob) -> str:
    names = ("their model and pre-training", "their data", "their strategy's own parameters")
    return listed(n for n, x, y in zip(names, compatibility_key(a), compatibility_key(b), strict=True) if x != y)


def pretraining_of(job: FinishedJob) -> Pretrained:
    """Return a job's pre-training: from the stage cache, or computed as the job's configuration says."""
    study = job.plan.study
    if study.cache is CacheMode.refresh:
        study = replace(study, cache=CacheMode.use)
    return execute(pretrain_or_load(resolve(job.plan.recipe, job.data), stage_cache(study), ignore))
