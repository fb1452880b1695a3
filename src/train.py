"""The command line: ``python -m src.train [-m] key=value ...`` (see conf/config.yaml for the keys).

JAX is imported after the configuration was checked, so errors appear quickly.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .config.identity import register_resolvers
from .config.messages import report_errors
from .config.schema import CONF, register_schema
from .environment import SWEEP_VARIABLE
from .errors import UserError, wants_traceback
from .launch.job import run_job

register_schema()
register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train(cfg: DictConfig) -> float:
    """Run a composed job, alone or of a sweep; return the objective for Hydra's sweeper (:func:`run_job`)."""
    job = HydraConfig.get()
    single = job.mode == RunMode.RUN
    sweep = os.environ.get(SWEEP_VARIABLE) if single else Path(job.sweep.dir).name
    try:
        return run_job(cfg, folder=Path(job.runtime.output_dir), overrides=list(job.overrides.task), sweep=sweep)
    except UserError as error:
        if single and not wants_traceback():
            raise SystemExit(f"error: {error}") from error  # Hydra would print a traceback
        raise


def main() -> None:
    """Run the command line; a user's mistake ends it with one sentence and exit code 1."""
    gc.set_threshold(100_000)  # imports and tracing make little garbage; this saves a tenth of the start-up
    with report_errors():
        train()
    if "joblib" not in sys.modules:  # joblib must end its workers
        # End without destroying every object, which takes JAX a quarter of a second.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
