"""``pretrain=moco``: find the key of a view among a queue of other images' keys (momentum contrast)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import COUNT, UNIT, hparam
from ..data.base import Transfer
from ..errors import UserError
from ..models.base import Model
from ..objectives.base import NetworkFns, StepAux, StepContext
from ..types import Params
from .contrastive import (
    Shape,
    Temperature,
    check_queue,
    enqueue,
    init_queue,
    momentum_update,
    queue_info_nce,
    queue_similarities,
)
from .simclr import SIGNALS, Contrastive, ContrastiveObjective, OnlineProbe, contrastive_signals, in_splits


@dataclass(frozen=True)
class MocoObjective(ContrastiveObjective):
    """InfoNCE against a queue. Its memory: the key network's parameters, the queue, and its pointer."""

    queue_size: int = 4096
    momentum: float = hparam(0.99, traced=True)
    bn_splits: int = 1
    per_example_loss = False  # the loss needs the queue, which exists during pre-training only
    signals = (*SIGNALS, "queue_age")

    def init_memory(self, key: Array, params: Params, outputs: int) -> dict[str, Any]:
        """Return a copy of the network, and a queue of random directions."""
        queue = init_queue(key, outputs, self.queue_size)
        memory = {"network": dict(params), "queue": queue, "pointer": jnp.zeros((), jnp.int32)}
        return memory | super().init_memory(key, params, outputs)

    def loss_and_aux(
        self, network: NetworkFns, batch: tuple[Array, Array], context: StepContext, memory: Any, smoothing: Any = None
    ) -> tuple[Float[Array, ""], StepAux]:
        """Return InfoNCE of the queries. The key network is updated before the keys, the queue after the loss.

        A batch is shuffled and normalised in parts, so that batch statistics do not identify the positive (section
        3.3).
        """
        first, second = self.augmentation.two_views(context.key, batch[0])
        q, h, statistics = self.embed(network, first, self.bn_splits)
        key_params = jax.lax.stop_gradient(momentum_update(memory["network"], network.params, self.momentum))
        order = jax.random.permutation(jax.random.fold_in(context.key, 1), len(second))
        shuffled, key_stats = in_splits(lambda x: network.run(x, None, key_params), second[order], self.bn_splits)
        k = jax.lax.stop_gradient(shuffled[jnp.argsort(order)])
        temperature = self.temperature.at(context.step, context.steps)
        loss = queue_info_nce(q, k, memory["queue"], temperature)
        queue, pointer = enqueue(memory["queue"], k, memory["pointer"])
        new = {"network": jax.lax.stop_gradient({**key_params, **key_stats}), "queue": queue, "pointer": pointer}
        probe, probe_signals = self.update_probe(memory, h, batch[1])
        # Updates since the oldest key was enqueued; those since the start while the queue is not full.
        age = jnp.minimum(context.step, self.queue_size // len(k)).astype(jnp.float32)
        from_queue = queue_similarities(jax.lax.stop_gradient(q), k, memory["queue"])
        signals = {**contrastive_signals(q, k, temperature), **from_queue, **probe_signals, "queue_age": age}
        return loss, StepAux(statistics, new | probe, signals)


@dataclass(frozen=True)
class Moco(Contrastive):
    """MoCo (He et al., arXiv 1911.05722); the defaults are those of its authors' demonstration on CIFAR-10.

    ``queue_size``: keys in the queue, a multiple of ``batch_size``. ``momentum``: of the key network, per update.
    ``bn_splits``: parts of a batch that are batch-normalised separately; it divides ``batch_size``.
    """

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.1))
    proj_hidden_dim: int | None = hparam(None, COUNT)
    proj_output_dim: int = hparam(128, COUNT)
    queue_size: int = hparam(4096, COUNT)
    momentum: float = hparam(0.99, UNIT, traced=True)
    bn_splits: int = hparam(8, COUNT)

    def negatives(self, batch: int) -> int:
        """Return the size of the queue."""
        return self.queue_size

    def objective(self, online: OnlineProbe | None) -> MocoObjective:
        """Return InfoNCE against a queue."""
        settings = (self.queue_size, self.momentum, self.bn_splits)
        return MocoObjective(self.temperature, self.augmentation, None, online, *settings)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data other than images, and a queue or splits that do not fit the batch."""
        super().check(model, data, batch)
        rows = len((data.source or data.target)["train"].x)
        if batch > rows:
            raise UserError(f"batch_size is {batch}, and there are {rows} rows to fill it; allowed: at most {rows}")
        if batch < 2:
            raise UserError("batch_size is 1, and batch normalisation needs two rows; allowed: at least 2")
        check_queue(self.queue_size, batch)
        if batch % self.bn_splits or batch // self.bn_splits < 2:
            allowed = f"a divisor of batch_size ({batch}) that leaves at least two rows a part"
            raise UserError(f"pretrain.bn_splits is {self.bn_splits}; allowed: {allowed}")
