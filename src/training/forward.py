"""Passes through a stage's network: precision, the frozen bottom, and the views of the network that losses take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..models.base import ApplyOptions, head_paths, is_statistic
from ..objectives.base import NetworkFns
from ..optim.partition import join
from ..retention.base import RetentionState
from ..types import Params
from .stage import Stage
from .trainer import Precision


def cast_params(stage: Stage, params: Params, frozen: bool = False) -> Params:
    """Return parameters in the precision of the forward and backward pass; batch statistics keep theirs."""

    def cast(leaf: Array) -> Array:
        if frozen and stage.trainer.frozen_precision is Precision.bfloat16:
            leaf = leaf.astype(jnp.bfloat16)
        return leaf.astype(stage.trainer.precision.name)

    if stage.trainer.precision is stage.trainer.frozen_precision is Precision.float32:
        return params
    return {path: leaf if is_statistic(path) else cast(leaf) for path, leaf in params.items()}


def forward(stage: Stage, params: Params, frozen: Params, x: Array, options: ApplyOptions) -> tuple[Array, Params]:
    """Return a batch's outputs in float32, and the new values of the batch statistics that are updated."""
    strategy = stage.strategy
    options = options._replace(
        start=stage.bottom, adapter_params=frozenset(strategy.adapter_params), wrap_call=strategy.wrap_call
    )
    if jnp.issubdtype(x.dtype, jnp.floating) and stage.trainer.precision is not Precision.float32:
        x = x.astype(stage.trainer.precision.name)
    whole = join(cast_params(stage, params), cast_params(stage, frozen, frozen=True))
    outputs, statistics = stage.model.forward(whole, x, stage.outputs, options)
    return outputs.astype(jnp.float32), statistics


def forward_features_and_logits(
    stage: Stage, params: Params, frozen: Params, x: Array, options: ApplyOptions
) -> tuple[tuple[Array, Array], Params]:
    """Return a batch's features below the head and its outputs, from one pass, and the new batch statistics."""
    top = len(stage.model.groups()) - 1
    features, below = forward(stage, params, frozen, x, options._replace(stop=top))
    outputs, above = forward(replace(stage, bottom=top), params, frozen, features, options)
    head = head_paths(stage.model, above)  # each half returns all statistics and has updated its own
    return (features, outputs), {**below, **{path: above[path] for path in head}}


def bottom_features(stage: Stage, params: Params, x: Array) -> Array:
    """Return the outputs of the ``stage.bottom`` lowest groups for a batch, in the trainer's precision."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(stage.trainer.precision.name)
    params = cast_params(stage, params, frozen=True)
    return stage.model.apply(params, x, stage.outputs, ApplyOptions(stop=stage.bottom))


def network_of(stage: Stage, params: Params, rest: Params, options: ApplyOptions) -> NetworkFns:
    """Return the network that an objective gets. Where both halves have a leaf (a head), ``rest`` wins."""

    def run(x: Array, positions: Array | None = None, other: Params | None = None) -> tuple[Array, Params]:
        own = options._replace(positions=positions)
        return forward(stage, params, rest, x, own) if other is None else forward(stage, other, {}, x, own)

    return NetworkFns(run, {**params, **rest}, lambda x: forward_features_and_logits(stage, params, rest, x, options))


def source_network(stage: Stage, params: Params, rest: Params, retention_state: RetentionState) -> NetworkFns:
    """Return the network under training with the source task's head."""
    task = retention_state["own"]["source"]
    source = replace(stage, model=task.model, outputs=task.outputs)
    return network_of(source, params, {**rest, **retention_state["head"]}, ApplyOptions())


def by_chunks(function: Callable[[Any], Array], size: int | None, data: Any) -> Array:
    """Return ``function`` of all rows of a tree of arrays, computed for ``size`` rows at a time; ``None``: for all."""
    count = len(jax.tree.leaves(data)[0])
    if size is None or size >= count:
        return function(data)
    chunks = -(-count // size)
    rows = jnp.arange(chunks * size) % count  # the last chunk is filled up with the first rows
    whole = jax.lax.map(function, jax.tree.map(lambda leaf: leaf[rows].reshape(chunks, size, *leaf.shape[1:]), data))
    return whole.reshape(chunks * size, *whole.shape[2:])[:count]
