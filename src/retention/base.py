"""The base class of retention methods, which protect the source task during fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import static_part
from ..config.schema import option_class, option_name, option_names
from ..errors import UserError, listed
from ..models.base import Model, is_statistic
from ..objectives.base import NetworkFns, Objective
from ..types import Params, Split

RetentionState = dict[str, Any]  # a pytree of arrays, an argument of the compiled programs
Rate = Float[Array, ""] | Mapping[str, Any]  # a learning rate: one, or one for each path
# Of a description of a computation (a dataclass; its `str` is a label) and of the computation: its result.
CacheFn = Callable[[Any, Callable[[], Params]], Params]


def compute_anew(_what: Any, compute: Callable[[], Params]) -> Params:
    """Return the result of a computation, without a cache."""
    return compute()


class SourceTask(NamedTuple):
    """The source task after it has been learned."""

    model: Model
    outputs: int  # units of the source's head
    objective: Objective
    params: Params  # after learning the source task
    head: frozenset[str]  # paths of the source's head
    new_head: bool  # whether fine-tuning replaces the head, which then has no anchor
    source: Split | None  # its training rows, standardised, not augmented; None if only a checkpoint is available
    seed: int
    cached: CacheFn = compute_anew  # a cache of expensive computations


@jax.tree_util.register_static
@dataclass(frozen=True)
class SourceModel:
    """The source task's model without parameters: a static node of :data:`RetentionState`."""

    model: Model
    outputs: int
    objective: Objective

    def infer(self, params: Params, x: Float[Array, "N ..."]) -> Float[Array, "N outputs"]:
        """Return the source head's outputs for a batch, without dropout and without new batch statistics."""
        return self.model.apply(params, x, self.outputs)


class FinetuneSetup(NamedTuple):
    """The fine-tuning that a retention method is combined with."""

    trainable: Collection[str]  # paths that are trained, in any phase
    head: Collection[str]  # paths of the head
    adapter_params: Collection[str] = ()  # last names (``lora_a``) of the parameters that the strategy adds
    pretrained: bool = True  # whether the strategy starts from the pre-trained parameters
    objective: Objective | None = None  # of the pre-training; None: there are no rows of it, only a checkpoint


@dataclass(frozen=True)
class Retention:
    """Base of the retention methods.

    What a method does is known before compilation: ``needs_source`` (rows of the source task), ``penalises``
    (:meth:`penalty` is not 0), ``rehearses`` (:meth:`loss` is not 0), ``proximal`` (:meth:`after_update` changes the
    parameters), ``isolates`` (the source task is evaluated without the strategy's added parameters).
    """

    needs_source: ClassVar[bool] = False
    rehearses: ClassVar[bool] = False
    isolates: ClassVar[bool] = False
    requirement: ClassVar[str] = ""  # of :meth:`supports`, for its error message

    @property
    def penalises(self) -> bool:
        """Whether :meth:`penalty` is not 0."""
        return False

    @property
    def proximal(self) -> bool:
        """Whether :meth:`after_update` changes anything."""
        return False

    @property
    def needs_state(self) -> bool:
        """Whether training needs the result of :meth:`init_state`."""
        return self.penalises or self.rehearses or self.proximal

    def check(self, setup: FinetuneSetup) -> None:
        """Refuse combinations that this method does not support, before anything is trained.

        Raises:
            UserError: the combination is not supported.
        """
        if self.needs_state and not setup.pretrained:
            raise UserError(
                f"retention.name is '{option_name(self)}', and the strategy starts without pre-training, which leaves "
                "nothing to keep; allowed with it: none"
            )
        objective = setup.objective
        if self.needs_source and objective is None:
            raise no_source(self)
        if objective is not None and not self.supports(objective):
            fitting = _options(lambda method: method.supports(objective))
            raise UserError(
                f"retention.name is '{option_name(self)}', which {self.requirement}, and this pre-training has no such"
                f"; allowed with it: {fitting}"
            )

    @classmethod
    def supports(cls, objective: Objective) -> bool:  # noqa: ARG003
        """Tell whether this method works after pre-training with an objective."""
        return True

    def init_state(self, task: SourceTask) -> RetentionState:
        """Return the state of this method, computed once on the host after the source task has been learned."""
        return {}

    def update(self, state: RetentionState, task: SourceTask) -> RetentionState:
        """Return the state after one more task of a sequence; the default depends on the last task only.

        Args:
            state: after the previous task.
            task: the task that has just been learned.
        """
        return self.init_state(task)

    def penalty(self, params: Params, state: RetentionState) -> Float[Array, ""]:
        """Return the weighted penalty that is added to the loss, of the trainable parameters."""
        return jnp.zeros(())

    def loss(self, source: NetworkFns, x: Float[Array, "N ..."], state: RetentionState, key: Array) -> Float[Array, ""]:
        """Return a weighted loss that is added to the batch's.

        Args:
            source: the network under training with the source task's head, in evaluation mode.
            x: the batch's inputs.
            state: of this method.
            key: random key of this update.
        """
        return jnp.zeros(())

    def after_update(self, params: Params, state: RetentionState, lr: Rate) -> Params:
        """Return the trainable parameters after the step that follows the optimizer's update.

        Args:
            params: the trainable parameters after the update.
            state: of this method.
            lr: the update's learning rate, one or one for each path.
        """
        return params


def no_source(method: Retention) -> UserError:
    """Return the error of a method that needs rows of the source task if there are none."""
    return UserError(
        f"retention.name is '{option_name(method)}', which needs rows of the source task, and there is a checkpoint "
        f"only; allowed without them: {_options(lambda other: not other.needs_source)}"
    )


def _options(fits: Callable[[Any], bool]) -> str:
    return listed([name for name in option_names("retention") if fits(option_class("retention", name))])


def source_model(task: SourceTask) -> SourceModel:
    """Return the source task's model; traced settings (dropout) are left out, as inference does not use them."""
    return SourceModel(static_part(task.model), task.outputs, task.objective)


def source_rows(method: Retention, task: SourceTask) -> Split:
    """Return the source task's rows; raises :class:`UserError` if there are none."""
    if task.source is None:
        raise no_source(method)
    return task.source


def anchors(task: SourceTask) -> Params:
    """Return the parameters that fine-tuning starts from, without a replaced head and without batch statistics."""
    replaced = task.head if task.new_head else frozenset()
    return {path: leaf for path, leaf in task.params.items() if path not in replaced and not is_statistic(path)}


def distance(params: Params, anchor: Params, weights: Mapping[str, Any] | None = None) -> Float[Array, ""]:
    """Return ``1/2 sum weight * (w - anchor)**2`` over the common paths, in float32; weights of 1 if ``None``."""
    total = jnp.zeros(())
    for path, leaf in params.items():
        if path in anchor:
            difference = leaf.astype(jnp.float32) - anchor[path]
            total += _half_square(difference, jnp.ones(()) if weights is None else weights[path])
    return total


@jax.custom_vjp
def _half_square(difference: Array, weight: Array) -> Float[Array, ""]:
    """Return ``1/2 sum weight * difference**2``; its gradient is ``weight * difference``.

    A product with ones, as XLA's sum of a whole array on a CPU is not vectorised; explicit, the gradient is not one.
    """
    squares = jnp.atleast_1d(weight * difference * difference)
    rows = jnp.matmul(squares, jnp.ones(squares.shape[-1]), precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(rows) / 2


def _half_square_forward(difference: Array, weight: Array) -> tuple[Array, Array]:
    return _half_square(difference, weight), weight * difference


def _half_square_backward(slope: Array, grad: Array) -> tuple[Array, None]:
    return grad * slope, None  # weights are not differentiated


_half_square.defvjp(_half_square_forward, _half_square_backward)
