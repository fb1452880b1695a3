"""The base class of objectives: what a stage minimises and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..types import Params


class NetworkFns(NamedTuple):
    """The network under training, as functions of a batch."""

    run: Callable[..., tuple[Array, Params]]  # of (x, positions=None, params=None): outputs, new batch statistics
    params: Params  # all of them, trainable and frozen
    # Of x: ((features below the head, outputs), new batch statistics), from one forward pass.
    features_and_logits: Callable[[Array], tuple[tuple[Array, Array], Params]]


class StepContext(NamedTuple):
    """The random key of an update and its place in the stage."""

    key: Any  # None for objectives that draw nothing
    step: Any  # updates made before this one
    steps: Any  # updates of the whole stage


class StepAux(NamedTuple):
    """What an update returns beside the loss and its gradients."""

    statistics: Params  # batch statistics
    memory: Any  # the objective's state, see :meth:`Objective.init_memory`
    signals: dict[str, Array]  # logged values by name


@dataclass(frozen=True)
class Objective:
    """Base of the objectives.

    All methods are pure functions of arrays that can be compiled and vectorised. They compute in float32 if the outputs
    have a lower precision.
    """

    # Retention methods read these two.
    per_example_loss: ClassVar[bool] = True  # whether the loss of a batch needs no state of the training
    raw_inputs: ClassVar[bool] = True  # whether the network takes rows unchanged
    corrupts: ClassVar[bool] = False  # whether :meth:`corrupt` changes anything
    signals: ClassVar[tuple[str, ...]] = ()  # names of the signals that :meth:`loss_and_aux` always returns

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of all signals that :meth:`loss_and_aux` returns under the current settings."""
        return self.signals

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss of an update, which is differentiated, and its auxiliary results.

        The default is the mean :meth:`loss` of one forward pass.
        """
        x, y = self.corrupt(context.key, *batch) if self.corrupts else batch
        positions = self.loss_positions(y)
        if positions is not None:
            y = y.reshape(-1).at[positions].get(mode="fill", fill_value=-1)
        outputs, statistics = network.run(x, positions)
        return self.loss(outputs, y, smoothing), StepAux(statistics, memory, {})

    def init_memory(self, key: Array, params: Params, outputs: int) -> Any:
        """Return the objective's state before the first update; the default is none."""
        return {}

    def apply_eval(self, run: Callable[[Array], Array], x: Array) -> Array:
        """Return the outputs of an evaluation for rows that :meth:`corrupt` returned."""
        return run(x)

    def loss(self, outputs: Float[Array, "N K"], targets: Array, smoothing: Any = None) -> Float[Array, ""]:
        """Return the loss of a batch: a mean over :meth:`count` terms.

        The loss of several batches together is the mean of their losses weighted by their counts, which is how
        gradients are accumulated.

        Args:
            outputs: of the network.
            targets: of the batch.
            smoothing: label smoothing from 0 to 1, possibly traced; ``None`` switches it off.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def count(self, targets: Array) -> Float[Array, ""]:
        """Return the number of terms that :meth:`loss` is the mean of; the default is the number of rows."""
        return jnp.float32(targets.shape[0])

    def metrics(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return the loss and other metrics of a whole split.

        The loss is without label smoothing, so that runs with and without it can be compared.
        """
        raise TypeError(f"{type(self).__name__} has no metrics")

    def report(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return :meth:`metrics` and more expensive ones, computed once at the end of a stage."""
        return self.metrics(outputs, targets)

    def corrupt(self, key: Array, x: Array, targets: Array) -> tuple[Array, Array]:
        """Return the inputs and targets of a batch that are drawn anew in each update (masked words, random views)."""
        return x, targets

    def loss_positions(self, targets: Array) -> Int[Array, " P"] | None:
        """Return the positions of a batch that have a target; ``None`` stands for all.

        Their number is fixed; unused entries hold ``targets.size``, which is behind the last position.
        """
        return None

    def reduce_outputs(self, outputs: Array, targets: Array) -> Array:
        """Return what :meth:`metrics` and :meth:`report` need of some rows' outputs; the default is all of them."""
        return outputs
