"""The command line: ``python -m src.train [-m] key=value ...`` (see conf/config.yaml for the keys).

Hydra composes the configuration and hands it to :func:`train`, once for a run and once for each job of a sweep that its
launcher does not run otherwise (``src/sweeps``). Nothing here imports JAX: refusing a configuration is quick.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .config.identity import register_resolvers
from .config.messages import reported
from .config.schema import CONF, register_schema
from .environment import SWEEP_VARIABLE
from .errors import UserError, wants_traceback
from .launch.job import run_job

register_schema()
register_resolvers()
# Hydra finds launchers in `hydra_plugins` folders on the path, where a console script does not put this one.
if str(CONF.parent) not in sys.path:
    sys.path.append(str(CONF.parent))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train(cfg: DictConfig) -> float:
    """Run the job that a composed configuration describes.

    Returns:
        The objective, for any Hydra sweeper: the validation loss, infinite when the run diverged.
    """
    job = HydraConfig.get()
    single = job.mode == RunMode.RUN
    sweep = os.environ.get(SWEEP_VARIABLE) if single else Path(job.sweep.dir).name
    try:
        return run_job(
            cfg,
            folder=Path(job.runtime.output_dir),
            overrides=list(job.overrides.task),
            sweep=sweep,
        )
    except UserError as error:
        if single and not wants_traceback():
            raise SystemExit(f"error: {error}") from error  # past Hydra, which would print its whole stack
        raise


def main() -> None:
    """Run the command line; what a user got wrong ends in one sentence and exit code 1."""
    gc.set_threshold(100_000)  # imports and tracing make many objects and little garbage: a tenth of the start-up
    with reported():
        train()
    if "joblib" not in sys.modules:  # which has workers of its own to end
        leave()


def leave() -> NoReturn:
    """End the process now that everything is written: taking JAX apart object by object costs a quarter of a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
