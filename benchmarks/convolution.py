"""How long a convolution of 3 x 3 and its gradients take inside a compiled loop, in the forms that could be chosen.

python benchmarks/convolution.py

Of a processor: inside a loop XLA has quick kernels for one order of axes only (``src/models/convolution.py``), and it
has two libraries of them, YNNPACK, which it takes by itself, and Eigen (``src/engine/compiled.py``).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _timing import machine, table, timed

from src.engine.compiled import compiler_options
from src.models import convolution

SIZES = ((16, 32, 64), (64, 32, 64), (128, 16, 64), (256, 8, 64), (512, 4, 64))  # channels, side, images
SLOW = 20  # channels above which XLA's own gradients are left out: they take seconds
TURNS, UPDATES = 5, 2
CLOCKS = ("wall", "processor")
PADS = ((1, 1), (1, 1))
YNNPACK = {"xla_backend_optimization_level": 2}  # what XLA takes where nothing is said of it
FORMS: dict[str, tuple[Callable[..., Any], dict[str, Any] | None]] = {
    "gradients as XLA derives them": (convolution.canonical, YNNPACK),
    "in canonical form": (convolution.both_ways, YNNPACK),
    "the same, by Eigen's kernels (chosen)": (convolution.both_ways, compiler_options()),
}


def compiled(
    taken: Callable[..., Any], options: dict[str, Any] | None, channels: int, side: int, images: int
) -> tuple[Callable[[], object], float]:
    """Return what makes some updates of images and kernel in a loop, and the processor's seconds of compiling it."""
    x = jax.random.normal(jax.random.key(0), (images, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels)) * 0.05

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.mean(taken(x, kernel, (1, 1), PADS) ** 2)

    def update(_: object, both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(lambda value, slope: value - 0.01 * slope, both, jax.grad(loss, (0, 1))(*both))

    lowered = jax.jit(lambda *both: jax.lax.fori_loop(0, UPDATES, update, both)).lower(x, kernel)
    start = time.process_time()
    program = lowered.compile(compiler_options=options)
    return lambda: program(x, kernel), time.process_time() - start


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(machine())
    rows = []
    for channels, side, images in SIZES:
        runs = {
            name: compiled(*form, channels, side, images)
            for name, form in FORMS.items()
            if form[0] is not convolution.canonical or channels <= SLOW
        }
        turns = [{name: timed(run, UPDATES) for name, (run, _) in runs.items()} for _ in range(TURNS + 1)][1:]
        for name, (_, compiling) in runs.items():
            wall, processor = (1e3 * statistics.median(turn[name][clock] for turn in turns) for clock in CLOCKS)
            own = statistics.median(turn[name]["processor"] / turn[list(FORMS)[-1]]["processor"] for turn in turns)
            size = f"{channels} at {side} x {side}, {images} images"
            rows.append((size, name, f"{wall:.1f}", f"{processor:.1f}", f"{own:.2f}", f"{compiling:.2f}"))
    header = ("channels, forward and backward", "form", "ms", "processor ms", "of the chosen", "compiling, s")
    table(header, rows)


if __name__ == "__main__":
    main()
