"""What can be made of finished weights without training: points between two ends, and means of many.

The line from pre-trained to fine-tuned weights is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903); a mean of several
fine-tunings of one pre-training is a model soup (Wortsman et al. 2022, arXiv 2203.05482). Weights that end up on the
host are computed in float64 and rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, ArrayLike, Float

from ..checkpoints.adapter_files import read_job, read_tensors
from ..checkpoints.adapters import LEAVES, merge
from ..config.choices import CacheMode
from ..config.hparams import bind, static_part
from ..config.schema import option_name
from ..data.base import Source, Transfer
from ..errors import UserError, listed
from ..launch.job import stage_cache
from ..models.base import ApplyOptions, Model, head_paths, is_statistic, same_bits
from ..models.wrapped import Wrapped
from ..recipe.configure import Plan
from ..recipe.run import Pretrained, finetuning_stage, pretrain_once, pretraining_stage
from ..strategies.full import Full
from ..tracking.record import CHECKPOINT
from ..training.loop import number
from ..training.stage import Stage, evaluate, forward, traced
from ..types import Params, Split
from .find import find_finished

# --- means of weights ----------------------------------------------------------------------------------------------


def interpolate(a: Mapping[str, Any], b: Mapping[str, Any], alpha: float, kept: Iterable[str] = ()) -> Params:
    """Return ``(1 - alpha) a + alpha b`` (arXiv 2109.01903, eq. 1): WiSE-FT for pre-trained ``a`` and fine-tuned ``b``.

    The ends are ``a``'s and ``b``'s own bits, and so is at every alpha what both have alike. Batch statistics are
    interpolated as if they were weights; :func:`recompute_statistics` estimates them anew.

    Args:
        a: the weights at 0.
        b: the weights at 1; what ``a`` does not have is taken as it is.
        alpha: 0 to 1.
        kept: paths that are ``b``'s at every alpha: a new head, even where it has the shape of the old one.

    Raises:
        UserError: ``a`` has paths or shapes that ``b`` has not, or alpha is outside.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}; allowed: a number from 0 to 1")
    return _with_numpy(b) | {path: _between(start, b[path], alpha) for path, start in shared(a, b, kept).items()}


def _between(a: Any, b: Any, alpha: float) -> Any:
    if alpha in (0.0, 1.0) or same_bits(a, b):  # exactly: rounding aside, -0.0 + 0.0 is not -0.0
        return np.asarray(b if alpha else a)
    start, end = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return ((1.0 - alpha) * start + alpha * end).astype(np.asarray(b).dtype)


def shared(a: Mapping[str, Any], b: Mapping[str, Any], kept: Iterable[str] = ()) -> dict[str, Any]:
    """Return the leaves of ``a`` that lie between ``a`` and ``b``, all but ``kept``.

    Raises:
        UserError: ``b`` has not all of them, in the same shape and type.
    """
    left_out = set(kept)
    found = {path: leaf for path, leaf in a.items() if path not in left_out}
    check_architecture(found, {path: leaf for path, leaf in b.items() if path in found}, "the ends of the path")
    return found


def uniform_soup(members: Sequence[Mapping[str, Any]]) -> Params:
    """Return the mean of the members, leaf by leaf, whatever their order (arXiv 2203.05482, section 2, "uniform soup").

    Batch statistics are averaged as if they were weights; :func:`recompute_statistics` estimates them anew.

    Raises:
        UserError: there are no members, or their architectures differ.
    """
    check_members(members)
    return {path: _mean([member[path] for member in members]) for path in members[0]}


def _mean(leaves: Sequence[Any]) -> Any:
    if all(same_bits(leaf, leaves[0]) for leaf in leaves):  # what fine-tuning left alone keeps its bits
        return np.asarray(leaves[0])
    total = np.zeros(np.shape(leaves[0]), np.float64)
    for leaf in leaves:
        total += np.asarray(leaf, np.float64)
    return (total / len(leaves)).astype(np.asarray(leaves[0]).dtype)


class Soup(NamedTuple):
    """A greedy soup and how it came about."""

    params: Params
    members: tuple[int, ...]  # their places in the list, in the order in which they were added
    loss: float  # of the soup
    losses: tuple[float, ...]  # of each member alone, in the order of the list


def greedy_soup(members: Sequence[Mapping[str, Any]], evaluate: Callable[[Params], float]) -> Soup:
    """Return the greedy soup (arXiv 2203.05482, recipe 1): the best first, and each next one that makes it no worse.

    Every member is first measured alone, and the best begins the soup: it can never be worse than that one. A loss that
    is not a number is the worst there is; among equal ones the earlier comes first.

    Args:
        members: of one architecture.
        evaluate: returns the validation loss of weights, lower is better.

    Raises:
        UserError: there are no members, no member has a finite loss, or architectures differ.
    """
    check_members(members)
    losses = [float(evaluate(_with_numpy(member))) for member in members]
    order = sorted(range(len(members)), key=lambda place: math.inf if math.isnan(losses[place]) else losses[place])
    if not math.isfinite(losses[order[0]]):
        raise UserError("no member has a finite validation loss; allowed: at least one")
    kept, params, best = (order[0],), _with_numpy(members[order[0]]), losses[order[0]]
    for place in order[1:]:
        candidate = uniform_soup([members[i] for i in (*kept, place)])
        loss = float(evaluate(candidate))
        if loss <= best:  # false for NaN
            kept, params, best = (*kept, place), candidate, loss
    return Soup(params, kept, best, tuple(losses))


def check_members(members: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an empty list, and members of different architectures."""
    if not members:
        raise UserError("there are no members to average; allowed: at least one")
    for place, other in enumerate(members[1:], start=1):
        check_architecture(members[0], other, f"members 0 and {place}")


def check_architecture(a: Mapping[str, Any], b: Mapping[str, Any], who: str) -> None:
    """Refuse weights whose paths, shapes or types differ; the first differences are named."""

    def said(params: Mapping[str, Any], path: str) -> str:
        return f"{tuple(np.shape(params[path]))} {params[path].dtype}" if path in params else "absent"

    wrong = [f"{p} is {said(a, p)} and {said(b, p)}" for p in sorted({*a, *b}) if said(a, p) != said(b, p)]
    if wrong:
        raise UserError(f"{who} differ in architecture: {listed(wrong, 3)}; allowed: the same paths and shapes")


def _with_numpy(params: Mapping[str, Any]) -> dict[str, Any]:
    return {path: np.asarray(leaf) for path, leaf in params.items()}


# --- measuring many weights in one program -------------------------------------------------------------------------


class Between(NamedTuple):
    """Points on the line from ``a`` to ``b``, as :func:`interpolate` computes them."""

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    alphas: Float[ArrayLike, " points"]
    kept: tuple[str, ...] = ()


class Task(NamedTuple):
    """A task that weights are measured on."""

    stage: Stage  # its model, units of the head, objective, precision, and what its strategy puts beside modules
    splits: Mapping[str, Split]
    head: Mapping[str, Any] = {}  # leaves in place of the weights' own head; empty: their own


def evaluate_path(points: Between | Mapping[str, Any], tasks: Sequence[Task], at_once: int = 16) -> pd.DataFrame:
    """Measure many weights with one compiled program, ``at_once`` of them side by side.

    What both ends of a line have alike is not repeated for each point. All leaves count as moving: weights that a
    trainer kept in another precision only while they were frozen are measured in their own.

    Args:
        points: a line, or leaves stacked along a new first axis (:func:`stack`).
        tasks: what to measure on; the names of their splits are all different.
        at_once: memory grows with it.

    Returns:
        A row a point: ``alpha`` where there is a line, then ``val_loss`` and so on, split by split.

    Raises:
        UserError: there is no point, an alpha is outside 0 to 1, or the ends do not go together.
    """
    line = isinstance(points, Between)
    each: Any = np.asarray(points.alphas, np.float32) if line else dict(points)
    sizes = {len(leaf) for leaf in jax.tree.leaves(each)}
    count = max(sizes, default=0)
    if len(sizes) != 1 or count == 0:
        raise UserError(f"the points of the path have the lengths {sorted(sizes)}; allowed: one length >= 1")
    if line and not ((each >= 0) & (each <= 1)).all():
        raise UserError(f"the alphas are {listed(map(str, each))}; allowed: numbers from 0 to 1")
    ends = _ends(points) if line else None
    at_once = min(at_once, count)
    stages, hypers = tuple(static_part(task.stage) for task in tasks), [traced(task.stage) for task in tasks]
    data = [(dict(task.splits), dict(task.head)) for task in tasks]
    chunks = []
    for first in range(0, count, at_once):
        places = np.minimum(np.arange(first, first + at_once), count - 1)  # the last chunk repeats the last point
        own = jax.tree.map(lambda leaf, places=places: np.asarray(leaf)[places], each)
        chunks.append(jax.device_get(_measured(stages, hypers, ends, own, data)))
    # JAX hands dictionaries back with sorted keys; people read split by split, the loss first.
    sorted_names = sorted(chunks[0], key=lambda name: not name.endswith("_loss"))
    names = [n for task in tasks for split in task.splits for n in sorted_names if n.startswith(f"{split}_")]
    table: dict[str, Any] = {"alpha": [number(alpha) for alpha in each]} if line else {}
    for name in names:
        table[name] = [number(value) for value in np.concatenate([chunk[name] for chunk in chunks])[:count]]
    return pd.DataFrame(table)


def _ends(line: Between) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the leaves of ``a`` that move along the line, and all of ``b``."""
    starts = shared(line.a, line.b, line.kept)
    return {path: leaf for path, leaf in starts.items() if not same_bits(leaf, line.b[path])}, dict(line.b)


@functools.partial(jax.jit, static_argnums=0)
def _measured(stages: tuple[Stage, ...], hypers: Any, ends: Any, each: Any, data: Any) -> dict[str, Array]:
    """Return the tasks' metrics of every point: an alpha between the ends, or a row of stacked leaves."""

    def one(own: Any) -> dict[str, Array]:
        params = (
            own if ends is None else {**ends[1], **{p: _on_line(leaf, ends[1][p], own) for p, leaf in ends[0].items()}}
        )
        found: dict[str, Array] = {}
        for static, hyper, (splits, head) in zip(stages, hypers, data, strict=True):
            stage = bind(static, hyper)
            found |= evaluate(stage, with_head(stage.model, params, head), {}, splits)
        return found

    return jax.vmap(one)(each)


def _on_line(a: Array, b: Array, alpha: Array) -> Array:
    # Not (1 - alpha) a + alpha b: in float32 that would round twice where the ends are close, which they are.
    return jnp.where(alpha == 1.0, b, a + alpha.astype(a.dtype) * (b - a))


def with_head(model: Model, params: Mapping[str, Any], head: Mapping[str, Any]) -> Params:
    """Return the parameters with another head, that is, with all leaves of the last group replaced; none: their own."""
    own = head_paths(model, params) if head else frozenset()
    return {**{path: leaf for path, leaf in params.items() if path not in own}, **head}


def stack(members: Sequence[Mapping[str, Any]]) -> Params:
    """Return the members' leaves along a new first axis.

    Raises:
        UserError: there are no members, or their architectures differ.
    """
    check_members(members)
    return {path: np.stack([np.asarray(member[path]) for member in members]) for path in members[0]}  # type: ignore[return-value]


def recompute_statistics(stage: Stage, params: Mapping[str, Any], x: Float[ArrayLike, "N ..."]) -> Params:
    """Return the parameters with the batch statistics that they have on these rows, taken as one batch.

    In training, batch normalisation normalises with the batch and moves each statistic to ``m old + (1 - m) seen``; the
    answers to ``old = 0`` and ``old = 1`` give m and what was seen, whatever m is. Why: the statistics of a mean of
    weights are no mean of statistics (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).

    Args:
        stage: its model, and what its strategy puts beside modules.
        params: without batch statistics they are returned as they are.
        x: training rows.
    """
    paths = frozenset(path for path in params if is_statistic(path))
    if not paths:
        return _with_numpy(params)

    @jax.jit
    def answered(old: Array) -> Params:
        asked = {**params, **{path: jnp.full_like(params[path], old) for path in paths}}
        return forward(stage, asked, {}, jnp.asarray(x), ApplyOptions(mutable=paths))[1]

    nothing, one = jax.device_get((answered(jnp.zeros(())), answered(jnp.ones(()))))
    return _with_numpy(params) | {path: nothing[path] / (1.0 - (one[path] - nothing[path])) for path in nothing}


# --- finished jobs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Finished:
    """A completed job's folder as its configuration describes it; nothing is computed yet."""

    folder: Path
    plan: Plan
    data: Transfer
    metrics: Mapping[str, float]  # as recorded

    @property
    def kin(self) -> tuple[Any, ...]:
        """What jobs must have in common for a mean of their weights to mean something.

        The pre-training (however often it was logged), the data, and what runs beside the model's own modules.
        """
        stage = replace(pretraining_stage(self.plan.recipe, self.data), log_every=1)
        return stage, self.data.fingerprint, self.stage.strategy

    @property
    def stage(self) -> Stage:
        """How the weights are run: with what the strategy put beside them, unless that has been merged."""
        strategy = self.plan.recipe.strategy
        plain = Full() if set(strategy.adapter_params) <= set(LEAVES) else strategy
        return replace(finetuning_stage(self.plan.recipe, self.data), strategy=plain)


class Tuned(NamedTuple):
    """A finished job's weights, before and after fine-tuning."""

    job: Finished
    pretrained: Params
    params: Params  # with LoRA's changes merged into the kernels

    @property
    def head(self) -> dict[str, Any]:
        """The head that the source task was learned with."""
        own = head_paths(self.job.plan.recipe.model, self.pretrained)
        return {path: leaf for path, leaf in self.pretrained.items() if path in own}

    def line(self, alphas: Float[ArrayLike, " points"]) -> Between:
        """Return points from the pre-trained to the fine-tuned weights; a head of a new label space stays."""
        return Between(self.pretrained, self.params, alphas, tuple(self.head) if self.job.data.new_head else ())

    def tasks(self) -> list[Task]:
        """Return the target's validation and test rows, and the source's test rows, measured as jobs measure them.

        That is by the source's own head where the target has another label space, and by the one head where it has not.
        """
        stage, data = self.job.stage, self.job.data
        target = Task(stage, {name: data.target[name] for name in ("val", "test")})
        source = Task(
            replace(stage, outputs=data.source_outputs),
            {"source_test": data.source["test"]},
            self.head if data.new_head else {},
        )
        return [target, source]


def validation_loss(task: Task) -> Callable[[Params], float]:
    """Return what measures weights by the validation rows of a task."""
    validation = [task._replace(splits={"val": task.splits["val"]})]
    return lambda params: float(evaluate_path(stack([params]), validation)["val_loss"].to_numpy()[0])


def find_job(folder: Path) -> Finished:
    """Read what a completed job's folder says of itself, and load its data.

    Raises:
        UserError: no completed job, one without pre-training, or one whose data or configuration is of another version.
    """
    record, plan = find_finished(folder)
    adapter_params = set(plan.recipe.strategy.adapter_params)
    if adapter_params & set(LEAVES) and not adapter_params <= set(
        LEAVES
    ):  # merged_params would refuse, after the loading
        raise UserError(
            f"'{folder}' has strategy={option_name(plan.recipe.strategy)}, whose change of the kernels is more than a "
            "sum of low-rank deltas; allowed: strategies that add such a sum, as lora does, or leave kernels whole"
        )
    if not plan.recipe.strategy.pretrained:
        raise UserError(f"'{folder}' started from no pre-training; allowed: a job that was fine-tuned")
    data = _loaded(plan.source)
    if isinstance(plan.recipe.pretrain.pretrain_task(plan.recipe.model, data).model, Wrapped):
        raise UserError(
            f"'{folder}' was pre-trained by pretrain={option_name(plan.recipe.pretrain)}, whose head is no part of a "
            "fine-tuned model, so weights between cannot be measured on it; allowed: pre-training that keeps the "
            "model's own head, as supervised and mlm do"
        )
    if record.data_fingerprint not in (None, data.fingerprint):
        raise UserError(f"the data of '{folder}' changed since: {data.fingerprint}, recorded {record.data_fingerprint}")
    return Finished(folder, plan, data, record.metrics)


@functools.cache
def _loaded(source: Source) -> Transfer:
    return source.load()


def read_tuned(jobs: Sequence[Finished]) -> list[Tuned]:
    """Return the weights of jobs of one kin; their pre-training comes from the stage cache, or is computed again.

    Raises:
        UserError: jobs of several pre-trainings or data, or a pre-training that is not the one a job had.
    """
    for job in jobs[1:]:
        if job.kin != jobs[0].kin:
            raise UserError(
                f"'{jobs[0].folder}' and '{job.folder}' do not share {_difference(jobs[0], job)}, so a mean of their "
                "weights means nothing; allowed: fine-tunings of one pre-training"
            )
    pre = pretraining_of(jobs[0])
    for job in jobs:
        was, now = job.metrics.get("source_test_loss"), pre.metrics.get("source_test_loss")
        if was is not None and now is not None and not math.isclose(was, now, rel_tol=1e-3):
            raise UserError(
                f"the pre-training of '{job.folder}' is not what its configuration gives now: its source_test_loss was "
                f"{was:g} and is {now:g}; allowed: the version of Thaw that ran the job"
            )
    return [Tuned(job, pre.params, merged_params(job.folder)) for job in jobs]


def _difference(a: Finished, b: Finished) -> str:
    names = ("their model and pre-training", "their data", "their strategy's own leaves")
    return listed(name for name, x, y in zip(names, a.kin, b.kin, strict=True) if x != y)


def pretraining_of(job: Finished) -> Pretrained:
    """Return a job's pre-training: kept, or computed as the job's configuration says."""
    study = job.plan.study
    if study.cache is CacheMode.refresh:
        study = replace(study, cache=CacheMode.use)
    return pretrain_once([job.plan.recipe], job.data, stage_cache(study))[0]


def merged_params(folder: Path) -> Params:
    """Return the weights that a job left, LoRA's changes merged into their kernels.

    A mean of factors is no mean of their products, and a change that only the fine-tuned model has would not shrink on
    the way to the pre-trained one.

    Raises:
        UserError: there are none, or what lies beside the kernels is more than a sum of low-rank changes.
    """
    params: Any = read_tensors(folder / CHECKPOINT)[0]
    if not any(path.rpartition("/")[2] in LEAVES for path in params):
        return params
    return merge(params, read_job(folder).adapter.scales)
