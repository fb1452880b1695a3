"""What a way of keeping the source task is: what it keeps when that task has been learned, and what it does with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import static_part
from ..config.schema import option_class, option_name, option_names
from ..errors import UserError, listed
from ..models.base import Model, is_statistic
from ..objectives.base import Network, Objective
from ..types import Params

if TYPE_CHECKING:
    from ..types import Split  # which imports this file

Kept = dict[str, Any]  # a pytree of arrays, handed to the compiled programs as an argument
Rate = Float[Array, ""] | Mapping[str, Any]  # a learning rate: one, or one for each path
# Of what is computed (a dataclass that says how, whose ``str`` is for people) and of the computation: its result.
CacheFn = Callable[[Any, Callable[[], Params]], Params]


def compute_anew(_what: Any, compute: Callable[[], Params]) -> Params:
    """Remember nothing."""
    return compute()


class SourceTask(NamedTuple):
    """What a method may look at when the source task has been learned."""

    model: Model
    outputs: int  # of the source's head
    objective: Objective  # of the source task
    params: Params  # as the source task left them
    head: frozenset[str]  # paths of the source's head
    new_head: bool  # whether fine-tuning replaces it: then it is never anchored
    source: Split | None  # its training rows, standardised, not augmented; None where there is a checkpoint only
    seed: int
    cached: CacheFn = compute_anew  # what is dear to compute is found again here, if anything is kept


@jax.tree_util.register_static
@dataclass(frozen=True)
class Task:
    """The source task without its numbers: a node of :data:`Kept` that holds no array."""

    model: Model
    outputs: int
    objective: Objective

    def infer(self, params: Params, x: Float[Array, "N ..."]) -> Float[Array, "N outputs"]:
        """Return the source head's outputs for a batch, without dropout and with the statistics as they are."""
        return self.model.apply(params, x, self.outputs)


@dataclass(frozen=True)
class Retention:
    """Base of every method; each overrides what it does.

    What it does is read off before anything is compiled: ``needs_source`` (rows of the source task), ``penalises``
    (:meth:`penalty` is not 0), ``rehearses`` (:meth:`loss` is not 0), ``proximal`` (:meth:`after_update` does
    something), ``isolates`` (the source task is evaluated without what was added to the network).
    """

    needs_source: ClassVar[bool] = False
    rehearses: ClassVar[bool] = False
    isolates: ClassVar[bool] = False

    @property
    def penalises(self) -> bool:
        """Whether :meth:`penalty` is anything but 0."""
        return False

    @property
    def proximal(self) -> bool:
        """Whether :meth:`after_update` changes anything."""
        return False

    @property
    def needs_state(self) -> bool:
        """Whether training needs anything of the source task: what :meth:`init_state` returns."""
        return self.penalises or self.rehearses or self.proximal

    def check(
        self,
        moving: Collection[str] = (),
        adapter_params: Collection[str] = (),
        head: Collection[str] = (),
        has_source: bool = True,
        pretrained: bool = True,
        objective: Objective | None = None,
    ) -> None:
        """Refuse what cannot be kept, before anything is trained.

        Args:
            moving: paths of all that moves in fine-tuning, in any phase.
            injected: last names (``lora_a``) of the leaves that the strategy adds.
            head: paths of the head.
            has_source: whether there are rows of the source task, not only a checkpoint.
            pretrained: whether the strategy starts from what was learned of the source task.
            objective: by which that was learned.

        Raises:
            UserError: the method and what it is to be used with do not go together.
        """
        if self.needs_state and not pretrained:
            raise UserError(
                f"retention.name is '{option_name(self)}', and the strategy starts without pre-training, which leaves "
                "nothing to keep; allowed with it: none"
            )
        if self.needs_source and not has_source:
            raise no_source(self)
        if objective is not None and not self.fits(objective):
            others = [name for name in option_names("retention") if option_class("retention", name).fits(objective)]
            raise UserError(
                f"retention.name is '{option_name(self)}', which {self.wants}, and this pre-training has no such; "
                f"allowed with it: {listed(others)}"
            )

    wants: ClassVar[str] = ""  # what :meth:`fits` looks for, in words

    @classmethod
    def fits(cls, objective: Objective) -> bool:  # noqa: ARG003
        """Tell whether what was learned by an objective can be kept in this way."""
        return True

    def init_state(self, task: SourceTask) -> Kept:
        """Return what will be needed of the source task. Called once, on the host, when it has been learned.

        Raises:
            UserError: there are no rows of the source task, and they are needed.
        """
        return {}

    def update(self, kept: Kept, task: SourceTask) -> Kept:
        """Return what is needed after one more task of a sequence; the base keeps what the last task left.

        Args:
            kept: what :meth:`init_state` or this returned after the task before.
            task: as it has been learned now.
        """
        return self.init_state(task)

    def penalty(self, params: Params, kept: Kept) -> Float[Array, ""]:
        """Return what is added to the loss for leaving the source task's parameters, weighted.

        Args:
            params: the trainable half; what does not move costs nothing.
            kept: what :meth:`init_state` returned.
        """
        return jnp.zeros(())

    def loss(self, source: Network, x: Float[Array, "N ..."], kept: Kept, key: Array) -> Float[Array, ""]:
        """Return what is learned beside the batch, weighted.

        Args:
            source: the network under training with the source task's head, as an evaluation runs it.
            x: the batch's inputs.
            kept: what :meth:`init_state` returned.
            key: of what is drawn in this update.
        """
        return jnp.zeros(())

    def after_update(self, params: Params, kept: Kept, lr: Rate) -> Params:
        """Return the trainable half after the step that follows an update of the optimizer.

        Args:
            params: the trainable half, updated.
            kept: what :meth:`init_state` returned.
            lr: the update's learning rate, or each path's.
        """
        return params


def no_source(method: Retention) -> UserError:
    """Return what is said where a method needs rows of the source task and there are none."""
    others = [name for name in option_names("retention") if not option_class("retention", name).needs_source]
    return UserError(
        f"retention.name is '{option_name(method)}', which needs rows of the source task, and there is a checkpoint "
        f"only; allowed without them: {listed(others)}"
    )


def task_of(keeping: SourceTask) -> Task:
    """Return the source task without its numbers; whatever is traced in the model (dropout) counts for nothing."""
    return Task(static_part(keeping.model), keeping.outputs, keeping.objective)


def source_rows(method: Retention, keeping: SourceTask) -> Split:
    """Return the source task's rows; raises :class:`UserError` where there are none."""
    if keeping.source is None:
        raise no_source(method)
    return keeping.source


def anchors(keeping: SourceTask) -> Params:
    """Return what fine-tuning starts from: the parameters, without a head that it replaces and without statistics."""
    gone = keeping.head if keeping.new_head else frozenset()
    return {path: leaf for path, leaf in keeping.params.items() if path not in gone and not is_statistic(path)}


def distance(params: Params, anchor: Params, weights: Mapping[str, Any] | None = None) -> Float[Array, ""]:
    """Return ``1/2 sum weight * (w - anchor)**2`` over the paths that both have, in float32; weights of 1 if None."""
    total = jnp.zeros(())
    for path, leaf in params.items():
        if path in anchor:
            away = leaf.astype(jnp.float32) - anchor[path]
            total += _half_square(away, jnp.ones(()) if weights is None else weights[path])
    return total


@jax.custom_vjp
def _half_square(away: Array, weight: Array) -> Float[Array, ""]:
    """Return ``1/2 sum weight * away**2``; its gradient is ``weight * away``.

    The sum is a product with ones: on a processor, XLA adds up a whole array number by number, and this in vectors. The
    gradient is said outright so that it is fused into the optimizer's passes, and is no product with ones itself.
    """
    squares = jnp.atleast_1d(weight * away * away)
    rows = jnp.matmul(squares, jnp.ones(squares.shape[-1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(rows) / 2


def _half_square_forward(away: Array, weight: Array) -> tuple[Array, Array]:
    return _half_square(away, weight), weight * away


def _half_square_backward(slope: Array, grad: Array) -> tuple[Array, None]:
    return grad * slope, None  # weights are no parameters


_half_square.defvjp(_half_square_forward, _half_square_backward)
