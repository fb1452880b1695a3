"""The compiled programs of a stage, for one run or for many runs side by side: its *lanes*.

Runs that differ only in traced hyperparameters are lanes of one program. ``map`` runs them one after the other inside
it and gives the same bits as one run at a time; ``vmap`` computes them together, which is faster where networks are
small or share their frozen half, and rounds differently (about 1e-6 relative).
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
from .compiled import Compiled, crowded
from .stage import Stage, advance, better, bottom_features, evaluate, initial, no_best, predictions, row_order, start

Lanes = Enum("Lanes", ["one", "map", "vmap"])
EACH, SAME = 0, None  # of an argument: every lane has its own along axis 0, or all lanes have the same


class Programs(NamedTuple):
    """The compiled programs of a stage. Each takes the hyperparameters first; with lanes, their number before that."""

    init: Callable[[tuple[int, ...], int], Compiled]  # for inputs of these features, and a stream of the seed
    start: Compiled
    order: Callable[[int], Compiled]  # for a number of rows
    advance: Compiled
    evaluate: Compiled
    report: Compiled  # an evaluation with everything that is reported of an end
    predictions: Compiled  # the outputs of all rows of each part
    no_best: Compiled
    better: Compiled
    features: Compiled


def programs(stage: Stage, lanes: Lanes = Lanes.one, shared: bool = False, own_rows: bool = False) -> Programs:
    """Return the programs of a stage's static part (see :func:`src.config.schema.static_part`).

    Args:
        stage: the static part.
        lanes: one run, or many and how.
        shared: whether all lanes start from the same parameters and see the rows in the same order.
        own_rows: whether each lane has data of its own, such as features of a bottom of its own.
    """
    return _programs(stage, lanes, shared, own_rows)


def release() -> None:
    """Let go of every compiled program that is not in use; whoever needs it next compiles it, or reads it from disk."""
    _programs.cache_clear()
    jax.clear_caches()


@functools.cache
def _programs(stage: Stage, lanes: Lanes, shared: bool, own_rows: bool) -> Programs:
    if crowded():
        release()
    own, rows = SAME if shared else EACH, EACH if own_rows else SAME

    def compiled(function: Callable[..., Any], *axes: int | None, donate: tuple[int, ...] = ()) -> Compiled:
        bound = functools.partial(_with_hyperparameters, function, stage)
        if lanes is Lanes.one:
            return Compiled(bound, donate)
        return Compiled(over_lanes(bound, lanes, (EACH, *axes)), tuple(place + 1 for place in donate))

    @functools.cache
    def init(features: tuple[int, ...], stream: int) -> Compiled:
        return compiled(lambda bound: initial(bound, features, stream))

    @functools.cache
    def order(count: int) -> Compiled:
        return compiled(lambda bound, step: row_order(bound, count, step), SAME)

    return Programs(
        init=init,
        start=compiled(start, own),
        order=order,
        advance=compiled(advance, EACH, own, rows, own, SAME, SAME, own, donate=(1,)),
        evaluate=compiled(evaluate, EACH, own, rows),
        report=compiled(functools.partial(evaluate, full=True), EACH, own, rows),
        predictions=compiled(predictions, EACH, own, rows),
        no_best=compiled(lambda _stage, moving: no_best(moving), EACH),
        better=compiled(better, EACH, EACH, EACH, SAME),
        features=compiled(bottom_features, own, SAME),
    )


def _with_hyperparameters(function: Callable[..., Any], stage: Stage, hyper: dict[str, Any], *args: Any) -> Any:
    return function(bind(stage, hyper), *args)


def over_lanes(function: Callable[..., Any], lanes: Lanes, axes: Sequence[int | None]) -> Callable[..., Any]:
    """Lift ``function`` to lanes: the result takes their number first, and results have a leading axis.

    Args:
        function: of one lane's arguments.
        lanes: ``map`` or ``vmap``.
        axes: for each argument, ``EACH`` or ``SAME``.
    """
    if lanes is Lanes.vmap:
        together = jax.vmap(function, in_axes=tuple(axes))
        return lambda _count, *args: together(*args)

    def one_after_the_other(count: Any, *args: Any) -> Any:
        def lane(i: Any) -> Any:
            own = (jax.tree.map(lambda leaf: leaf[i], a) if ax is EACH else a for a, ax in zip(args, axes, strict=True))
            return function(*own)

        # Every lane has a place in the arrays, but only `count` of them are run: one program serves any number.
        places = max(
            leaf.shape[0] for a, ax in zip(args, axes, strict=True) if ax is EACH for leaf in jax.tree.leaves(a)
        )
        empty = jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), jax.eval_shape(lane, 0))
        return jax.lax.fori_loop(
            0, count, lambda i, done: jax.tree.map(lambda all_, one: all_.at[i].set(one), done, lane(i)), empty
        )

    return one_after_the_other


def places_for(lanes: int) -> int:
    """Return how many places the arrays of that many lanes have: the next power of two, so that few programs do."""
    return 1 << (lanes - 1).bit_length()


def stacked(values: Sequence[Any]) -> Any:
    """Stack the lanes' trees of arrays along a new first axis; places left over repeat the first lane."""
    padded = [*values, *[values[0]] * (places_for(len(values)) - len(values))]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *padded)
