"""What the recipe asks of a model: initial parameters, outputs, and its groups from bottom to top."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from ..types import Params


class ModuleCall(NamedTuple):
    """One call of a module that has adapter parameters beside its own."""

    call: Callable[[Array], Array]  # the module itself, from its input to its output
    params: Mapping[str, Array]  # the adapter parameters, by the last part of their paths
    module: nn.Module  # for its attributes and its own parameters, `module.variables["params"]`
    x: Array  # the module's input
    key: Array | None  # for dropout; None outside training


WrapCall = Callable[[ModuleCall], Array]  # returns the output that replaces the module's own


class ApplyOptions(NamedTuple):
    """How a pass differs from plain inference."""

    start: int = 0  # the first group that is run: below it, the inputs are what the group before it returned
    stop: int | None = None  # the first group that is not run any more; None: all are
    moving: frozenset[str] = frozenset()  # batch statistics that the pass updates; all others are used as they are
    key: Any = None  # of dropout; None: there is none
    adapter_params: frozenset[str] = (
        frozenset()
    )  # names of leaves that a strategy added beside a module's own parameters
    wrap_call: WrapCall | None = None  # what these leaves do
    # Places that there are outputs of; None: all. Of texts, int (P,) of all of a batch's that are asked for; of images,
    # the patches of each that are looked at, int (N, V).
    places: Any = None


PLAIN = ApplyOptions()


def is_statistic(path: str) -> bool:
    """Tell whether a flat path is a batch statistic: no parameter, but what batch normalisation has seen."""
    return path.rsplit("/", 1)[-1] in ("mean", "var")


@dataclass(frozen=True)
class Model:
    """Base of every model: a file says how to make its module and what its groups are."""

    input_dtype: ClassVar[Any] = jnp.float32  # of what the module takes: whole numbers for tokens

    def module(self, outputs: int) -> nn.Module:
        """Return the linen module with ``outputs`` output units.

        Its ``__call__(x, start=0, stop=None)`` runs the groups ``start`` to ``stop - 1``: what a frozen bottom returns
        can then be computed once and kept.
        """
        raise TypeError(f"{type(self).__name__} does not say how to make its module")

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``(name, regular expression on whole paths)`` from bottom to top; the last is the head."""
        raise TypeError(f"{type(self).__name__} does not name its groups")

    @property
    def stochastic(self) -> bool:
        """Whether a training pass differs from inference by chance (dropout)."""
        return getattr(self, "dropout", None) is not None

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return, block by block from the bottom, the modules after which an adapter may stand, innermost first.

        An adapter after every one of a block is Houlsby's arrangement, after its last one Pfeiffer's.
        """
        raise TypeError(f"{type(self).__name__} does not say where adapters may stand")

    def shared(self) -> str:
        """Return a regular expression for the leaves of lower groups that the head uses too: a tied embedding.

        They stay at hand where what lies below the head is cut off. The default matches nothing.
        """
        return "(?!)"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint's parameters replace the initial ones (see ``src/checkpoints/huggingface.py``)."""
        return False

    def rows_at_once(self, features: tuple[int, ...]) -> int | None:
        """Return how many rows of these features are evaluated side by side; ``None``: all there are."""
        return None

    def with_head(self, kind: str) -> Model:
        """Return the model with the head that a kind of task needs, where that is not the configured one's."""
        return self

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters for inputs of shape ``(N, *features)``; only the shape matters."""
        with nn.intercept_methods(partial(_intercept, PLAIN, {})):
            variables = self.module(outputs).init(key, jnp.zeros((1, *features), self.input_dtype))
        flat: dict[str, Any] = {}
        for part in variables.values():
            flat |= flatten_dict(part, sep="/")
        return flat

    def apply(self, params: Params, x: Float[Array, "N ..."], outputs: int, how: ApplyOptions = PLAIN) -> Array:
        """Return the network's outputs for a batch."""
        return self.forward(params, x, outputs, how)[0]

    def forward(
        self, params: Params, x: Float[Array, "N ..."], outputs: int, how: ApplyOptions = PLAIN
    ) -> tuple[Float[Array, "N outputs"], Params]:
        """Return the outputs for a batch, and the new values of the statistics in ``how.moving``."""
        beside: dict[str, dict[str, Array]] = {}
        collections: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
        for path, leaf in params.items():
            module, _, name = path.rpartition("/")
            if name in how.adapter_params:
                beside.setdefault(module, {})[name] = leaf
            else:
                collections["batch_stats" if is_statistic(path) else "params"][path] = leaf
        variables = {name: unflatten_dict(part, sep="/") for name, part in collections.items()}
        rngs = {} if how.key is None else {"dropout": how.key}
        with nn.intercept_methods(partial(_intercept, how, beside)):
            outputs_, changed = self.module(outputs).apply(
                variables,
                x,
                how.start,
                how.stop,
                *(() if how.places is None else (how.places,)),
                rngs=rngs,
                mutable=["batch_stats"] if how.moving else [],
            )
        seen = flatten_dict(changed.get("batch_stats", {}), sep="/")
        return outputs_, {path: seen[path] for path in how.moving if path in seen}  # type: ignore[return-value]


def _intercept(
    how: ApplyOptions, beside: Mapping[str, Mapping[str, Array]], call: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    """Stand between a module and its caller: decide on batch statistics, and let injected parameters act."""
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    path = "/".join(context.module.path)
    if isinstance(context.module, nn.BatchNorm):
        kwargs = kwargs | {"use_running_average": f"{path}/mean" not in how.moving}
    if path not in beside or how.wrap_call is None:
        return call(*args, **kwargs)
    x, *rest = args
    key = None if how.key is None else jax.random.fold_in(how.key, sorted(beside).index(path))
    return how.wrap_call(ModuleCall(lambda x: call(x, *rest, **kwargs), beside[path], context.module, x, key))


def same_bits(one: Any, other: Any) -> bool:
    """Tell whether two leaves hold the same bytes: NaN equals itself, 0 is not -0. ``None``: one that is not there."""
    if one is None or other is None or one is other:
        return one is other
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def head_paths(model: Model, paths: Iterable[str]) -> frozenset[str]:
    """Return those of the paths that belong to the model's head, its last group."""
    expression = re.compile(model.groups()[-1][1])
    return frozenset(filter(expression.fullmatch, paths))


def new_head(model: Model, params: Params, fresh: Params) -> Params:
    """Return ``params`` with the head taken from ``fresh``: what a change of label space asks for.

    So is what the source's network had no use for, such as a pooler below the head.
    """
    head = head_paths(model, fresh)
    return {path: fresh[path] if path in head else params.get(path, fresh[path]) for path in fresh}
