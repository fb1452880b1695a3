"""What every test runs under: no network, no key, a compilation cache of its own, and strict shapes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Set before anything imports JAX or W&B, and inherited by every command line that a test starts. The cache is kept
# between test runs: compiling is most of the suite's time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"thaw-tests-jax-{os.getuid()}"))
# As the engine asks for its own programs, barriers aside: at level 3, LLVM takes seconds for each shape that is drawn.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=2 --xla_cpu_experimental_ynn_fusion_type=")
os.environ["WANDB_MODE"] = "offline"
os.environ["NO_COLOR"] = "1"
for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"):
    os.environ.pop(name, None)

import jax
import pytest

from src.training.compiled import prepare_jax
from src.training.vectorize import clear_programs

jax.config.update("jax_numpy_rank_promotion", "raise")
prepare_jax()


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Let go of what a file's tests compiled, so that a worker does not hold the programs of all of them."""
    yield
    clear_programs()
