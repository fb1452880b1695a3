"""A jitted function that keeps its executables, so that their cost and compile time can be reported."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax


class Cost(NamedTuple):
    """The cost of a compiled program by XLA's own analysis."""

    flops: float  # floating-point operations; the body of a loop counts once
    peak_bytes: int  # arguments, results and temporary buffers together; a donated buffer counts once
    optimizer_bytes: int = 0  # of the optimizer state, where the program is an update


class Compiled:
    """``jax.jit`` that keeps its executables, one for each structure of shapes and dtypes.

    ``jax.jit`` does not hand its executables out, and asking it for their cost would compile everything twice.
    """

    seconds: ClassVar[float] = 0.0  # spent on tracing and compiling in this process, all functions together

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> None:
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def program(self, *args: Any) -> jax.stages.Compiled:
        """Return the executable for arguments of these shapes and dtypes (arrays only)."""
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if signature not in self._programs:
            started = time.perf_counter()
            self._programs[signature] = self._jitted.lower(*args).compile(compiler_options=compiler_options())
            Compiled.seconds += time.perf_counter() - started
        return self._programs[signature]

    def __call__(self, *args: Any) -> Any:
        """Run the program; the result may still be under computation when this returns."""
        return self.program(*args)(*args)

    def cost(self, *args: Any) -> Cost:
        """Return the program's cost by XLA's analysis."""
        program = self.program(*args)
        found, memory = program.cost_analysis(), program.memory_analysis()
        flops = float(found.get("flops", float("nan"))) if isinstance(found, dict) else float("nan")
        sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        peak = sum(getattr(memory, name) for name in sizes) - getattr(memory, "alias_size_in_bytes", 0)
        return Cost(flops, peak)


def compiler_options() -> dict[str, Any] | None:
    """Return the XLA options for processors; ``None`` on other backends.

    LLVM at level 2: level 3 unrolls short loops, which took 4 s for one draw of 3 x 3 x 16 x 16 numbers and 25 s for a
    small ResNet-18's initial parameters; updates are as fast at level 2. No YNNPACK (XLA's default in jax 0.10): it
    runs convolutions of 32 or 64 channels on one core. And ``jax.lax.optimization_barrier`` is kept: by default XLA
    removes it before fusion and recomputes what precedes it (``docs/performance.md``).
    """
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_backend_optimization_level": 2,
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


MAPS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def memory_maps_low() -> bool:
    """Return whether this process has used half of its memory mappings (Linux allows 65,530 by default).

    Each kernel of a compiled program takes three; the programs of a small ResNet take some 8,000. When none are left,
    the compiler ends the process without a message.
    """
    try:
        with MAPS.open("rb") as lines:
            return sum(1 for _ in lines) > int(LIMIT.read_text()) // 2
    except OSError:  # not Linux: no such limit
        return False


def prepare_jax() -> None:
    """Keep compiled programs on disk for the next process, small ones too, and silence JAX's own log messages.

    The folder is ``JAX_COMPILATION_CACHE_DIR``, or ``thaw/jax`` in the user's cache folder. Whoever can write there can
    run code in this process, so it is not a shared folder.
    """
    logging.getLogger("jax").setLevel(logging.WARNING)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update(
        "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(home / "thaw" / "jax")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
