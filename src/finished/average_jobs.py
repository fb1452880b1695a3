"""WiSE-FT and model soups of finished jobs: which jobs can be averaged, and the metrics of what results.

Jobs can be averaged if they were fine-tuned from one pre-training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import ArrayLike, Float

from ..checkpoints.adapters import LORA_PARAMS
from ..config.choices import CacheMode
from ..config.schema import option_name
from ..errors import UserError, listed
from ..models.base import head_paths, is_statistic, same_bits
from ..models.projected import Wrapped
from ..objectives.kinds import for_kind
from ..recipe.pretrain import Pretrained, pretrain_or_load
from ..recipe.resolve import finetune_stage, resolve
from ..strategies.full import Full
from ..tracking.cache import stage_cache
from ..tracking.record_reader import job_folders, natural_key
from ..training.calls import execute
from ..training.stage import Stage
from ..types import Params, ignore
from . import averaging
from .averaging import EvalTask, Interpolation, evaluate_weights
from .jobs import FinishedJob, read_job

UNIFORM, GREEDY = "uniform soup", "greedy soup"


# --- jobs ------------------------------------------------------------------------------------------------------------


def read_finetuned_job(folder: Path) -> FinishedJob:
    """Return a completed job that was fine-tuned, with its data loaded; refuse one whose weights cannot be averaged."""
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
    recipe, data = job.plan.recipe, job.data
    merged = Full() if set(recipe.strategy.adapter_params) <= set(LORA_PARAMS) else recipe.strategy
    return replace(finetune_stage(recipe, data.outputs, for_kind(data.kind, data.vocabulary)), strategy=merged)


def compatibility_key(job: FinishedJob) -> tuple[Any, ...]:
    """Return what jobs must share for an average of their weights to be meaningful: pre-training, data, strategy."""
    stage = replace(resolve(job.plan.recipe, job.data).pretrain_stage, log_every=1)  # which changes no weights
    return stage, job.data.fingerprint, eval_stage(job).strategy


def select_jobs(paths: Sequence[Path]) -> tuple[list[FinishedJob], list[str]]:
    """Return the jobs in these folders that share a pre-training, and notes on those that are left out.

    Named jobs are all taken. Of sweeps, the pre-training of most jobs is taken; among equals, that of the best job.

    Raises:
        UserError: a named job cannot be averaged, or there is none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"there is no folder '{path}'; allowed: folders of sweeps or of jobs")
        for folder in sorted(job_folders(path), key=lambda folder: natural_key(str(folder))):
            found.setdefault(folder.resolve(), folder)
    if found and all(folder in paths for folder in found.values()):
        return [read_finetuned_job(folder) for folder in found.values()], []
    groups: dict[Any, list[FinishedJob]] = {}
    refused = []
    for folder in found.values():
        try:
            job = read_finetuned_job(folder)
            groups.setdefault(compatibility_key(job), []).append(job)
        except UserError as error:
            refused.append(str(error))
    if not groups:
        raise UserError(f"there is no job to average in {listed(map(str, paths))}: {listed(refused, 1) or 'no jobs'}")

    def loss(jobs: list[FinishedJob]) -> float:
        return min(job.record.metrics.get("val_loss", np.inf) for job in jobs)

    jobs = max(groups.values(), key=lambda own: (len(own), -loss(own)))
    others = sum(map(len, groups.values())) - len(jobs)
    notes = [f"{len(jobs)} jobs of one pre-training; left out: {others} of others, {len(refused)} that cannot be used"]
    return jobs, notes + ([f"cannot be used: {listed(refused, 3)}"] if refused else [])


# --- their weights ---------------------------------------------------------------------------------------------------


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
        """Return the target's validation and test rows, and the source's test rows with the head that computes them."""
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
    names = ("their model and pre-training", "their data", "their strategy's own parameters")
    for job in jobs[1:]:
        keys = zip(names, compatibility_key(jobs[0]), compatibility_key(job), strict=True)
        if difference := listed(name for name, one, other in keys if one != other):
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


def pretraining_of(job: FinishedJob) -> Pretrained:
    """Return a job's pre-training: from the stage cache, or computed as the job's configuration says."""
    study = job.plan.study
    if study.cache is CacheMode.refresh:
        study = replace(study, cache=CacheMode.use)
    return execute(pretrain_or_load(resolve(job.plan.recipe, job.data), stage_cache(study), ignore))


# --- averages --------------------------------------------------------------------------------------------------------


class Average(NamedTuple):
    """Averaged weights, and how they compare with others."""

    params: Params
    metadata: dict[str, Any]  # how they were made, as JSON can hold it
    table: pd.DataFrame  # a row a point or job; `chosen` marks the lowest validation loss
    notes: list[str]  # sentences for the terminal
    member: FinetunedWeights  # the first of those averaged


def wise_ft(folder: Path, points: int) -> Average:
    """Evaluate points from a job's pre-trained to its fine-tuned weights, both included; return the best by validation.

    Raises:
        UserError: the job's weights cannot be averaged, or no point has a finite validation loss.
    """
    (member,) = read_finetuned([read_finetuned_job(folder)])
    path = member.interpolation(np.linspace(0.0, 1.0, points))
    table = evaluate_weights(path, member.tasks())
    notes = []
    if kept := sorted({*member.params} - {*member.pretrained} | {*path.kept}):
        notes.append(f"fine-tuned at every alpha: {listed(kept)}")
    if all(same_bits(leaf, member.params[name]) for name, leaf in averaging.shared(path.a, path.b, path.kept).items()):
        notes.append("fine-tuning changed nothing else, so every point is the fine-tuned model")
    best = lowest_loss(table)[0]
    table["chosen"] = table.index == best
    alpha = float(table["alpha"].to_numpy()[best])
    notes.append(f"written: alpha {alpha:g}")
    params = averaging.interpolate(path.a, path.b, alpha, path.kept)
    return Average(params, {"job": str(folder), "alpha": alpha}, table, notes, member)


def soup(jobs: Sequence[FinishedJob], greedy: bool) -> Average:
    """Average jobs of one pre-training, and evaluate them beside the soups."""
    members = read_finetuned(jobs)
    tasks, weights = members[0].tasks(), [member.params for member in members]
    name, params, kept = UNIFORM, averaging.uniform_soup(weights), tuple(range(len(weights)))
    soups = {name: params}
    if greedy:
        name, (params, kept) = GREEDY, averaging.greedy_soup(weights, averaging.validation_loss(tasks[0]))
        soups[name] = params
    table = evaluate_weights(averaging.stack([*weights, *soups.values()]), tasks)
    folders = [job.folder.resolve() for job in jobs]
    same_place = len({folder.parent for folder in folders}) == 1
    names = [own.name if same_place else str(job.folder) for own, job in zip(folders, jobs, strict=True)] + [*soups]
    table.insert(0, "weights", names)
    table.insert(1, "member", [i in kept for i in range(len(table))])
    best = lowest_loss(table)[-1]  # a soup as good as its best member comes after it
    table["chosen"] = table.index == best
    notes = [f"written: {name}, {len(kept)} of {len(weights)} jobs"]
    if names[best] != name:
        notes.append(f"better by validation than the {name}: {names[best]}")
    metadata = {"soup": name, "members": [str(jobs[i].folder) for i in kept]}
    return Average(params, metadata, table, notes, members[0])


def lowest_loss(table: pd.DataFrame) -> list[int]:
    """Return the rows with the lowest validation loss; refuse a table without a finite one."""
    losses = table["val_loss"].to_numpy(dtype=float)
    if not np.isfinite(losses).any():
        raise UserError("no point has a finite validation loss; allowed: at least one")
    return np.flatnonzero(losses == np.nanmin(losses)).tolist()


def with_statistics(average: Average, recompute: bool) -> Average:
    """Return the average with the batch statistics of the target's training rows, if it has any and they are wanted."""
    if not any(map(is_statistic, average.params)):
        return average
    if not recompute:
        note = "batch statistics are averages too, not those of the averaged weights; --recompute estimates them"
        return average._replace(notes=[*average.notes, note])
    job = average.member.job
    params = averaging.recompute_statistics(eval_stage(job), average.params, job.data.target["train"].x)
    metrics = evaluate_weights(averaging.stack([params]), average.member.tasks()).iloc[0]
    words = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    note = f"with batch statistics of the training rows: {words}"
    return average._replace(params=params, notes=[*average.notes, note])
