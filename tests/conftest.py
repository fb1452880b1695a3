"""The environment of all tests: no network, no key, a separate compilation cache, and strict shapes."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Set before JAX and W&B are imported, and inherited by every command line that a test starts. The cache is kept between
# test runs, because compiling takes most of the suite's time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"thaw-tests-jax-{os.getuid()}"))
# As `training/compiled.py` sets for its programs: at level 3, LLVM takes seconds for every shape.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=2 --xla_cpu_experimental_ynn_fusion_type=")
os.environ["WANDB_MODE"] = "offline"
os.environ["NO_COLOR"] = "1"
# A shell makes a command that it starts in the background ignore SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"):
    os.environ.pop(name, None)

import jax
import pytest

from src.training.compiled import prepare_jax
from src.training.vectorize import clear_programs

jax.config.update("jax_numpy_rank_promotion", "raise")
prepare_jax()


@pytest.fixture(scope="module", autouse=True)
def release_programs() -> Iterator[None]:
    """Release the programs that a file's tests compiled, so that a worker does not hold those of all files."""
    yield
    clear_programs()
