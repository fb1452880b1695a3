"""What every objective is, and what an option of the group ``pretrain`` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..types import Params


class Network(NamedTuple):
    """The network under training, as an objective sees it: a batch's outputs, and what they are computed with."""

    run: Callable[..., tuple[Array, Params]]  # of (x, places=None, params=None): outputs, new statistics of its batches
    params: Params  # all of them
    # Of x: the features below the head and the outputs, of one pass, and new statistics.
    features_and_logits: Callable[[Array], tuple[tuple[Array, Array], Params]]


class StepContext(NamedTuple):
    """What an objective may use of an update: chance, and how far training has come."""

    key: Any  # None where the objective draws nothing
    step: Any  # updates made before this one
    steps: Any  # of the whole stage


class StepAux(NamedTuple):
    """What an update leaves behind beside its gradients."""

    statistics: Params  # of the batches
    memory: Any  # the objective's own, see :meth:`Objective.init_memory`
    signals: dict[str, Array]  # what is logged of it, by name


@dataclass(frozen=True)
class Objective:
    """Base of what a stage minimises and reports.

    All methods are pure functions of arrays, to be compiled and mapped over lanes. They compute in float32 where the
    outputs have less precision.
    """

    # Whether a batch of rows has a loss without what training has gathered, and whether the network takes rows as they
    # are: what methods against forgetting ask.
    per_example_loss: ClassVar[bool] = True
    raw_inputs: ClassVar[bool] = True
    signals: ClassVar[tuple[str, ...]] = ()  # what :meth:`loss_and_aux` tells of each update, whatever its settings

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of all that :meth:`loss_and_aux` tells of each update."""
        return self.signals

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return the loss of an update, of which gradients are taken, and what it leaves behind.

        By default: the mean :meth:`loss` of the network's outputs.
        """
        x, y = self.corrupt(draw.key, *batch) if self.corrupts else batch
        places = self.loss_positions(y)
        if places is not None:
            y = y.reshape(-1).at[places].get(mode="fill", fill_value=-1)
        outputs, seen = network.run(x, places)
        return self.loss(outputs, y, smoothing), StepAux(seen, memory, {})

    def init_memory(self, key: Array, params: Params, outputs: int) -> Any:
        """Return what the objective itself remembers from update to update, before the first; by default nothing."""
        return {}

    def apply_eval(self, run: Callable[[Array], Array], x: Array) -> Array:
        """Return the outputs of rows that :meth:`corrupt` returned, in an evaluation."""
        return run(x)

    def loss(self, outputs: Float[Array, "N K"], targets: Array, smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean loss of a batch: a mean over :meth:`count` terms.

        So the loss of several batches together is the mean of theirs, each weighted with its count: this is how
        gradients are accumulated.

        Args:
            outputs: of the network.
            targets: what they should be.
            smoothing: share of label smoothing, 0 to 1, possibly traced; ``None`` switches it off.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def count(self, targets: Array) -> Float[Array, ""]:
        """Return the number of terms that :meth:`loss` is the mean of; here the rows."""
        return jnp.float32(targets.shape[0])

    def metrics(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return the loss and what else is worth reporting of a whole split.

        The loss is without label smoothing, so that runs with and without it can be compared.
        """
        raise TypeError(f"{type(self).__name__} has no metrics")

    def report(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return :meth:`metrics` and what costs more: read once, of a split at the end of a stage."""
        return self.metrics(outputs, targets)

    corrupts: ClassVar[bool] = False  # whether :meth:`corrupt` changes anything

    def corrupt(self, key: Array, x: Array, targets: Array) -> tuple[Array, Array]:
        """Return what the network sees of a batch and what it has to say, where that is drawn anew in each update."""
        return x, targets

    def loss_positions(self, targets: Array) -> Int[Array, " P"] | None:
        """Return the places of a batch with something to say, where that is few of them; ``None``: everywhere.

        Their number is fixed. A place behind the last one, ``targets.size``, stands for none.
        """
        return None

    def reduce_outputs(self, outputs: Array, targets: Array) -> Array:
        """Return what :meth:`metrics` and :meth:`report` need of some rows' outputs; by default the outputs."""
        return outputs


# --- pre-training ----------------------------------------------------------------------------------------------------
