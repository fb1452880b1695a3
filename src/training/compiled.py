"""A jitted function that keeps its compiled programs, so that what a program costs can be read off it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .loop_flops import repeated_flops


class Cost(NamedTuple):
    """What a compiled program costs by XLA's own account."""

    flops: float  # floating-point operations; a loop of unknown length counts as its body, once
    peak_bytes: int  # arguments, results and temporary buffers together, what is overwritten in place counted once
    optimizer_bytes: int = 0  # of the optimizer's state, where the program is an update


class Compiled:
    """``jax.jit`` with the executables at hand, one for each structure of shapes and dtypes.

    ``jax.jit`` keeps its executables to itself; asking it for their cost would compile everything twice.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def program(self, *args: Any) -> jax.stages.Compiled:
        """Return the executable for arguments of these shapes and dtypes (arrays only)."""
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if signature not in self._programs:
            self._programs[signature] = self._jitted.lower(*args).compile(compiler_options=compiler_options())
        return self._programs[signature]

    def __call__(self, *args: Any) -> Any:
        """Run; the result may still be computing on the device."""
        return self.program(*args)(*args)

    def cost(self, *args: Any) -> Cost:
        """Return what XLA says that the program costs."""
        program = self.program(*args)
        found, memory = program.cost_analysis(), program.memory_analysis()
        flops = float(found.get("flops", float("nan"))) if isinstance(found, dict) else float("nan")
        flops += repeated_flops(program.as_text() or "")
        sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        peak = sum(getattr(memory, name) for name in sizes) - getattr(memory, "alias_size_in_bytes", 0)
        return Cost(flops, peak)


def compiler_options() -> dict[str, Any] | None:
    """Return what is asked of XLA on a processor: LLVM's level 2, Eigen's kernels for all products, and real barriers.

    Level 3 writes out each round of short loops, so that a draw of 3 x 3 x 16 x 16 numbers took it 4 s, and a small
    ResNet-18's initial parameters 25 s. Updates are as fast either way: their time is in products, compiled beforehand.
    Those of YNNPACK, which XLA would take (jax 0.10), use one core for convolutions of 32 or 64 channels and need more
    memory. And XLA takes ``jax.lax.optimization_barrier`` away before it fuses, unless that pass is left out: what
    stood before one was computed again, place by place, in what follows (``docs/performance.md``).
    """
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_backend_optimization_level": 2,
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


MAPPINGS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def crowded() -> bool:
    """Tell whether this process has used half of the memory mappings that Linux gives it (65,530, unless set).

    Each kernel of a compiled program takes three; a small ResNet's programs together take some 8,000. When there are no
    more, the compiler ends the process without a word.
    """
    try:
        with MAPPINGS.open("rb") as lines:
            return sum(1 for _ in lines) > int(LIMIT.read_text()) // 2
    except OSError:  # another system, without such a limit
        return False


def prepare_jax() -> None:
    """Keep compiled programs on disk for the next process, small ones too; leave JAX's own remarks out of the log.

    The folder is ``JAX_COMPILATION_CACHE_DIR``, or ``thaw/jax`` in the user's cache folder. Whoever can write there can
    run code in this process, so it is not put in a shared place.
    """
    logging.getLogger("jax").setLevel(logging.WARNING)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update(
        "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "thaw" / "jax")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
