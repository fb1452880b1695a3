"""What a frozen bottom returns, computed once for every row and kept: the training then begins above it.

It pays wherever the lowest groups neither move nor depend on chance. A bottom that moved in an earlier phase, dropout,
and a budget that is too small for the features leave everything as it is.
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
from .stage import Stage, added_shapes, bottom_features, stochastic, traced
from .vectorize import Lanes, programs, stacked

CHUNK = 1024  # rows that the bottom is run on at once


def num_frozen_groups(stage: Stage, params: Mapping[str, Any]) -> int:
    """Return how many groups from the bottom have not moved up to and in the stage's phase; never all of them."""
    if stochastic(stage) or stage.retention.rehearses:  # rehearsal needs the inputs themselves
        return 0
    groups = stage.model.groups()
    new = added_shapes(stage, params)
    whole, moving = {**params, **new}, set(new)
    for table in stage.strategy.tables(groups)[: stage.phase + 1]:
        moving |= {path for path, value in match_rules(table, whole, groups).lr_scale.items() if value is not FROZEN}
    for number, (_, expression) in enumerate(groups[:-1]):
        if any(re.fullmatch(expression, path) for path in moving):
            return number
    return len(groups) - 1


def trunk_params(stage: Stage, params: Params) -> Params:
    """Return the parameters of the groups under ``stage.bottom``."""
    expressions = [expression for _, expression in stage.model.groups()[: stage.bottom]]
    return {path: leaf for path, leaf in params.items() if any(re.fullmatch(e, path) for e in expressions)}


def upper_params(stage: Stage, params: Params) -> Params:
    """Return the parameters of the groups from ``stage.bottom`` on, and those under it that the head uses too."""
    cut, shared = trunk_params(stage, params), stage.model.tied_params()
    return {path: leaf for path, leaf in params.items() if path not in cut or re.fullmatch(shared, path)}


def fits(stage: Stage, params: Mapping[str, Any], splits: Mapping[str, Split]) -> bool:
    """Tell whether the features of all rows fit in ``trainer.feature_cache``; if not, it is said once."""
    if stage.bottom == 0 or stage.trainer.feature_cache == 0:
        return False
    row = next(iter(splits.values())).x[:1]
    one: Any = jax.eval_shape(lambda p, x: bottom_features(stage, p, x), dict(params), row)
    megabytes = sum(len(part.x) for part in splits.values()) * math.prod(one.shape) * one.dtype.itemsize / 1e6
    if megabytes <= stage.trainer.feature_cache:
        return True
    warn_once(
        f"the frozen bottom's features take {megabytes:,.0f} MB, more than trainer.feature_cache="
        f"{stage.trainer.feature_cache:g}: they are computed anew in every update"
    )
    return False


def chunks(model: Model, x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Cut rows into pieces of one size, the last one filled up with its first row, each with its true length."""
    size = model.eval_batch_size(x.shape[1:]) or CHUNK
    if len(x) <= size:
        return [(x, len(x))]
    pieces = [x[i : i + size] for i in range(0, len(x), size)]
    filled = np.concatenate([pieces[-1], np.repeat(pieces[-1][:1], size - len(pieces[-1]), axis=0)])
    return [*((piece, size) for piece in pieces[:-1]), (filled, len(pieces[-1]))]


class Task(NamedTuple):
    """A phase of training as it is run: above the groups whose features are kept, or whole."""

    stages: list[Stage]
    params: list[Params]  # a lane each; one object where they may share it
    splits: dict[str, Split]
    own_rows: bool  # whether the splits have a leading axis, each lane's own

    def part(self, name: str) -> Split:
        """Return the shapes of one lane's part."""
        cut = (lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)) if self.own_rows else lambda leaf: leaf
        return Split(*(cut(leaf) for leaf in self.splits[name]))


def keep_features(stages: Sequence[Stage], params: Sequence[Params], splits: Mapping[str, Split], lanes: Lanes) -> Task:
    """Run the groups at the bottom that rest once over the data, where that is possible.

    Args:
        stages: of one phase, a lane each.
        params: a lane each.
        splits: every part of the task's data.
        lanes: how lanes are run.
    """
    bottom = num_frozen_groups(stages[0], params[0])
    above_it = [replace(stage, bottom=bottom) for stage in stages]
    if not fits(above_it[0], params[0], splits):
        return Task(list(stages), list(params), dict(splits), own_rows=False)
    own = {id(p): upper_params(above_it[0], p) for p in params}
    under = [trunk_params(above_it[0], p) for p in params]
    model, one = stages[0].model, all(same_leaves(other, under[0]) for other in under)
    if one:
        run = programs(static_part(above_it[0])).features
        hyper, bottom_half = traced(above_it[0]), jax.device_put(under[0])

        def of_all(part: Split) -> Split:
            pieces = [run(hyper, bottom_half, x)[:count] for x, count in chunks(model, part.x)]
            return Split(joined(pieces, 0), part.y)

        kept = {name: of_all(part) for name, part in splits.items()}
    else:
        run = programs(static_part(above_it[0]), lanes).features
        hyper, together = stacked([traced(s) for s in above_it]), stacked(under)
        places = len(next(iter(together.values())))

        def of_lanes(part: Split) -> Split:
            pieces = [run(np.int32(len(params)), hyper, together, x)[:, :count] for x, count in chunks(model, part.x)]
            return Split(joined(pieces, 1), np.broadcast_to(part.y, (places, *part.y.shape)))

        kept = {name: of_lanes(part) for name, part in splits.items()}
    return Task(above_it, [own[id(p)] for p in params], kept, own_rows=not one)


def same_leaves(one: Params, other: Params) -> bool:
    """Tell whether two bottoms are the same arrays, as those of one checkpoint are whatever the seed."""
    return all(leaf is other[path] for path, leaf in one.items())


def joined(pieces: list[Array], axis: int) -> Array:
    """Put pieces together along an axis."""
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
