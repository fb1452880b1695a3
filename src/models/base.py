"""Base class of the models: initial parameters, the forward pass, and the groups of layers from bottom to top."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from ..config.hparams import hparam
from ..errors import UserError
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
    """Options of a forward pass; the defaults are inference."""

    start: int = 0  # the first group that runs; its inputs are the outputs of the group before it
    stop: int | None = None  # the group before which the pass ends; None: the end of the model
    mutable: frozenset[str] = frozenset()  # paths of the batch statistics that the pass updates
    key: Any = None  # for dropout; None: no dropout
    adapter_params: frozenset[str] = frozenset()  # last parts of the paths of a strategy's adapter parameters
    wrap_call: WrapCall | None = None  # how adapter parameters change a module's output
    # Which outputs are computed; None: all. For texts, the tokens, int (P,) into the batch's N * L; for images, the
    # patches that the encoder sees, int (N, V).
    positions: Any = None


PLAIN = ApplyOptions()


def is_statistic(path: str) -> bool:
    """Return whether a flat path is a running mean or variance of batch normalisation, which is no parameter."""
    return path.rsplit("/", 1)[-1] in ("mean", "var")


@dataclass(frozen=True)
class Model:
    """Base of every model. A model implements :meth:`module` and :meth:`groups`."""

    input_dtype: ClassVar[Any] = jnp.float32  # of the module's inputs; integers for tokens

    def module(self, outputs: int) -> nn.Module:
        """Return the linen module with ``outputs`` output units.

        Its ``__call__(x, start=0, stop=None)`` runs the groups ``start`` to ``stop - 1``, so that the outputs of frozen
        bottom groups can be computed once and cached.
        """
        raise TypeError(f"{type(self).__name__} does not define module()")

    def groups(self) -> tuple[tuple[str, str], ...]:
        """Return ``(name, regular expression on whole paths)`` from bottom to top; the last is the head."""
        raise TypeError(f"{type(self).__name__} does not define groups()")

    @property
    def stochastic(self) -> bool:
        """Whether a training pass is random (dropout)."""
        return any(getattr(self, name, None) is not None for name in ("dropout", "head_dropout"))

    def adapter_points(self) -> tuple[tuple[str, ...], ...]:
        """Return, block by block from the bottom, the modules that an adapter may follow, innermost first.

        Houlsby adapters follow every one of them, Pfeiffer adapters the last one of each block.
        """
        raise TypeError(f"{type(self).__name__} does not define adapter_points()")

    def tied_params(self) -> str:
        """Return a regular expression for parameters of lower groups that the head uses too, such as a tied embedding.

        A pass that starts above these groups still needs them. The default matches nothing.
        """
        return "(?!)"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint's parameters replace the initial ones (see ``src/checkpoints/huggingface.py``)."""
        return False

    def eval_batch_size(self, features: tuple[int, ...]) -> int | None:
        """Return the number of rows of a batch in evaluation, by the shape of a row; ``None``: all rows."""
        return None

    def with_head(self, kind: str) -> Model:
        """Return the model with the head for a kind of task, if that differs from the configured head."""
        return self

    def init(self, key: PRNGKeyArray | Array, features: tuple[int, ...], outputs: int) -> Params:
        """Return initial parameters for inputs of shape ``(N, *features)``; only the shape matters."""
        with nn.intercept_methods(partial(_intercept, PLAIN, {})):
            variables = self.module(outputs).init(key, jnp.zeros((1, *features), self.input_dtype))
        flat: dict[str, Any] = {}
        for part in variables.values():
            flat |= flatten_dict(part, sep="/")
        return flat

    def apply(self, params: Params, x: Float[Array, "N ..."], outputs: int, options: ApplyOptions = PLAIN) -> Array:
        """Return the network's outputs for a batch."""
        return self.forward(params, x, outputs, options)[0]

    def forward(
        self, params: Params, x: Float[Array, "N ..."], outputs: int, options: ApplyOptions = PLAIN
    ) -> tuple[Float[Array, "N outputs"], Params]:
        """Return the outputs for a batch, and the updated batch statistics named in ``options.mutable``."""
        adapters: dict[str, dict[str, Array]] = {}
        collections: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
        for path, leaf in params.items():
            module, _, name = path.rpartition("/")
            if name in options.adapter_params:
                adapters.setdefault(module, {})[name] = leaf
            else:
                collections["batch_stats" if is_statistic(path) else "params"][path] = leaf
        variables = {name: unflatten_dict(part, sep="/") for name, part in collections.items()}
        rngs = {} if options.key is None else {"dropout": options.key}
        with nn.intercept_methods(partial(_intercept, options, adapters)):
            outputs_, changed = self.module(outputs).apply(
                variables,
                x,
                options.start,
                options.stop,
                *(() if options.positions is None else (options.positions,)),
                rngs=rngs,
                mutable=["batch_stats"] if options.mutable else [],
            )
        stats = flatten_dict(changed.get("batch_stats", {}), sep="/")
        return outputs_, {path: stats[path] for path in options.mutable if path in stats}  # type: ignore[return-value]


def _intercept(
    options: ApplyOptions, adapters: Mapping[str, Mapping[str, Array]], call: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    """Intercept a module's call: select batch statistics, and apply ``options.wrap_call``."""
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    path = "/".join(context.module.path)
    if isinstance(context.module, nn.BatchNorm):
        kwargs = kwargs | {"use_running_average": f"{path}/mean" not in options.mutable}
    if path not in adapters or options.wrap_call is None:
        return call(*args, **kwargs)
    x, *rest = args
    key = None if options.key is None else jax.random.fold_in(options.key, sorted(adapters).index(path))
    return options.wrap_call(ModuleCall(lambda x: call(x, *rest, **kwargs), adapters[path], context.module, x, key))


@dataclass(frozen=True)
class CheckpointConfig:
    """What the JSON files of a checkpoint say; ``src/checkpoints/huggingface.py`` reads them (``load_config``).

    Attributes:
        network: the sizes in ``config.json``, a ``TransformerConfig``, ``ResNetConfig`` or ``ViTConfig``.
        scaling: the mean and standard deviation of pixels in ``preprocessor_config.json``; ``None``: not needed.
    """

    network: Any
    scaling: Any = None


@dataclass(frozen=True)
class Checkpointed(Model):
    """``checkpoint``: a folder or a name on the Hugging Face Hub; ``None``: there is none."""

    architecture: ClassVar[str]  # `model_type` in config.json

    checkpoint: str | None = hparam(None)
    checkpoint_config: Any = field(default=None, repr=False, metadata={"setting": False})

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint."""
        return self.checkpoint is not None

    def loaded_config(self) -> CheckpointConfig | None:
        """Return what the checkpoint's files say; ``None`` without a checkpoint."""
        if self.checkpoint is not None and self.checkpoint_config is None:
            raise TypeError(f"{type(self).__name__} has a checkpoint whose config.json is not read: call load_config")
        return self.checkpoint_config

    def check_matches(self, known: Mapping[str, Any]) -> None:
        """Refuse settings that are neither null nor the checkpoint's values, ``known`` by the names of the settings."""
        for name, expected in known.items():
            value = getattr(self, name)
            value = getattr(value, "name", value)
            if value not in (None, expected):
                raise UserError(
                    f"model.{name} is {value}, and the checkpoint '{self.checkpoint}' has {expected}; "
                    "allowed: null, which takes the checkpoint's"
                )


def block_groups(count: int, layer: str = "block") -> tuple[tuple[str, str], ...]:
    """Return one group for each of ``count`` blocks, from the bottom; ``layer`` is the prefix of their modules."""
    return tuple((f"block_{i}", f"{layer}_{i}/.*") for i in range(count))


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two arrays hold the same bytes: NaN equals NaN, 0 differs from -0. ``None``: a missing array."""
    if one is None or other is None or one is other:
        return one is other
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def head_paths(model: Model, paths: Iterable[str]) -> frozenset[str]:
    """Return those of the paths that belong to the model's head, its last group."""
    expression = re.compile(model.groups()[-1][1])
    return frozenset(filter(expression.fullmatch, paths))


def new_head(model: Model, params: Params, fresh: Params) -> Params:
    """Return ``params`` with the head of ``fresh``, and with what else they lack, such as a pooler."""
    head = head_paths(model, fresh)
    return {path: fresh[path] if path in head else params.get(path, fresh[path]) for path in fresh}
