"""The outputs of a frozen bottom, computed once for every row and kept; training then begins above it.

This applies where the lowest groups are neither trained nor stochastic. Groups that were trained in an earlier phase,
dropout, and features that exceed ``trainer.feature_cache`` leave the stage as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..config.hparams import static_part
from ..models.base import Model
from ..notices import warn_once
from ..optim.partition import FROZEN, match_rules
from ..types import Params, Split
from .forward import bottom_features
from .loop import PhaseData
from .stage import Stage, added_shapes, traced
from .vectorize import RunAxis, programs, stack_runs

CHUNK = 1024  # rows that pass the bottom at a time


def num_frozen_groups(stage: Stage, params: Mapping[str, Any]) -> int:
    """Return how many of the lowest groups were not trained up to the stage's phase; never all of them."""
    if stage.stochastic or stage.retention.rehearses:  # rehearsal needs the inputs themselves
        return 0
    groups = stage.model.groups()
    new = added_shapes(stage, params)
    whole, trained = {**params, **new}, set(new)
    for table in stage.strategy.tables(groups)[: stage.phase + 1]:
        lr_scale = match_rules(table, whole, groups).lr_scale
        trained |= {path for path, value in lr_scale.items() if value is not FROZEN}
    for number, (_, expression) in enumerate(groups[:-1]):
        if any(re.fullmatch(expression, path) for path in trained):
            return number
    return len(groups) - 1


def trunk_params(stage: Stage, params: Params) -> Params:
    """Return the parameters of the ``stage.bottom`` lowest groups."""
    expressions = [expression for _, expression in stage.model.groups()[: stage.bottom]]
    return {path: leaf for path, leaf in params.items() if any(re.fullmatch(e, path) for e in expressions)}


def upper_params(stage: Stage, params: Params) -> Params:
    """Return the parameters of the other groups, and those of the lowest groups that the head shares."""
    trunk, shared = trunk_params(stage, params), stage.model.tied_params()
    return {path: leaf for path, leaf in params.items() if path not in trunk or re.fullmatch(shared, path)}


def fits_in_memory(stage: Stage, params: Mapping[str, Any], splits: Mapping[str, Split]) -> bool:
    """Return whether the features of all rows fit in ``trainer.feature_cache``; warn once if they do not."""
    if stage.bottom == 0 or stage.trainer.feature_cache == 0:
        return False
    row = next(iter(splits.values())).x[:1]
    one: Any = jax.eval_shape(lambda p, x: bottom_features(stage, p, x), dict(params), row)
    megabytes = sum(len(part.x) for part in splits.values()) * math.prod(one.shape) * one.dtype.itemsize / 1e6
    if megabytes <= stage.trainer.feature_cache:
        return True
    warn_once(
        f"the frozen bottom's features take {megabytes:,.0f} MB, more than trainer.feature_cache="
        f"{stage.trainer.feature_cache:g}: they are recomputed in every update"
    )
    return False


def chunks(model: Model, x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Cut rows into pieces of one size, each with its true length; the last is padded with its first row."""
    size = model.eval_batch_size(x.shape[1:]) or CHUNK
    if len(x) <= size:
        return [(x, len(x))]
    pieces = [x[i : i + size] for i in range(0, len(x), size)]
    padded = np.concatenate([pieces[-1], np.repeat(pieces[-1][:1], size - len(pieces[-1]), axis=0)])
    return [*((piece, size) for piece in pieces[:-1]), (padded, len(pieces[-1]))]


class Inputs(NamedTuple):
    """The parts of a task as a phase trains on them: rows as they are, or the features of a frozen bottom."""

    splits: Mapping[str, Split]
    per_run: bool = False  # whether all of it has a leading run axis

    @property
    def phase_data(self) -> PhaseData:
        """The rows to learn from, and the validation part to evaluate."""
        evaluated = {name: part for name, part in self.splits.items() if name == "val"}
        return PhaseData(self.splits["train"], evaluated, self.per_run)

    def shapes(self, name: str) -> Split:
        """Return the shapes of one run's part."""
        cut = (lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)) if self.per_run else lambda leaf: leaf
        return Split(*(cut(leaf) for leaf in self.splits[name]))


class UpperRun(NamedTuple):
    """One run's stage and parameters above its frozen bottom."""

    stage: Stage
    params: Params  # the same object for runs that may share it


def cache_features(
    stages: Sequence[Stage], params: Sequence[Params], splits: Mapping[str, Split], axis: RunAxis = RunAxis.none
) -> tuple[list[UpperRun], Inputs]:
    """Compute the features of the frozen bottom for all rows, where there is one and they fit in memory.

    Args:
        stages: of one phase, one for each run.
        params: of each run.
        splits: every part of the task's data.
        axis: how the run axis is computed.

    Returns:
        What is left to train of each run, and the data that it is trained on; unchanged where nothing is cached.
    """
    bottom = num_frozen_groups(stages[0], params[0])
    upper = [replace(stage, bottom=bottom) for stage in stages]
    if not fits_in_memory(upper[0], params[0], splits):
        return [UpperRun(*pair) for pair in zip(stages, params, strict=True)], Inputs(dict(splits))
    own = {id(p): upper_params(upper[0], p) for p in params}
    trunks = [trunk_params(upper[0], p) for p in params]
    same_trunk = all(_same_leaves(other, trunks[0]) for other in trunks)
    compute = _features_of_one if same_trunk else _features_per_run
    parts = compute(upper, trunks, splits, axis)
    runs = [UpperRun(stage, own[id(p)]) for stage, p in zip(upper, params, strict=True)]
    return runs, Inputs(parts, per_run=not same_trunk)


def _features_of_one(
    stages: Sequence[Stage], trunks: Sequence[Params], splits: Mapping[str, Split], _axis: RunAxis
) -> dict[str, Split]:
    run, model = programs(static_part(stages[0])).features, stages[0].model
    hyper, trunk = traced(stages[0]), jax.device_put(trunks[0])

    def features(part: Split) -> Split:
        return Split(_joined([run(hyper, trunk, x)[:count] for x, count in chunks(model, part.x)], 0), part.y)

    return {name: features(part) for name, part in splits.items()}


def _features_per_run(
    stages: Sequence[Stage], trunks: Sequence[Params], splits: Mapping[str, Split], axis: RunAxis
) -> dict[str, Split]:
    run, model, n_runs = programs(static_part(stages[0]), axis).features, stages[0].model, np.int32(len(stages))
    hyper, together = stack_runs([traced(stage) for stage in stages]), stack_runs(trunks)
    size = len(next(iter(together.values())))

    def features(part: Split) -> Split:
        pieces = [run(n_runs, hyper, together, x)[:, :count] for x, count in chunks(model, part.x)]
        return Split(_joined(pieces, 1), np.broadcast_to(part.y, (size, *part.y.shape)))

    return {name: features(part) for name, part in splits.items()}


def _same_leaves(one: Params, other: Params) -> bool:
    """Return whether two bottoms are the same arrays, as those of one checkpoint are whatever the seed."""
    return all(leaf is other[path] for path, leaf in one.items())


def _joined(pieces: list[Array], axis: int) -> Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
