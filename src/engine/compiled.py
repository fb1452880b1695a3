"""A jitted function that keeps its compiled programs, so that what a program costs can be read off it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


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

    def flops(self, *args: Any) -> float:
        """Return XLA's count of floating-point operations; the body of a loop counts once, however often it runs."""
        cost = self.program(*args).cost_analysis()
        return float(cost.get("flops", float("nan"))) if isinstance(cost, dict) else float("nan")


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
