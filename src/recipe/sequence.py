"""``recipe=sequence``: one task after another, each starting where the one before ended.

After every task, all tasks are evaluated: the accuracy matrix, and the metrics of continual learning that follow from
it (``src/metrics/continual.py``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np

from ..config.schema import option_name
from ..data.base import TaskSequence
from ..errors import UserError
from ..metrics import continual
from ..models.base import head_paths
from ..objectives.kinds import for_kind
from ..retention.base import RetentionState, SourceTask
from ..retention.none import NoRetention
from ..strategies.full import Full
from ..training.calls import Evaluate, InitParams, Steps, TrainPhase, UpdateCost, execute
from ..training.compiled import Cost
from ..training.feature_cache import Inputs
from ..training.loop import Fit, PhaseData, PhaseRun, RunProgress
from ..training.stage import Stage
from ..types import Params, Row, Split
from .resolve import TrainableSummary, finetune_stage, summarize_trainable
from .run import RunResult
from .spec import Recipe

NEW_HEAD_STREAM = 1_000  # of the seed, plus the task's number: each task's head has initial values of its own


@dataclass(frozen=True)
class ResolvedSequence:
    """A sequence, ready to be executed."""

    recipe: Recipe
    data: TaskSequence
    trainable: TrainableSummary  # from the second task on

    def stage(self, task: int) -> Stage:
        """Return the stage that learns a task: the first one fully, later ones with the strategy and retention."""
        recipe, data = self.recipe, self.data
        return sequence_stage(recipe, data, task)

    @functools.cached_property
    def heads(self) -> frozenset[str]:
        """The paths of the head."""
        stage = self.stage(0)
        shapes = jax.eval_shape(lambda: stage.model.init(jax.random.PRNGKey(0), self.data.features, stage.outputs))
        return head_paths(self.recipe.model, shapes)

    def belongs_to_task(self, path: str) -> bool:
        """Return whether a leaf belongs to one task: a head that is not shared, or what the strategy adds."""
        added = path.rpartition("/")[2] in self.recipe.strategy.adapter_params
        return added or (path in self.heads and (self.recipe.retention.isolates or not self.data.shared_head))


def sequence_stage(recipe: Recipe, data: TaskSequence, task: int) -> Stage:
    """Return the stage that learns a task of a sequence."""
    stage = finetune_stage(recipe, data.outputs[task], for_kind(data.kind))
    first_task = {} if task else {"strategy": Full(), "retention": NoRetention()}
    return replace(stage, first=task * recipe.finetune_steps, **first_task)


def resolve_sequence(recipe: Recipe, data: TaskSequence) -> ResolvedSequence:
    """Return the sequence of a recipe on its tasks.

    Raises:
        UserError: a strategy, a retention method or a trainer that does not fit a sequence.
    """
    strategy, retention = option_name(recipe.strategy), option_name(recipe.retention)
    phases = len(recipe.strategy.tables(recipe.model.groups()))
    if phases > 1:
        raise UserError(f"strategy={strategy} has {phases} phases; allowed with recipe=sequence: one, as full has")
    if not recipe.strategy.pretrained:
        raise UserError(
            f"strategy={strategy} starts from initial parameters, and a task of recipe=sequence starts where the one "
            "before ended; allowed: strategies that start from what was learned, as full does"
        )
    if recipe.strategy.adapter_params and not recipe.retention.isolates:
        raise UserError(
            f"strategy={strategy} adds parameters to the network, which each task of recipe=sequence needs for itself; "
            f"allowed with it: retention=isolate, not {retention}"
        )
    if recipe.retention.rehearses and not data.shared_head:
        raise UserError(
            f"retention={retention} rehearses old tasks beside the new one, which needs one head for all; "
            "allowed with it: tasks of one head, such as data.heads=one"
        )
    if not all("val" in task for task in data.tasks):
        raise UserError("data.val_fraction is 0, which leaves no validation rows; allowed: more than 0 and below 1")
    for name, rows in data.rows().items():
        if name.endswith("_train"):
            recipe.trainer.check(data.kind, min(recipe.batch_size or rows, rows))
    recipe.schedule.check(recipe.finetune_steps)
    summary = summarize_trainable([sequence_stage(recipe, data, 1)], data.features, for_kind(data.kind))
    return ResolvedSequence(recipe, data, summary)


def run_sequence(run: ResolvedSequence, log_fn: Callable[[str, Row], None]) -> RunResult:
    """Learn the tasks in their order and evaluate all of them after each.

    Args:
        run: what to do; ``lr_fine`` and ``finetune_steps`` hold for each task.
        log_fn: called with ``"finetune"`` and each logged row; its step counts on over the tasks.
    """
    return execute(_sequence_steps(run, log_fn))


def _sequence_steps(run: ResolvedSequence, log_fn: Callable[[str, Row], None]) -> Steps[RunResult]:
    data, isolated = run.data, run.recipe.retention.isolates
    tasks = range(len(data.tasks))
    started = time.perf_counter()
    shared: Params = yield InitParams(run.stage(0), data.features)
    own: list[Params] = []  # of each learned task: the leaves that belong to it alone
    retention_state: RetentionState | None = None
    matrix: list[list[float]] = []
    baseline: list[float] = []  # accuracy of the initial network on each task
    cost, fit = Cost(0.0, 0), None
    for number, task in enumerate(data.tasks):
        start = shared | (yield from _task_head(run, number))
        if number == 0:
            baseline = yield from _accuracies(run, start, own)
        train = jax.device_put(task["train"])
        progress = RunProgress(functools.partial(_log_with_task, log_fn, number + 1))
        phase_run = PhaseRun(run.stage(number), start, progress, retention_state)
        end, _ = yield TrainPhase(phase_run, PhaseData(train, {"val": task["val"]}))
        fit: Fit | None = progress.fit(end)
        if fit.diverged:
            break
        cost = yield UpdateCost(run.stage(number), start, train, retention_state)
        own.append({path: leaf for path, leaf in end.items() if run.belongs_to_task(path)})
        if not (isolated and number):
            shared = {path: end[path] for path in shared}
        matrix.append((yield from _accuracies(run, shared, own)))
        retention_state = _retention_state(run, number, end, retention_state)
    seconds = {"finetune": time.perf_counter() - started}
    if fit is None or fit.diverged:
        last = 0 if fit is None else fit.last_finite_step
        return RunResult(shared, {}, True, last, cost, seconds, accuracy_matrix=matrix)
    metrics = continual_metrics(matrix, baseline) | (yield from _final_means(run, shared, own, tasks))
    params = {**shared, **own[-1]}
    last, per_update = fit.last_finite_step, fit.seconds_per_update
    return RunResult(params, metrics, False, last, cost, seconds, per_update, accuracy_matrix=matrix)


def _retention_state(
    run: ResolvedSequence, number: int, end: Params, previous: RetentionState | None
) -> RetentionState | None:
    """Return the retention method's state after one more task."""
    retention, data = run.recipe.retention, run.data
    if not retention.needs_state:
        return None
    task = SourceTask(
        run.recipe.model,
        data.outputs[number],
        for_kind(data.kind),
        end,
        run.heads,
        not data.shared_head,
        data.tasks[number]["train"],
        run.recipe.seed,
    )
    own = retention.init_state(task) if previous is None else retention.update(previous["own"], task)
    return {"own": own, "head": {}}


def continual_metrics(matrix: list[list[float]], baseline: list[float]) -> dict[str, float]:
    """Return the metrics of continual learning, and each task's accuracy at the end."""
    found = {
        "average_accuracy": continual.average_accuracy(matrix),
        "learning_accuracy": continual.learning_accuracy(matrix),
        "backward_transfer": continual.backward_transfer(matrix),
        "forgetting": continual.forgetting(matrix),
        "forward_transfer": continual.forward_transfer(matrix, baseline) if len(matrix) > 1 else 0.0,
    }
    return found | {f"task_{j}_accuracy": value for j, value in enumerate(matrix[-1], 1)}


def _final_means(run: ResolvedSequence, shared: Params, own: list[Params], tasks: range) -> Steps[dict[str, float]]:
    """Return the means over the tasks of the validation and test losses and accuracies at the end."""
    found: dict[str, list[float]] = {}
    for j in tasks:
        parts = {name: run.data.tasks[j][name] for name in ("val", "test")}
        metrics = yield _evaluate_task(run, j, {**shared, **own[j]}, parts)
        for name, value in metrics.items():
            if name.endswith(("_loss", "_accuracy")):
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _accuracies(run: ResolvedSequence, shared: Params, own: list[Params]) -> Steps[list[float]]:
    """Return the test accuracy on every task; tasks that were not learned yet are evaluated with their initial head."""
    found = []
    for j, task in enumerate(run.data.tasks):
        head = own[j] if j < len(own) else (yield from _task_head(run, j))
        metrics = yield _evaluate_task(run, j, {**shared, **head}, {"test": task["test"]})
        found.append(metrics["test_accuracy"])
    return found


def _evaluate_task(run: ResolvedSequence, task: int, params: Params, parts: Mapping[str, Split]) -> Evaluate:
    strategy = run.recipe.strategy
    adapted = any(path.rpartition("/")[2] in strategy.adapter_params for path in params)
    stage = replace(run.stage(task), strategy=strategy if adapted else Full(), retention=NoRetention(), first=0)
    return Evaluate(stage, params, Inputs(parts))


def _task_head(run: ResolvedSequence, number: int) -> Steps[Params]:
    """Return the initial head of a task; none where it is shared, or part of the initial parameters."""
    if run.data.shared_head or number == 0:
        return {}
    fresh: Params = yield InitParams(run.stage(number), run.data.features, NEW_HEAD_STREAM + number)
    return {path: fresh[path] for path in run.heads}


def _log_with_task(log_fn: Callable[[str, Row], None], task: int, row: Row) -> None:
    log_fn("finetune", {**row, "task": task})
