"""Time 3 x 3 convolutions and batch normalisation, forward and backward, inside a compiled loop on a CPU.

python benchmarks/convolution.py

It compares ``src/models/cpu_kernels.py`` with what XLA derives, and XLA's two kernel libraries: YNNPACK, its default,
and Eigen, which ``src/training/compiled.py`` selects.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from _timing import machine, table, timed
from flax import linen as nn

from src.models.cpu_kernels import BatchNorm, conv_nhwc, conv_nhwc_vjp
from src.training.compiled import compiler_options

SIZES = ((16, 32, 64), (64, 32, 64), (128, 16, 64), (256, 8, 64), (512, 4, 64))  # channels, side, images
SLOW = 20  # channels above which XLA's own gradients are left out: they take seconds
TURNS, UPDATES = 5, 2
CLOCKS = ("wall", "processor")
PADS = ((1, 1), (1, 1))
YNNPACK = {"xla_backend_optimization_level": 2}  # what XLA takes where nothing is said of it
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any] | None]] = {
    "gradients as XLA derives them": (conv_nhwc, YNNPACK),
    "in canonical form": (conv_nhwc_vjp, YNNPACK),
    "the same, by Eigen's kernels (chosen)": (conv_nhwc_vjp, compiler_options()),
}
NORMS = {"nn.BatchNorm": nn.BatchNorm(momentum=0.9), "sums as products (chosen)": BatchNorm()}


def compiled(
    loss: Callable[..., jax.Array], options: dict[str, Any] | None, values: Sequence[jax.Array]
) -> tuple[Callable[[], object], float]:
    """Return what makes some updates of the values in a loop, and the processor's seconds of compiling it."""
    every = tuple(range(len(values)))

    def update(_: object, now: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return jax.tree.map(lambda value, slope: value - 0.01 * slope, now, jax.grad(loss, every)(*now))

    lowered = jax.jit(lambda *now: jax.lax.fori_loop(0, UPDATES, update, now)).lower(*values)
    start = time.process_time()
    program = lowered.compile(compiler_options=options)
    return lambda: program(*values), time.process_time() - start


def convolved(taken: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Return a loss of images and kernel."""
    return lambda x, kernel: jnp.mean(taken(x, kernel, (1, 1), PADS) ** 2)


def normalised(module: nn.BatchNorm) -> Callable[..., jax.Array]:
    """Return a loss of images, scale and shift, with a ReLU."""

    def loss(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        kept = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": kept}
        y, _ = module.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        return jnp.mean(nn.relu(y) ** 3)

    return loss


def compare(size: str, forms: Mapping[str, tuple[Callable[[], object], float]]) -> list[tuple[str, ...]]:
    """Return a line for each form, timed by turns; the last form is the chosen one."""
    turns = [{name: timed(run, UPDATES) for name, (run, _) in forms.items()} for _ in range(TURNS + 1)][1:]
    rows = []
    for name, (_, compiling) in forms.items():
        wall, processor = (1e3 * statistics.median(turn[name][clock] for turn in turns) for clock in CLOCKS)
        own = statistics.median(turn[name]["processor"] / turn[list(forms)[-1]]["processor"] for turn in turns)
        rows.append((size, name, f"{wall:.1f}", f"{processor:.1f}", f"{own:.2f}", f"{compiling:.2f}"))
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(machine())
    convolutions, normalisations = [], []
    for channels, side, images in SIZES:
        x = jax.random.normal(jax.random.key(0), (images, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels)) * 0.05
        size = f"{channels} at {side} x {side}, {images} images"
        forms = {
            name: compiled(convolved(taken), options, (x, kernel))
            for name, (taken, options) in FORMS.items()
            if taken is not conv_nhwc or channels <= SLOW
        }
        convolutions += compare(size, forms)
        own = (x, jnp.ones(channels), jnp.zeros(channels))
        norms = {name: compiled(normalised(module), compiler_options(), own) for name, module in NORMS.items()}
        normalisations += compare(size, norms)
    for what, rows in (("convolution", convolutions), ("normalisation and ReLU", normalisations)):
        header = (f"{what}, forward and backward", "form", "ms", "processor ms", "of the chosen", "compiling, s")
        table(header, rows)


if __name__ == "__main__":
    main()
