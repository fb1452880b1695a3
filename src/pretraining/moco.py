"""``pretrain=moco``: a view is to be found by its key among a queue of other images' keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import COUNT, UNIT, hparam
from ..errors import UserError
from ..models.base import Model
from ..models.projected import Projected
from ..objectives.base import Network, StepAux, StepContext
from ..types import Params
from .base import PretrainTask
from .contrastive import (
    Shape,
    Temperature,
    check_queue,
    enqueue,
    initial_queue,
    momentum_update,
    queue_info_nce,
    queue_similarities,
)
from .simclr import SIGNALS, Contrastive, Views, in_parts, signals_of

if TYPE_CHECKING:
    from ..data.base import Transfer


@dataclass(frozen=True)
class Queue(Views):
    """MoCo's loss of a batch. The memory: the key network's parameters, the queue, and where its oldest key lies."""

    size: int = 4096
    momentum: float = hparam(0.99, traced=True)
    splits: int = 1
    per_example_loss = False  # the queue ends with pre-training
    signals = (*SIGNALS, "queue_age")

    def init_memory(self, key: Array, params: Params, outputs: int) -> dict[str, Any]:
        """Return a copy of the network, and a queue of random directions."""
        queue = initial_queue(key, outputs, self.size)
        own = {"network": dict(params), "queue": queue, "pointer": jnp.zeros((), jnp.int32)}
        return own | super().init_memory(key, params, outputs)

    def loss_and_aux(
        self, network: Network, batch: tuple[Array, Array], draw: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return InfoNCE of the queries; the key network moves before the keys are made, they are enqueued afterwards.

        Keys are normalised (by batch normalisation) among other images than their queries: each of ``splits`` parts of
        a shuffled batch by itself, so that its statistics give nothing away (He et al., section 3.3).
        """
        first, second = self.augmentation.two_views(draw.key, batch[0])
        q, h, seen = self.embed(network, first, self.splits)
        slow = jax.lax.stop_gradient(momentum_update(memory["network"], network.params, self.momentum))
        order = jax.random.permutation(jax.random.fold_in(draw.key, 1), len(second))
        shuffled, own = in_parts(lambda x: network.run(x, None, slow), second[order], self.splits)
        k = jax.lax.stop_gradient(shuffled[jnp.argsort(order)])
        temperature = self.temperature.at(draw.step, draw.steps)
        loss = queue_info_nce(q, k, memory["queue"], temperature)
        queue, pointer = enqueue(memory["queue"], k, memory["pointer"])
        kept = {"network": jax.lax.stop_gradient({**slow, **own}), "queue": queue, "pointer": pointer}
        beside, of_labels = self.beside(memory, h, batch[1])
        # Updates that the oldest key has waited: of a queue that is not full yet, since the first.
        age = jnp.minimum(draw.step, self.size // len(k)).astype(jnp.float32)
        of_queue = queue_similarities(jax.lax.stop_gradient(q), k, memory["queue"])
        signals = {**signals_of(q, k, temperature), **of_queue, **of_labels, "queue_age": age}
        return loss, StepAux(seen, kept | beside, signals)


@dataclass(frozen=True)
class Moco(Contrastive):
    """MoCo (He et al., arXiv 1911.05722); the defaults are those of its authors' demonstration on CIFAR-10.

    ``queue``: keys that are remembered, a multiple of ``batch_size``. ``momentum``: of the key network, an update.
    ``splits``: parts of a batch that batch normalisation sees apart; it divides ``batch_size``.
    """

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.1))
    hidden: int | None = hparam(None, COUNT)
    outputs: int = hparam(128, COUNT)
    queue: int = hparam(4096, COUNT)
    momentum: float = hparam(0.99, UNIT, traced=True)
    splits: int = hparam(8, COUNT)

    def negatives(self, batch: int) -> int:
        """Return the queue."""
        return self.queue

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the projected network and InfoNCE against a queue."""
        own = {"size": self.queue, "momentum": self.momentum, "splits": self.splits}
        objective = Queue(self.temperature, self.augmentation, None, self.online(model, data), **own)
        return PretrainTask(Projected(model, self.hidden), self.outputs, objective, new_head=True)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what are no images, and a queue or splits that a batch does not fit."""
        super().check(model, data, batch)
        rows = len((data.source or data.target)["train"].x)
        if batch > rows:
            raise UserError(f"batch_size is {batch}, and there are {rows} rows to fill it; allowed: at most {rows}")
        if batch < 2:
            raise UserError("batch_size is 1, and batch normalisation needs two rows; allowed: at least 2")
        check_queue(self.queue, batch)
        if batch % self.splits or batch // self.splits < 2:
            words = f"a divisor of batch_size ({batch}) that leaves at least two rows a part"
            raise UserError(f"pretrain.splits is {self.splits}; allowed: {words}")
