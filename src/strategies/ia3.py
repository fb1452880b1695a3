"""``strategy=ia3``: trained vectors scale the activations of each target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ..config.hparams import hparam
from ..errors import UserError
from ..models.base import Model, ModuleCall
from ..types import Params
from .injection import Injection, along_last, module_of, target_kernels


@dataclass(frozen=True)
class Ia3(Injection):
    """Infused adapter by inhibiting and amplifying inner activations (Liu et al., arXiv 2205.05638, section 3.3).

    ``targets``: kernels whose outputs, bias included, are scaled (keys and values in the paper). ``feedforward``:
    kernels whose inputs are scaled instead (the second layer of a feed-forward block). Both are groups or expressions,
    as for LoRA. The vectors start at one, so fine-tuning starts from the bits of the pre-trained model. Weight decay
    does not act on them.
    """

    adapter_params: ClassVar[tuple[str, ...]] = ("ia3", "ia3_input")
    targets: tuple[str, ...] = hparam(("trunk",))
    feedforward: tuple[str, ...] = hparam(())

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return ``ia3 (out,)`` or ``ia3_input (in,)`` beside each target kernel, all ones."""
        if not (self.targets or self.feedforward):
            raise UserError("strategy.targets is empty: there is nothing to adapt; allowed: groups or expressions")
        groups = model.groups()
        inputs = target_kernels("strategy.feedforward", self.feedforward, params, groups)
        outputs = target_kernels("strategy.targets", self.targets, params, groups)
        scales = dict.fromkeys(outputs, ("ia3", -1)) | dict.fromkeys(inputs, ("ia3_input", -2))
        return {
            f"{module_of(path)}/{name}": jnp.ones(params[path].shape[axis], params[path].dtype)
            for path, (name, axis) in scales.items()
        }

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return ``module(x * ia3_input)`` or ``module(x) * ia3``."""
        if "ia3_input" in ctx.params:
            return ctx.call(ctx.x * along_last(ctx.params["ia3_input"], ctx.x))
        y = ctx.call(ctx.x)
        return y * along_last(ctx.params["ia3"], y)
