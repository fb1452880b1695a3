"""The compiled programs of a stage, for one run or with a run axis for many.

Runs that differ in traced hyperparameters only share a program. ``map`` loops over the run axis inside the program and
gives the bits of single runs; ``vmap`` computes the runs together, which is faster for small networks and for runs that
share their frozen half, and rounds differently (about 1e-6 relative).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.hparams import bind
from .compiled import Compiled, memory_maps_low
from .evaluation import evaluate, init_best, predictions, update_best
from .forward import bottom_features
from .stage import Stage, initial
from .step import advance, row_order, start

RunAxis = Enum("RunAxis", ["none", "map", "vmap"])


class Programs(NamedTuple):
    """The compiled programs of a stage.

    Each takes the traced hyperparameters first; with a run axis, the number of runs before them.
    """

    init: Callable[[tuple[int, ...], int], Compiled]  # for a shape of inputs, and a stream of the seed
    start: Compiled
    order: Callable[[int], Compiled]  # for a number of rows
    advance: Compiled
    evaluate: Compiled
    report: Compiled  # an evaluation with all metrics of a finished stage
    predictions: Compiled  # the outputs for all rows of each part
    init_best: Compiled
    update_best: Compiled
    features: Compiled


def programs(
    stage: Stage, axis: RunAxis = RunAxis.none, *, same_start: bool = False, data_per_run: bool = False
) -> Programs:
    """Return the programs of a stage's static part (:func:`src.config.hparams.static_part`).

    Args:
        stage: the static part.
        axis: whether there is a run axis, and how it is computed.
        same_start: whether all runs have the same initial parameters and row order.
        data_per_run: whether the data has a run axis, such as features of different frozen bottoms.
    """
    return _programs(stage, axis, same_start, data_per_run)


def clear_programs() -> None:
    """Drop all compiled programs; one that is needed again is read from JAX's cache on disk or compiled."""
    _programs.cache_clear()
    jax.clear_caches()


@functools.cache
def _programs(stage: Stage, axis: RunAxis, same_start: bool, data_per_run: bool) -> Programs:
    if memory_maps_low():
        clear_programs()
    start_axis, data_axis = None if same_start else 0, 0 if data_per_run else None

    def compiled(function: Callable[..., Any], *in_axes: int | None, donate: tuple[int, ...] = ()) -> Compiled:
        bound = functools.partial(_with_hyperparameters, function, stage)
        if axis is RunAxis.none:
            return Compiled(bound, donate)
        return Compiled(over_runs(bound, axis, (0, *in_axes)), tuple(position + 1 for position in donate))

    @functools.cache
    def init(features: tuple[int, ...], stream: int) -> Compiled:
        return compiled(lambda bound: initial(bound, features, stream))

    @functools.cache
    def order(count: int) -> Compiled:
        return compiled(lambda bound, step: row_order(bound, count, step), None)

    return Programs(
        init=init,
        start=compiled(start, start_axis),
        order=order,
        advance=compiled(advance, 0, start_axis, data_axis, start_axis, None, None, start_axis, donate=(1,)),
        evaluate=compiled(evaluate, 0, start_axis, data_axis),
        report=compiled(functools.partial(evaluate, full=True), 0, start_axis, data_axis),
        predictions=compiled(predictions, 0, start_axis, data_axis),
        init_best=compiled(lambda _stage, trainable: init_best(trainable), 0),
        update_best=compiled(update_best, 0, 0, 0, None),
        features=compiled(bottom_features, start_axis, None),
    )


def _with_hyperparameters(function: Callable[..., Any], stage: Stage, hyper: dict[str, Any], *args: Any) -> Any:
    return function(bind(stage, hyper), *args)


def over_runs(function: Callable[..., Any], axis: RunAxis, in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """Return ``function`` with a leading run axis: it takes the number of runs first, and its results have the axis.

    Args:
        function: of one run's arguments.
        axis: ``map`` or ``vmap``.
        in_axes: for each argument 0, if it has the run axis, or ``None``.
    """
    if axis is RunAxis.vmap:
        together = jax.vmap(function, in_axes=tuple(in_axes))
        return lambda _count, *args: together(*args)

    def mapped(count: Any, *args: Any) -> Any:
        pairs = list(zip(args, in_axes, strict=True))

        def run(i: Any) -> Any:
            return function(*(jax.tree.map(lambda leaf: leaf[i], a) if ax == 0 else a for a, ax in pairs))

        # The arrays have room for `size` runs, of which `count` are computed: one program serves any number.
        size = max(leaf.shape[0] for a, ax in pairs if ax == 0 for leaf in jax.tree.leaves(a))
        empty = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), jax.eval_shape(run, 0))
        return jax.lax.fori_loop(
            0, count, lambda i, done: jax.tree.map(lambda all_, one: all_.at[i].set(one), done, run(i)), empty
        )

    return mapped


def padded_size(n_runs: int) -> int:
    """Return the size of the run axis for that many runs: the next power of two, so that few programs are needed."""
    return 1 << (n_runs - 1).bit_length()


def stack_runs(values: Sequence[Any]) -> Any:
    """Stack the trees of several runs along a new first axis, padded with copies of the first."""
    padded = [*values, *[values[0]] * (padded_size(len(values)) - len(values))]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *padded)
