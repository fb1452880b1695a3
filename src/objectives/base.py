"""What every objective is, and what an option of the group ``pretrain`` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from src.config import COUNT, knob
from src.engine.optimizers import Optimizer
from src.engine.schedules import Schedule
from src.errors import UserError
from src.models.base import Model, Params

if TYPE_CHECKING:
    from src.data.base import Transfer


class Network(NamedTuple):
    """The network under training, as an objective sees it: a batch's outputs, and what they are computed with."""

    run: Callable[..., tuple[Array, Params]]  # of (x, places=None, params=None): outputs, new statistics of its batches
    params: Params  # all of them
    # Of x: the features below the head and the outputs, of one pass, and new statistics.
    in_two: Callable[[Array], tuple[tuple[Array, Array], Params]]


class Draw(NamedTuple):
    """What an objective may use of an update: chance, and how far training has come."""

    key: Any  # None where the objective draws nothing
    step: Any  # updates made before this one
    steps: Any  # of the whole stage


class Learned(NamedTuple):
    """What an update leaves behind beside its gradients."""

    statistics: Params  # of the batches
    memory: Any  # the objective's own, see :meth:`Objective.begin`
    signals: dict[str, Array]  # what is logged of it, by name


@dataclass(frozen=True)
class Objective:
    """Base of what a stage minimises and reports.

    All methods are pure functions of arrays, to be compiled and mapped over lanes. They compute in float32 where the
    outputs have less precision.
    """

    # Whether a batch of rows has a loss without what training has gathered, and whether the network takes rows as they
    # are: what methods against forgetting ask.
    alone: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    signals: ClassVar[tuple[str, ...]] = ()  # what :meth:`learn` tells of each update, whatever its settings

    def told(self) -> tuple[str, ...]:
        """Return the names of all that :meth:`learn` tells of each update."""
        return self.signals

    def learn(
        self, network: Network, batch: tuple[Array, Array], draw: Draw, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], Learned]:
        """Return the loss of an update, of which gradients are taken, and what it leaves behind.

        By default: the mean :meth:`loss` of the network's outputs.
        """
        x, y = self.corrupt(draw.key, *batch) if self.corrupts else batch
        places = self.asked(y)
        if places is not None:
            y = y.reshape(-1).at[places].get(mode="fill", fill_value=-1)
        outputs, seen = network.run(x, places)
        return self.loss(outputs, y, smoothing), Learned(seen, memory, {})

    def begin(self, key: Array, params: Params, outputs: int) -> Any:
        """Return what the objective itself remembers from update to update, before the first; by default nothing."""
        return {}

    def through(self, run: Callable[[Array], Array], x: Array) -> Array:
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

    def asked(self, targets: Array) -> Int[Array, " P"] | None:
        """Return the places of a batch with something to say, where that is few of them; ``None``: everywhere.

        Their number is fixed. A place behind the last one, ``targets.size``, stands for none.
        """
        return None

    def digest(self, outputs: Array, targets: Array) -> Array:
        """Return what :meth:`metrics` and :meth:`report` need of some rows' outputs; by default the outputs."""
        return outputs


# --- pre-training ----------------------------------------------------------------------------------------------------


class Lesson(NamedTuple):
    """What pre-training is: a network, its outputs, what it minimises, and whether its head is of no use afterwards."""

    model: Model
    outputs: int
    objective: Objective
    new_head: bool


@dataclass(frozen=True)
class Pretraining:
    """Base of the options: with its own optimizer, schedule and batches, so that fine-tuning's leave it alone.

    ``batch_size``: rows of an update, ``None`` for as many as fine-tuning takes.
    """

    trains: ClassVar[bool] = True  # whether there is any
    optimizer: Optimizer = knob()
    schedule: Schedule = knob()
    batch_size: int | None = knob(None, COUNT)

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return what is learned: by default the source task as the data has it.

        Raises:
            UserError: the data or the model is not of the kind that this takes.
        """
        kind = data.source_kind
        return Lesson(model.facing(kind), data.source_outputs, data.objective(kind), data.new_head)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what this cannot learn, before anything is trained.

        Args:
            model: as configured.
            data: both tasks.
            batch: rows of an update.
        """
        self.lesson(model, data)

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return what the logged rows warn of, a sentence each.

        Args:
            rows: of pre-training.
            epoch: updates in which every row of the data is seen once.
            batch: rows of an update.
        """
        return []

    def stability(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> dict[str, float]:
        """Return the numbers that :meth:`warnings` is about, by name; the arguments are the same."""
        return {}

    def worth(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return what the features below the head are worth, by name, measured on the source task's test part.

        Args:
            features: of rows, as pre-training left them and as they were at first.
            data: both tasks.
        """
        return {}

    def looks_every(self) -> int | None:
        """Return the updates between two calls of :meth:`glance`; ``None``: there are none."""
        return None

    def glance(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return what is measured on the way, by its name in the row of that step; the test part is not looked at.

        Args:
            features: of rows, as they are by now and as they were at first.
            data: both tasks.
            step: updates made so far.
        """
        return {}

    def measures(self) -> dict[str, Any]:
        """Return what :meth:`worth` and :meth:`glance` depend on, as JSON can say it: a kept stage is named by it."""
        return {}


class Features(NamedTuple):
    """What lies below a network's head, computed of any rows.

    ``embedded`` is what the head makes of it. ``known`` is a place for what has been measured of what pre-training does
    not change; all lanes share it.
    """

    learned: Callable[[Any], Any]
    initial: Callable[[Any], Any]
    embedded: Callable[[Any], Any]
    known: dict[Any, dict[str, float]]


def need_source(option: str, kind: str, data: Transfer, words: str) -> None:
    """Refuse data whose source task is of another kind than an option of ``pretrain`` learns."""
    if data.source_kind != kind or not data.source:
        has = f"is {data.source_kind}" if data.source else "is none"
        raise UserError(f"pretrain={option} learns {kind} words, and the data's source task {has}; allowed: {words}")
