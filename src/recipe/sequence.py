"""``recipe=sequence``: one task after the other, each starting from where the one before ended.

Everything is measured on every task after every task: the accuracy matrix, and the numbers of continual learning that
follow from it (``src/metrics/continual.py``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ..config.schema import option_name
from ..data.base import TaskSequence
from ..errors import UserError
from ..metrics import continual
from ..models.base import head_paths
from ..objectives.kinds import OBJECTIVES
from ..retention.base import RetentionState, SourceTask
from ..retention.none import NoRetention
from ..strategies.full import Full
from ..training.compiled import Cost
from ..training.loop import Training, update_cost
from ..training.stage import Stage
from ..training.vectorize import Lanes
from ..types import Params, Row, Split
from .run import Recipe, TrainableSummary, initial_params, measure, summarize_trainable, task_stage

NEW_HEAD_STREAM = 1_000  # of the seed, plus the task's number: each task's head has initial values of its own


@dataclass(frozen=True)
class SequenceResult:
    """What a sequence ends with."""

    params: Params  # after the last task, with that task's own leaves
    matrix: list[list[float]]  # R[i][j]: test accuracy on task j after training task i; also of tasks to come
    metrics: dict[str, float]
    diverged: bool
    last_finite_step: int
    cost: Cost
    seconds: dict[str, float]

    @property
    def status(self) -> str:
        """``"completed"`` or ``"diverged"``."""
        return "diverged" if self.diverged else "completed"

    @property
    def objective(self) -> float:
        """The mean validation loss over all tasks at the end; infinite when the run diverged."""
        return float("inf") if self.diverged else self.metrics["val_loss"]

    def facts(self) -> dict[str, Any]:
        """Return what else the summary tells of it."""
        return {"accuracy_matrix": self.matrix}


def stage_of(recipe: Recipe, data: TaskSequence, task: int) -> Stage:
    """Return the stage that learns a task: the first one freely, later ones under the strategy and the retention."""
    stage = task_stage(recipe, data.outputs[task], OBJECTIVES[data.kind])
    freely = {} if task else {"strategy": Full(), "retention": NoRetention()}
    return replace(stage, first=task * recipe.finetune_steps, **freely)


def check_sequence(recipe: Recipe, data: TaskSequence) -> TrainableSummary:
    """Return what moves in the second task and after, before anything is trained.

    Raises:
        UserError: a strategy, a retention method or a trainer that does not fit a sequence.
    """
    strategy, retention = option_name(recipe.strategy), option_name(recipe.retention)
    phases = len(recipe.strategy.tables(recipe.model.groups()))
    if phases > 1:
        raise UserError(f"strategy={strategy} has {phases} phases; allowed with recipe=sequence: one, as full has")
    if not recipe.strategy.pretrained:
        raise UserError(
            f"strategy={strategy} starts anew, and a task of recipe=sequence starts where the one before ended; "
            "allowed: strategies that start from what was learned, as full does"
        )
    if recipe.strategy.adapter_params and not recipe.retention.isolates:
        raise UserError(
            f"strategy={strategy} adds parameters to the network, which each task of recipe=sequence needs for itself; "
            f"allowed with it: retention=isolate, not {retention}"
        )
    if recipe.retention.rehearses and not data.shared_head:
        raise UserError(
            f"retention={retention} learns old tasks again beside the new one, which needs one head for all; "
            "allowed with it: tasks of one head, such as data.heads=one"
        )
    if not all("val" in task for task in data.tasks):
        raise UserError("data.val_fraction is 0, which leaves nothing to choose by; allowed: more than 0 and below 1")
    for name, rows in data.rows().items():
        if name.endswith("_train"):
            recipe.trainer.check(data.kind, min(recipe.batch_size or rows, rows))
    recipe.schedule.check(recipe.finetune_steps)
    return summarize_trainable([stage_of(recipe, data, 1)], data.features, OBJECTIVES[data.kind])


def run_sequence(recipe: Recipe, data: TaskSequence, watch: Callable[[str, Row], None]) -> SequenceResult:
    """Learn the tasks in their order and measure all of them after each.

    Args:
        recipe: what to do; its ``lr_fine`` and ``finetune_steps`` hold for each task.
        data: the tasks.
        watch: called with ``"finetune"`` and each logged row: its step counts on over the tasks.
    """
    check_sequence(recipe, data)
    started = time.perf_counter()
    shared = initial_params([stage_of(recipe, data, 0)], data, Lanes.one)[0]
    heads = head_paths(recipe.model, shared)
    apart = recipe.retention.isolates
    own: list[Params] = []  # each task's own leaves: its head where heads are not shared, what a strategy added
    kept: RetentionState | None = None
    matrix: list[list[float]] = []
    baseline: list[float] = []
    cost, fit = Cost(0.0, 0), None
    for number, task in enumerate(data.tasks):
        stage = stage_of(recipe, data, number)
        begin = shared | (_new_head(recipe, data, number, heads) if number and not data.shared_head else {})
        if number == 0:
            baseline = [accuracy(recipe, data, j, {**begin, **_head_for(recipe, data, j, heads)}) for j in _tasks(data)]
        train = jax.device_put(task["train"])
        training = Training([functools.partial(_numbered, watch, number + 1)], Lanes.one)
        given = None if kept is None else [kept]
        ends = training.phase([stage], [begin], train, {"val": task["val"]}, kept=given)
        (fit,) = training.ends(ends)
        if fit.diverged:
            break
        cost = update_cost(stage, begin, train, kept)
        end = fit.params
        own.append({path: leaf for path, leaf in end.items() if _is_own(path, recipe, data, heads, apart)})
        if not (apart and number):
            shared = {path: end[path] for path in shared}
        matrix.append(
            [
                accuracy(recipe, data, j, {**shared, **(own[j] if j <= number else _head_for(recipe, data, j, heads))})
                for j in _tasks(data)
            ]
        )
        kept = init_state(recipe, data, number, end, heads, kept)
    seconds = {"finetune": time.perf_counter() - started}
    if fit is None or fit.diverged:
        last = 0 if fit is None else fit.last_finite_step
        return SequenceResult(shared, matrix, {}, True, last, cost, seconds)
    metrics = numbers(matrix, baseline) | final_losses(recipe, data, shared, own)
    return SequenceResult({**shared, **own[-1]}, matrix, metrics, False, fit.last_finite_step, cost, seconds)


def init_state(
    recipe: Recipe, data: TaskSequence, number: int, end: Params, heads: frozenset[str], before: RetentionState | None
) -> RetentionState | None:
    """Return what the retention method keeps after one more task."""
    retention = recipe.retention
    if not retention.needs_state:
        return None
    rows = data.tasks[number]["train"]
    task = SourceTask(
        recipe.model, data.outputs[number], OBJECTIVES[data.kind], end, heads, not data.shared_head, rows, recipe.seed
    )
    own = retention.init_state(task) if before is None else retention.update(before["own"], task)
    return {"own": own, "head": {}}


def numbers(matrix: list[list[float]], baseline: list[float]) -> dict[str, float]:
    """Return the numbers of continual learning, and each task's accuracy at the end."""
    found = {
        "average_accuracy": continual.average_accuracy(matrix),
        "learning_accuracy": continual.learning_accuracy(matrix),
        "backward_transfer": continual.backward_transfer(matrix),
        "forgetting": continual.forgetting(matrix),
        "forward_transfer": continual.forward_transfer(matrix, baseline) if len(matrix) > 1 else 0.0,
    }
    return found | {f"task_{j}_accuracy": value for j, value in enumerate(matrix[-1], 1)}


def final_losses(recipe: Recipe, data: TaskSequence, shared: Params, own: list[Params]) -> dict[str, float]:
    """Return the mean over tasks of the validation and test losses and accuracies at the end."""
    found: dict[str, list[float]] = {}
    for j in _tasks(data):
        parts = {name: data.tasks[j][name] for name in ("val", "test")}
        for name, value in _measured(recipe, data, j, {**shared, **own[j]}, parts).items():
            if name.endswith(("_loss", "_accuracy")):
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def accuracy(recipe: Recipe, data: TaskSequence, task: int, params: Params) -> float:
    """Return the test accuracy on a task."""
    return _measured(recipe, data, task, params, {"test": data.tasks[task]["test"]})["test_accuracy"]


def _measured(
    recipe: Recipe, data: TaskSequence, task: int, params: Params, parts: Mapping[str, Split]
) -> dict[str, float]:
    stage = stage_of(recipe, data, task)
    adapter_params = any(path.rpartition("/")[2] in recipe.strategy.adapter_params for path in params)
    stage = replace(stage, strategy=recipe.strategy if adapter_params else Full(), retention=NoRetention(), first=0)
    return measure([stage], [params], parts)[0]


def _tasks(data: TaskSequence) -> range:
    return range(len(data.tasks))


def _is_own(path: str, recipe: Recipe, data: TaskSequence, heads: frozenset[str], apart: bool) -> bool:
    added = path.rpartition("/")[2] in recipe.strategy.adapter_params
    return added or (path in heads and (apart or not data.shared_head))


def _new_head(recipe: Recipe, data: TaskSequence, number: int, heads: frozenset[str]) -> Params:
    """Return the initial head of a task."""
    fresh = initial_params([stage_of(recipe, data, number)], data, Lanes.one, stream=NEW_HEAD_STREAM + number)[0]
    return {path: fresh[path] for path in heads}


def _head_for(recipe: Recipe, data: TaskSequence, number: int, heads: frozenset[str]) -> Params:
    """Return the head by which a task that has not been learned is measured: the shared one, or its initial one."""
    return {} if data.shared_head or number == 0 else _new_head(recipe, data, number, heads)


def _numbered(watch: Callable[[str, Row], None], task: int, row: Row) -> None:
    watch("finetune", {**row, "task": task})
