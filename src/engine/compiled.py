"""A jitted function that keeps its compiled programs, so that what a program costs can be read off it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from src.engine.loop_flops import repeated_flops


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
            self._programs[signature] = self._jitted.lower(*args).compile()
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
