"""``strategy=dora``: weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353, equation 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..models.base import Model, ModuleCall
from ..types import Params
from .injection import (
    along_last,
    module_of,
)
from .lora import Lora


@dataclass(frozen=True)
class Dora(Lora):
    """Weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353, equation 5).

    ``W' = m (W0 + s A B) / ||W0 + s A B||``, with the norm of each output's column; ``m`` starts as the column norms
    of ``W0``. The norm is a constant in the backward pass (section 4.3). The settings are those of ``lora``.
    """

    adapter_params: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "dora_magnitude")

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return LoRA's parameters and ``dora_magnitude (out,)``."""
        added = super().prepare(key, params, model)
        modules = [module_of(path) for path in added if path.endswith("/lora_a")]
        return added | {f"{path}/dora_magnitude": _column_norms(_matrix(params[f"{path}/kernel"])) for path in modules}

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return ``g (x W0 + s (dropout(x) A) B) + bias`` with ``g = m / ||W0 + s A B||``."""
        own = ctx.module.variables["params"]
        y = ctx.call(ctx.x)
        norms = jax.lax.stop_gradient(self._adapted_norms(_matrix(own["kernel"]), ctx.params))
        # A column of zeros stays zero instead of becoming 0 / 0.
        gain = along_last(ctx.params["dora_magnitude"] / jnp.where(norms > 0, norms, 1.0), y)
        linear = y - along_last(own["bias"], y) if "bias" in own else y
        # With g - 1 the result is y to the bit where g is 1.
        return y + (gain - 1) * linear + gain * self.correction(ctx)

    def _adapted_norms(self, kernel: Float[Array, "I O"], leaves: Mapping[str, Array]) -> Float[Array, " O"]:
        """Return the columns' norms of ``W + s A B`` without forming the product.

        ``||w + s A b||^2 = ||w||^2 + 2 s (A^T w) . b + s^2 b . (A^T A) b`` for each column.
        """
        a, b, s = _matrix(leaves["lora_a"]), _matrix(leaves["lora_b"]), self.scale(leaves)
        cross = jnp.sum((a.T @ kernel) * b, axis=0)
        square = jnp.sum(((a.T @ a) @ b) * b, axis=0)
        return _column_norms(kernel, 2 * s * cross + s**2 * square)


def _matrix(leaf: Float[Array, "... I O"]) -> Float[Array, "rows O"]:
    """Return a kernel as the matrix that acts on (patches of) its input, in at least float32."""
    return leaf.reshape(-1, leaf.shape[-1]).astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _column_norms(kernel: Float[Array, "I O"], change: Any = 0.0) -> Float[Array, " O"]:
    """Return the columns' norms, with ``change`` added to their squares."""
    return jnp.sqrt(jnp.maximum(jnp.sum(kernel**2, axis=0) + change, 0.0))
