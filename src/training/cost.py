"""The cost of one update, without running it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from ..config.hparams import bind, static_part
from ..retention.base import RetentionState
from ..types import Params, Split
from .compiled import Cost
from .stage import Stage, frozen_paths, traced, with_added
from .step import start
from .vectorize import programs


def update_cost(stage: Stage, params: Params, data: Split, retention_state: RetentionState | None = None) -> Cost:
    """Return the cost of one update of a single run, gathering its rows included.

    It is that of the compiled program: what XLA found dead, such as the backward pass of a frozen trunk, does not
    count.
    """
    return _update_cost(static_part(stage), _Shapes(params), _Shapes(tuple(data)), _Shapes(retention_state or {}))


@functools.cache
def _update_cost(stage: Stage, params_: _Shapes, rows: _Shapes, retention_state: _Shapes) -> Cost:
    params: Any = params_.tree
    data = Split(*rows.tree)
    batch = min(stage.batch_size or len(data.x), len(data.x))
    order = jax.ShapeDtypeStruct((stage.log_every, batch), np.int32) if batch < len(data.x) else None
    hyper, step = traced(stage), jax.ShapeDtypeStruct((), np.int32)
    state = jax.eval_shape(lambda hyper, params: start(bind(stage, hyper), params), hyper, params)
    frozen = {path: params[path] for path in frozen_paths(stage, with_added(stage, params))}
    cost = programs(stage).advance.cost(hyper, state, frozen, data, order, step, step, retention_state.tree)
    return cost._replace(
        optimizer_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.optimizer))
    )


class _Shapes:
    """A tree of shapes that can be a key: equal where structure, shapes and dtypes are."""

    def __init__(self, tree: Any) -> None:
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)

    @property
    def tree(self) -> Any:
        """The tree, with shapes as leaves."""
        return jax.tree.unflatten(self._structure, [jax.ShapeDtypeStruct(*leaf) for leaf in self._leaves])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shapes) and (self._structure, self._leaves) == (other._structure, other._leaves)

    def __hash__(self) -> int:
        return hash((self._structure, self._leaves))
