"""The recipe, top to bottom: pre-train on the source task, then fine-tune on the target task.

:func:`run` is what the command line runs; :func:`pretrain_then_finetune` is the reference function, on the same engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..config.hparams import hparam, static_part
from ..config.schema import RecipeConfig, option_class, option_name, option_names
from ..data.base import TaskSequence, Transfer
from ..errors import UserError, listed
from ..models.base import Model, head_paths, is_statistic, new_head
from ..models.mlp import Mlp
from ..objectives.base import Objective
from ..optim.optimizers import FreezeImpl, Optimizer, Sgd
from ..optim.partition import ParamLabels, split
from ..optim.schedules import Constant, Schedule
from ..pretraining.base import Features, Pretraining
from ..pretraining.supervised import Supervised
from ..retention.base import CacheFn, Kept, Retention, SourceTask
from ..retention.none import NoRetention
from ..strategies.base import Strategy
from ..strategies.frozen import Frozen
from ..strategies.full import Full
from ..training.compiled import Cost
from ..training.diagnostics import Curve, Moved, overfitting, what_moved
from ..training.feature_cache import Task, chunks, keep_features
from ..training.loop import EvalHook, Fit, Training, fit_lanes, number, update_cost
from ..training.stage import Stage, added_shapes, frozen_paths, initial, placement, traced, with_added
from ..training.stage_cache import Entry, StageCache, finding_key, stage_key, stage_label
from ..training.trainer import Precision, TrainerConfig
from ..training.vectorize import Lanes, programs, stacked
from ..types import LogFn, Params, Row, Split, ignore


@dataclass(frozen=True)
class Recipe(RecipeConfig):
    """Everything that decides a run's numbers, apart from the data."""

    model: Model = hparam(Mlp())
    pretrain: Pretraining = hparam(Supervised(Sgd(), Constant()))
    strategy: Strategy = hparam(Frozen())
    optimizer: Optimizer = hparam(Sgd())
    schedule: Schedule = hparam(Constant())
    trainer: TrainerConfig = hparam(TrainerConfig())
    retention: Retention = hparam(NoRetention())


@dataclass(frozen=True)
class Pretrained:
    """What pre-training leaves behind for the fine-tunings that share it."""

    params: Params
    rows: list[Row]  # its logged rows
    metrics: dict[str, float]  # of the source task's test rows
    diverged: bool
    last_finite_step: int
    cost: Cost  # of an update
    seconds: float  # wall time; of lanes, each one's share; 0 when it was kept from an earlier run


class Diagnostics(NamedTuple):
    """What pre-training's logged rows warn of."""

    warnings: tuple[str, ...] = ()  # a sentence each
    stability: Mapping[str, float] = {}  # the numbers that they are about

    def facts(self) -> dict[str, Any]:
        """Return what the summary tells of it."""
        own = {"warnings": list(self.warnings), "stability": dict(self.stability)}
        return {name: value for name, value in own.items() if value}


@dataclass(frozen=True)
class RunResult:
    """What a run ends with."""

    params: Params
    metrics: dict[str, float]  # of the final parameters, by split; empty when the run diverged
    diverged: bool
    last_finite_step: int  # of the stage that the run ended in
    cost: Cost  # of an update of fine-tuning; of pre-training when that diverged
    seconds: dict[str, float]  # wall time by stage; of lanes, each one's share
    moved: Moved | None = None  # what fine-tuning did to the parameters
    signals: dict[str, float] = field(default_factory=dict)  # of overfitting
    warned: Diagnostics = field(default_factory=Diagnostics)  # of pre-training

    @property
    def status(self) -> str:
        """``"completed"`` or ``"diverged"``."""
        return "diverged" if self.diverged else "completed"

    @property
    def objective(self) -> float:
        """The validation loss; infinite when the run diverged."""
        return float("inf") if self.diverged else self.metrics["val_loss"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What pre-training's rows warn of, a sentence each."""
        return self.warned.warnings

    def facts(self) -> dict[str, Any]:
        """Return what else the summary tells of it."""
        moved = None if self.moved is None else self.moved._asdict()
        return {"moved": moved, "signals": self.signals, **self.warned.facts()}


def pretraining_stage(recipe: Recipe, data: Transfer) -> Stage:
    """Return the stage that learns the source task: everything moves."""
    lesson = recipe.pretrain.pretrain_task(recipe.model, data)
    return Stage(
        model=lesson.model,
        outputs=lesson.outputs,
        objective=lesson.objective,
        strategy=Full(),
        optimizer=recipe.pretrain.optimizer,
        schedule=recipe.pretrain.schedule,
        lr=recipe.lr_pre,
        steps=recipe.pretrain_steps,
        seed=recipe.seed,
        batch_size=recipe.pretrain.batch_size or recipe.batch_size,
        log_every=recipe.log_every,
    )


def pretraining_batch(recipe: Recipe, data: Transfer) -> int:
    """Return the rows of an update of pre-training that are asked for; the data may have fewer."""
    return recipe.pretrain.batch_size or recipe.batch_size or len((data.source or data.target)["train"].x)


def learns_source(recipe: Recipe, data: Transfer) -> bool:
    """Tell whether there is a source task to learn; otherwise a checkpoint's files are all there is of it."""
    return recipe.pretrain.trains and bool(data.source)


def replaces_head(recipe: Recipe, data: Transfer) -> bool:
    """Tell whether the head that pre-training leaves behind is of no use for the target task."""
    return recipe.pretrain.pretrain_task(recipe.model, data).new_head


def finetuning_stage(recipe: Recipe, data: Transfer, lanes: Lanes = Lanes.one) -> Stage:
    """Return the stage that learns the target task under the strategy.

    Lanes keep the frozen half outside their state, so that it need not be repeated for each: the same bits, less work.
    So does what is to be stored in another precision.
    """
    alone = lanes is Lanes.one and recipe.trainer.frozen_precision is Precision.float32
    return replace(
        task_stage(recipe, data.outputs, data.objective(data.kind)), form=None if alone else FreezeImpl.split
    )


def task_stage(recipe: Recipe, outputs: int, objective: Objective) -> Stage:
    """Return the stage that learns a task as the recipe says that a new task is learned."""
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


def initial_params(
    stages: Sequence[Stage], data: Transfer | TaskSequence, lanes: Lanes, stream: int = 0
) -> list[Params]:
    """Return each stage's initial parameters from ``PRNGKey(seed)``, or from a stream folded into it."""
    init = programs(static_part(stages[0]), lanes).init(data.features, stream)
    if lanes is Lanes.one:
        return [init(traced(stages[0]))]
    together = jax.device_get(init(np.int32(len(stages)), stacked([traced(stage) for stage in stages])))
    return [{path: leaf[lane] for path, leaf in together.items()} for lane in range(len(stages))]


def pretrain(
    recipes: Sequence[Recipe], data: Transfer, lanes: Lanes = Lanes.one, watch: LogFn = ignore
) -> list[Pretrained]:
    """Learn the source task from scratch, a lane a recipe.

    Args:
        recipes: of one static part.
        data: both tasks; the source is used.
        lanes: how; ``Lanes.one`` for a single recipe.
        watch: called with each logged row of a single recipe as it happens.
    """
    started = time.perf_counter()
    stages = [pretraining_stage(recipe, data) for recipe in recipes]
    first = starting_params(stages, data, lanes)
    rows: list[list[Row]] = [[] for _ in stages]

    def watching(own: list[Row]) -> LogFn:
        return lambda row: (own.append(row), watch(row))[0]

    views = views_of(stages, first)
    look = looking(recipes, data, views)
    fits = fit_lanes(stages, first, data.source["train"], {}, [watching(own) for own in rows], lanes, look)
    cost = update_cost(stages[0], first[0], data.source["train"])
    parts = {f"source_{name}": data.source[name] for name in ("test", "val") if name in data.source}
    metrics = measure(stages, [end.params for end in fits], parts, lanes)
    for recipe, view, end, found in zip(recipes, views, fits, metrics, strict=True):
        if not end.diverged:
            worth = recipe.pretrain.evaluate_features(view(end.params), data)
            # What is worth more is compared at equal memory, too.
            worth |= {"pretrain_peak_bytes": cost.peak_bytes} if worth else {}
            found.update({name: number(value) for name, value in worth.items()})
    each = (time.perf_counter() - started) / len(recipes)
    return [
        Pretrained(end.params, own, found, end.diverged, end.last_finite_step, cost, each)
        for end, own, found in zip(fits, rows, metrics, strict=True)
    ]


def looking(
    recipes: Sequence[Recipe], data: Transfer, views: Sequence[Callable[[Params], Features]]
) -> EvalHook | None:
    """Return what is measured of the features on the way, where pre-training asks for it."""
    if (every := recipes[0].pretrain.feature_eval_every()) is None:
        return None
    return EvalHook(
        every,
        lambda lane, step, params: recipes[lane].pretrain.evaluate_features_during(views[lane](params), data, step),
    )


def views_of(stages: Sequence[Stage], first: Sequence[Params]) -> list[Callable[[Params], Features]]:
    """Return, a lane each, what gives a network's features by its parameters at any time.

    Lanes of one seed begin with the same parameters, so what has been measured of these once is known to all.
    """
    known: dict[Any, dict[str, float]] = {}
    initial: dict[int, Callable[[Any], Any]] = {}
    for stage, begin in zip(stages, first, strict=True):
        initial.setdefault(stage.seed, features_of(stage, begin))

    def view(stage: Stage, params: Params) -> Features:
        return Features(features_of(stage, params), initial[stage.seed], outputs_of(stage, params), known)

    return [partial(view, stage) for stage in stages]


def features_of(stage: Stage, params: Params) -> Callable[[Any], Any]:
    """Return what computes the features below a stage's head."""
    below = replace(static_part(stage), bottom=len(stage.model.groups()) - 1)

    def features(x: Any) -> Any:
        run = partial(programs(below).features, traced(stage), params)
        return np.concatenate([np.asarray(run(piece))[:count] for piece, count in chunks(stage.model, x)])

    return features


def outputs_of(stage: Stage, params: Params) -> Callable[[Any], Any]:
    """Return what computes a stage's outputs."""
    run = programs(static_part(stage)).predictions
    return lambda x: np.asarray(run(traced(stage), params, {}, {"rows": x})["rows"])


def starting_params(stages: Sequence[Stage], data: Transfer, lanes: Lanes) -> list[Params]:
    """Return what pre-training begins with: initial parameters, those of a checkpoint in their place."""
    first = initial_params(stages, data, lanes)
    files: Any = stages[0].model.pretrained(stages[0].outputs)
    return [own | files for own in first]


def untrained(recipes: Sequence[Recipe], data: Transfer, lanes: Lanes = Lanes.one) -> list[Pretrained]:
    """Return what a run that learns no source task starts from: what pre-training would start from.

    Where the strategy starts from scratch, a checkpoint's parameters are left out, too.
    """
    stages = [pretraining_stage(recipe, data) for recipe in recipes]
    begin = starting_params if recipes[0].strategy.pretrained else initial_params
    none = Cost(0.0, 0)
    return [Pretrained(params, [], {}, False, 0, none, 0.0) for params in begin(stages, data, lanes)]


def phases(recipes: Sequence[Recipe], data: Transfer, lanes: Lanes = Lanes.one) -> list[list[Stage]]:
    """Return the stages of each phase of fine-tuning, one a recipe; their first updates follow one another.

    Raises:
        UserError: the strategy's plan, the schedule or the trainer do not fit the run.
    """
    recipe, rows = recipes[0], len(data.target["train"].x)
    batch = min(recipe.batch_size or rows, rows)
    recipe.trainer.check(data.kind, batch)
    recipe.pretrain.schedule.check(recipe.pretrain_steps, "pretrain.schedule")
    count = len(recipe.strategy.tables(recipe.model.groups()))
    lengths = recipe.strategy.phase_steps(count, recipe.finetune_steps, -(-rows // batch))
    for length in lengths:
        recipe.schedule.check(length)
    firsts = [sum(lengths[:phase]) for phase in range(count)]
    return [
        [replace(finetuning_stage(recipe, data, lanes), phase=phase, steps=length, first=first) for recipe in recipes]
        for phase, (length, first) in enumerate(zip(lengths, firsts, strict=True))
    ]


class Finetuned(NamedTuple):
    """What fine-tuning ends with, a lane each."""

    fits: list[Fit]
    metrics: list[dict[str, float]]  # of every part of the target task
    cost: Cost  # of an update; over phases, the mean of its FLOPs and the largest of its bytes
    starts: list[Params]  # what it started from, new heads included
    stages: list[Stage]  # of the last phase, a lane each, on the whole network
    moving: set[str]  # paths that some phase moved


def finetune(
    recipes: Sequence[Recipe],
    data: Transfer,
    starts: Sequence[Params],
    watches: Sequence[LogFn],
    lanes: Lanes = Lanes.one,
    cache: StageCache | None = None,
) -> Finetuned:
    """Learn the target task from pre-trained parameters, with a new head where the label space is new.

    Phase by phase; in each, the groups at the bottom that do not move are run once over the data.
    """
    plan = phases(recipes, data, lanes)
    kept = keep_source(recipes, data, starts, cache)
    params = starts = with_new_heads(recipes, data, starts, lanes)
    training = Training(watches, lanes)
    tasks, costs, ends = [], [], params
    for stages in plan:
        task = keep_features(stages, params, data.target, lanes)
        tasks.append(task)
        watched = {name: part for name, part in task.splits.items() if name == "val"}
        final = stages is plan[-1]
        ends = training.phase(task.stages, task.params, task.splits["train"], watched, task.own_rows, final, kept)
        params = [{**whole, **own} for whole, own in zip(params, ends, strict=True)]
        single = replace(task.stages[0], form=None)  # what a run of its own would cost
        costs.append(update_cost(single, task.params[0], task.part("train"), kept[0] if kept else None))
    metrics = measure(tasks[-1].stages, ends, tasks[-1].splits, lanes, tasks[-1].own_rows)
    if data.scored:
        words = score(data, tasks[-1], ends, lanes)
        metrics = [own | found for own, found in zip(metrics, words, strict=True)]
    moving = {path for stages in plan for path in placement(stages[0], params[0]).trainable}
    return Finetuned(training.ends(params), metrics, overall(costs, plan), starts, plan[-1], moving)


def keep_source(
    recipes: Sequence[Recipe], data: Transfer, before: Sequence[Params], cache: StageCache | None = None
) -> list[Kept] | None:
    """Return what the retention method keeps of the source task, a lane each; ``None`` where it keeps nothing.

    ``own`` is the method's; ``head`` is the source's head where fine-tuning replaces it. Lanes of one pre-training and
    one seed share it, so the importance of the parameters is computed once for a sweep over its strength; with a cache,
    once for all processes.
    """
    if not recipes[0].retention.needs_state:
        return None
    made: dict[Any, Kept] = {}
    for recipe, params in zip(recipes, before, strict=True):
        if (key := (id(params), recipe.seed)) not in made:
            task = source_task(recipe, data, params)
            if cache is not None and recipe.strategy.pretrained:  # initial parameters are of no stage
                task = task._replace(cached=cache_in(recipe, data, params, cache))
            head = {path: params[path] for path in task.head} if task.new_head else {}
            made[key] = {"own": recipe.retention.init_state(task), "head": head}
    return [made[id(params), recipe.seed] for recipe, params in zip(recipes, before, strict=True)]


def cache_in(recipe: Recipe, data: Transfer, params: Params, cache: StageCache) -> CacheFn:
    """Return how a method finds again what it has computed of the source task."""

    def cached(what: Any, compute: Callable[[], Params]) -> Params:
        key = finding_key(what, params, data.source_fingerprint, {**platform(), "seed": int(recipe.seed)})
        if (entry := cache.get(key)) is not None:
            known: Any = entry.params  # NumPy arrays, which every program takes
            return known
        found = compute()
        facts = {"stage": f"{what} of {stage_label(pretraining_stage(recipe, data))}"}
        cache.put(key, Entry({path: np.asarray(leaf) for path, leaf in found.items()}, [], facts))
        return found

    return cached


def platform() -> dict[str, str]:
    """Return what computes, as the name of a cache's entry depends on it: devices round differently."""
    return {"platform": jax.devices()[0].device_kind}


def source_task(recipe: Recipe, data: Transfer, params: Params) -> SourceTask:
    """Return what a retention method may look at when the source task has been learned."""
    source = pretraining_stage(recipe, data)
    head = head_paths(source.model, params)
    restarted = not head.isdisjoint(added_shapes(finetuning_stage(recipe, data), params))
    new, rows = replaces_head(recipe, data) or restarted, data.source.get("train")
    return SourceTask(source.model, source.outputs, source.objective, params, head, new, rows, recipe.seed)


def after_on_source(
    recipes: Sequence[Recipe], data: Transfer, before: Sequence[Params], fine: Finetuned, lanes: Lanes
) -> list[dict[str, float]]:
    """Return the source task's metrics after fine-tuning, a lane each: ``source_after_loss`` and so on.

    By the source's own head where fine-tuning has replaced it. A method that isolates the tasks takes off what the
    strategy added, and puts the source's head back.
    """
    names = {"test": "source_after", "val": "source_val_after"}
    parts = {names[part]: data.source[part] for part in names if part in data.source}
    isolated, new_heads = recipes[0].retention.isolates, replaces_head(recipes[0], data)
    stages, whole = [], []
    for recipe, stage, own, end in zip(recipes, fine.stages, before, fine.fits, strict=True):
        source = pretraining_stage(recipe, data)
        tuned = replace(stage, model=source.model, outputs=source.outputs, objective=source.objective)
        stages.append(source if isolated else tuned)
        head = {path: own[path] for path in head_paths(source.model, own)} if new_heads or isolated else {}
        beside = () if isolated else stage.strategy.adapter_params
        kept = {p: leaf for p, leaf in end.params.items() if p in own or p.rpartition("/")[2] in beside}
        whole.append(kept | head)
    return measure(stages, whole, parts, lanes)


def overall(costs: Sequence[Cost], plan: Sequence[Sequence[Stage]]) -> Cost:
    """Return what an update costs on average over the phases, and at most in memory."""
    steps = [max(stages[0].steps, 1) for stages in plan]
    flops = sum(cost.flops * count for cost, count in zip(costs, steps, strict=True)) / sum(steps)
    return Cost(flops, max(c.peak_bytes for c in costs), max(c.optimizer_bytes for c in costs))


def with_new_heads(recipes: Sequence[Recipe], data: Transfer, starts: Sequence[Params], lanes: Lanes) -> list[Params]:
    """Return each lane's parameters with a head for the target's labels; lanes that may share them still do.

    That is a new one where the source's is of no use. Without a source task, the checkpoint's reader has seen to it.
    """
    if not (replaces_head(recipes[0], data) and learns_source(recipes[0], data)):
        return list(starts)
    stages = [finetuning_stage(recipe, data, lanes) for recipe in recipes]
    heads = initial_params(stages, data, lanes, stream=NEW_HEAD_STREAM)
    made: dict[Any, Params] = {}
    for recipe, start, head in zip(recipes, starts, heads, strict=True):
        if (id(start), recipe.seed) not in made:
            made[id(start), recipe.seed] = new_head(recipe.model, start, head)
    return [made[id(start), recipe.seed] for recipe, start in zip(recipes, starts, strict=True)]


NEW_HEAD_STREAM = 1  # of the seed: a new head must not repeat the values that the first one started from


class TrainableSummary(NamedTuple):
    """Which parameters fine-tuning moves, phase by phase."""

    placed: tuple[ParamLabels, ...]
    lengths: tuple[int, ...]  # updates of each phase
    sizes: dict[str, int]  # by path; batch statistics are no parameters and have none

    @property
    def moving(self) -> set[str]:
        """The paths that move in some phase."""
        return {path for placed in self.placed for path in placed.trainable}

    @property
    def trainable(self) -> int:
        """How many parameters move in some phase."""
        return sum(self.sizes[path] for path in self.moving)

    @property
    def total(self) -> int:
        """How many parameters there are, those that the strategy adds included."""
        return sum(self.sizes.values())


def resolve_trainable(recipe: Recipe, data: Transfer) -> TrainableSummary:
    """Return what moves in fine-tuning, before anything is trained.

    Raises:
        UserError: a pattern that matches nothing, nothing left to train, or a plan that does not fit the run.
    """
    check_inputs(recipe.model, data.target["train"].x)
    if recipe.strategy.pretrained:
        recipe.pretrain.check(recipe.model, data, pretraining_batch(recipe, data))
        check_eval_every(recipe)
    if not data.source and recipe.strategy.pretrained and not recipe.model.has_checkpoint:
        raise UserError(
            "data has no source task and the model no checkpoint, so there is nothing to start from; allowed: "
            "model.checkpoint=<folder or name>, strategy=scratch, or data with a source task"
        )
    learned = pretraining_stage(recipe, data).objective if learns_source(recipe, data) else None
    return summarize_trainable([stage for (stage,) in phases([recipe], data)], data.features, learned)


def check_eval_every(recipe: Recipe) -> None:
    """Refuse looks at pre-training between two logged rows: their numbers join a row."""
    every = recipe.pretrain.feature_eval_every()
    if every is not None and every % recipe.log_every:
        raise UserError(f"pretrain.eval_every is {every}; allowed: a multiple of log_every ({recipe.log_every})")


def check_inputs(model: Model, x: np.ndarray) -> None:
    """Refuse texts, images and numbers where the network takes another of them."""
    given, taken = _inputs(x.dtype), _inputs(model.input_dtype)
    if given == "numbers" and taken == "images" and x.ndim == 4:  # images from 0 to 1
        return
    if given != taken:
        fits = [name for name in option_names("model") if _inputs(option_class("model", name).input_dtype) == given]
        raise UserError(
            f"model={option_name(model)} takes {taken}, and the data is {given}; allowed: model={listed(fits)}"
        )


def _inputs(dtype: Any) -> str:
    """Return what inputs of a type are."""
    if np.dtype(dtype) == np.uint8:
        return "images"
    return "texts" if np.issubdtype(np.dtype(dtype), np.integer) else "numbers"


def summarize_trainable(
    plan: Sequence[Stage], features: tuple[int, ...], learned: Objective | None
) -> TrainableSummary:
    """Return what moves in stages that follow one another, checked against what is to be retained.

    Args:
        plan: a stage a phase, of one run.
        features: the shape of a row of inputs.
        learned: by which the source task was; ``None`` where there are no rows of it, only a checkpoint.
    """
    shapes = jax.eval_shape(lambda: initial(plan[0], features, 0))
    whole = with_added(plan[0], shapes)
    sizes = {path: 0 if is_statistic(path) else math.prod(leaf.shape) for path, leaf in whole.items()}
    movement = TrainableSummary(
        tuple(placement(stage, whole) for stage in plan), tuple(stage.steps for stage in plan), sizes
    )
    strategy, head = plan[0].strategy, head_paths(plan[0].model, shapes)
    has_source, started = learned is not None, strategy.pretrained
    plan[0].retention.check(movement.moving, strategy.adapter_params, head, has_source, started, learned)
    return movement


PRETRAINING_VERSION = 3  # to be raised when `pretrain` changes what it computes in a way that no `Stage` shows


def pretrain_once(
    recipes: Sequence[Recipe], data: Transfer, cache: StageCache | None, lanes: Lanes = Lanes.one, watch: LogFn = ignore
) -> list[Pretrained]:
    """Return each recipe's pre-training: from the cache, or computed now and kept there.

    Args:
        recipes: of one static part, each with a pre-training of its own.
        data: both tasks.
        cache: of earlier pre-trainings.
        lanes: how to compute what is missing.
        watch: called with each row of a single recipe's pre-training, kept rows included.
    """
    if not recipes[0].strategy.pretrained or not learns_source(recipes[0], data):
        return untrained(recipes, data, lanes)
    if cache is None:
        return pretrain(recipes, data, lanes, watch)
    extra = {**platform(), "recipe": PRETRAINING_VERSION, "measures": recipes[0].pretrain.feature_eval_settings()}
    if (checkpoint := recipes[0].model.checkpoint_fingerprint()) is not None:
        extra["checkpoint"] = checkpoint
    keys = [stage_key(pretraining_stage(recipe, data), data.source_fingerprint, extra) for recipe in recipes]
    found = {key: as_pretrained(entry) for key in keys if (entry := cache.get(key))}
    if lanes is Lanes.one and found:
        for row in found[keys[0]].rows:
            watch(row)
    missing = [(key, recipe) for key, recipe in zip(keys, recipes, strict=True) if key not in found]
    if missing:
        for (key, recipe), pre in zip(missing, pretrain([r for _, r in missing], data, lanes, watch), strict=True):
            kept = {name: getattr(pre, name) for name in ("metrics", "diverged", "last_finite_step")}
            facts = {"stage": stage_label(pretraining_stage(recipe, data)), **kept, "cost": pre.cost._asdict()}
            cache.put(key, Entry({path: np.asarray(leaf) for path, leaf in pre.params.items()}, pre.rows, facts))
            found[key] = pre
    return [found[key] for key in keys]


def as_pretrained(entry: Entry) -> Pretrained:
    """Return a kept pre-training."""
    facts = {name: value for name, value in entry.facts.items() if name != "stage"}
    facts["cost"] = Cost(**facts["cost"])
    params: Any = entry.params  # NumPy arrays, which every program takes
    return Pretrained(params, entry.rows, **facts, seconds=0.0)


def run(
    recipe: Recipe, data: Transfer, watch: Callable[[str, Row], None], cache: StageCache | None = None
) -> RunResult:
    """Pre-train, fine-tune, evaluate.

    Args:
        recipe: what to do.
        data: both tasks.
        watch: called with ``"pretrain"`` or ``"finetune"`` and each logged row.
        cache: of earlier pre-trainings, and of what was found out about them.

    Raises:
        UserError: the strategy's table does not fit the model; nothing has been trained then.
    """
    resolve_trainable(recipe, data)
    (pre,) = pretrain_once([recipe], data, cache, watch=partial(watch, "pretrain"))
    return run_finetuning([recipe], data, [pre], [partial(watch, "finetune")], cache=cache)[0]


def run_finetuning(
    recipes: Sequence[Recipe],
    data: Transfer,
    pretrained: Sequence[Pretrained],
    watches: Sequence[LogFn],
    lanes: Lanes = Lanes.one,
    cache: StageCache | None = None,
) -> list[RunResult]:
    """Fine-tune and evaluate, a lane a recipe; what diverged in pre-training ends there.

    Args:
        recipes: of one static part.
        data: both tasks.
        pretrained: what each recipe starts from; recipes that share it give the same object.
        watches: one a recipe, called with each logged row of fine-tuning.
        lanes: how; ``Lanes.one`` for a single recipe.
        cache: of what was found out about earlier pre-trainings.
    """
    started = time.perf_counter()
    alive = [lane for lane, pre in enumerate(pretrained) if not pre.diverged]
    warned = [warnings_of(recipe, data, pre) for recipe, pre in zip(recipes, pretrained, strict=True)]
    outcomes = [
        RunResult(pre.params, {}, True, pre.last_finite_step, pre.cost, {"pretrain": pre.seconds}, warned=own)
        for pre, own in zip(pretrained, warned, strict=True)
    ]
    if not alive:
        return outcomes
    own = [recipes[lane] for lane in alive]
    curves = [Curve(watches[i]) for i in alive]
    fine = finetune(own, data, [pretrained[i].params for i in alive], curves, lanes, cache)
    starts = [pretrained[i].params for i in alive]
    known = own[0].strategy.pretrained and learns_source(own[0], data) and "test" in data.source
    after = after_on_source(own, data, starts, fine, lanes) if known else [{} for _ in own]
    seconds = (time.perf_counter() - started) / len(alive)
    whole = zip(alive, fine.fits, fine.metrics, after, fine.starts, curves, strict=True)
    for lane, end, target, source, begin, curve in whole:
        found = pretrained[lane].metrics | source | target
        diverged = end.diverged or not all(map(math.isfinite, found.values()))
        times = {"pretrain": pretrained[lane].seconds, "finetune": seconds}
        kept = {} if diverged else found
        moved = what_moved(fine.moving, begin, end)
        signals = {} if diverged else overfitting(target, curve, end)
        how = (end.last_finite_step, fine.cost, times, moved, signals, warned[lane])
        outcomes[lane] = RunResult(end.params, kept, diverged, *how)
    return outcomes


def warnings_of(recipe: Recipe, data: Transfer, pre: Pretrained) -> Diagnostics:
    """Return what pre-training's logged rows warn of."""
    if not pre.rows:
        return Diagnostics()
    rows = len(data.source["train"].x)
    batch = min(pretraining_batch(recipe, data), rows)
    seen = (pre.rows, -(-rows // batch), batch)
    return Diagnostics(tuple(recipe.pretrain.warnings(*seen)), recipe.pretrain.stability(*seen))


def measure(
    stages: Sequence[Stage],
    params: Sequence[Params],
    splits: Mapping[str, Split],
    lanes: Lanes = Lanes.one,
    own_rows: bool = False,
) -> list[dict[str, float]]:
    """Return everything that is reported of each split, as numbers, a lane each."""
    if not splits:
        return [{} for _ in stages]
    found = run_program("report", stages, params, splits, lanes, own_rows)
    # JAX hands dictionaries back with sorted keys; people read train, val, test.
    names = [name for split in splits for name in found if name.startswith(f"{split}_")]
    return [{name: number(found[name][lane]) for name in names} for lane in range(len(stages))]


def score(data: Transfer, task: Task, params: Sequence[Params], lanes: Lanes) -> list[dict[str, float]]:
    """Return what takes words to compute of the validation and test part, ``val_entity_f1`` and so on, a lane each."""
    inputs = {name: task.splits[name].x for name in ("val", "test") if name in task.splits}
    outputs = run_program("predictions", task.stages, params, inputs, lanes, task.own_rows)
    return [
        {
            f"{name}_{key}": value
            for name in inputs
            for key, value in data.scores(name, np.asarray(outputs[name][lane])).items()
        }
        for lane in range(len(params))
    ]


def run_program(
    program: str,
    stages: Sequence[Stage],
    params: Sequence[Params],
    parts: Mapping[str, Any],
    lanes: Lanes,
    own_rows: bool,
) -> dict[str, np.ndarray]:
    """Return what the program of that name (:class:`~src.training.vectorize.Programs`) makes of the parts, lanes first."""
    run_it = getattr(programs(static_part(stages[0]), lanes, own_rows=own_rows), program)
    still = frozen_paths(stages[0], params[0])
    if lanes is Lanes.one:
        frozen, moving = split(params[0], still)
        found = run_it(traced(stages[0]), moving, frozen, parts)
        return {name: np.asarray(value)[None] for name, value in found.items()}
    frozen, moving = split(stacked(params), still)
    hyper = stacked([traced(stage) for stage in stages])
    return jax.device_get(run_it(np.int32(len(stages)), hyper, moving, frozen, parts))


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
    (pre,) = pretrain([recipe], data)
    (metrics,) = finetune([recipe], data, [pre.params], [ignore]).metrics
    return jnp.array([metrics["train_loss"]], jnp.float32)
