"""The command line: ``python -m src.train [-m] key=value ...`` (see conf/config.yaml for the keys).

One page: configuration -> recipe -> record -> objective. What starts JAX is imported inside the functions that need it:
composing, and refusing, a configuration does not.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.config import CONF, ROOMS, Knobs, Study, build, register_schema, typed
from src.errors import UserError, did_you_mean, listed, wants_traceback
from src.messages import reported
from src.sweeps.identity import register_resolvers, resolved
from src.tracking.job import JobTracking

if TYPE_CHECKING:
    from src.recipe import Recipe

register_schema()
register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def train(cfg: DictConfig) -> float:
    """Run the job that a composed configuration describes.

    Returns:
        The objective, for any Hydra sweeper: the validation loss, infinite when the run diverged.
    """
    job = HydraConfig.get()
    single = job.mode == RunMode.RUN
    try:
        return run_job(
            cfg,
            folder=Path(job.runtime.output_dir),
            overrides=list(job.overrides.task),
            sweep=None if single else Path(job.sweep.dir).name,
        )
    except UserError as error:
        if single and not wants_traceback():
            raise SystemExit(f"error: {error}") from error  # past Hydra, which would print its whole stack
        raise


def run_job(cfg: DictConfig, folder: Path, overrides: list[str], sweep: str | None) -> float:
    """Run one job and write its record.

    Args:
        cfg: the task's configuration.
        folder: where the record goes.
        overrides: what was asked for on the command line.
        sweep: the sweep's name; ``None`` for a single run, which tells the terminal more.
    """
    with JobTracking(folder, resolved(cfg), overrides) as tracking:
        tracking.open_view(build("tracker", cfg.tracker))  # first: W&B starts beside everything below
        recipe = build_recipe(cfg)
        source = build("data", cfg.data)

        from src import recipe as steps
        from src.engine.compiled import prepare_jax
        from src.tracking import console

        prepare_jax()
        data = source.load()
        placed, sizes = steps.where_it_moves(recipe, data)
        tracking.publish(sweep, data.fingerprint)  # nothing that a user can get wrong is left
        if sweep is None:
            console.show_config(cfg)
            console.show_placement(placed, sizes)
        stages = {"pretrain": recipe.pretrain_steps, "finetune": recipe.finetune_steps}
        with console.Bar(stages, cfg.progress) as bar:

            def watch(stage: str, row: dict[str, float]) -> None:
                tracking.log(stage, row)
                bar.update(stage, row)

            outcome = steps.run(recipe, data, watch)
        tracking.record.save_params(outcome.params, {"strategy": cfg.strategy.name})
        tracking.finish(
            outcome.status,
            objective=outcome.objective,
            metrics=outcome.metrics,
            last_finite_step=outcome.last_finite_step,
            parameters={
                "trainable": sum(sizes[path] for path in placed.trainable),
                "total": sum(sizes.values()),
            },
            flops_per_step=outcome.flops_per_step,
            data={"fingerprint": data.fingerprint, **{name: len(part.x) for name, part in data.parts()}},
        )
        console.show_outcome(outcome, folder, overrides if sweep else None)
    return outcome.objective


def build_recipe(cfg: DictConfig) -> Recipe:
    """Return the recipe that a composed configuration describes.

    Raises:
        UserError: a value that is not allowed, an unknown option or setting.
    """
    from src.recipe import Recipe

    known = [*Knobs.__dataclass_fields__, *Study.__dataclass_fields__, *ROOMS]
    for key in (str(key) for key in cfg if key not in known):  # `+key=value` gets past Hydra
        raise UserError(f"there is no key '{key}'{did_you_mean(key, known)}; the keys are: {listed(known, 40)}")
    groups = {name: build(name, cfg[name]) for name in ("model", "pretrain", "strategy", "optimizer", "schedule")}
    return typed(Recipe, {name: cfg[name] for name in Knobs.__dataclass_fields__}, "", **groups)


def main() -> None:
    """Run the command line; what a user got wrong ends in one sentence and exit code 1."""
    gc.set_threshold(100_000)  # imports and tracing make many objects and little garbage: a tenth of the start-up
    with reported():
        train()
    if not {"-m", "--multirun"} & set(sys.argv):
        leave()


def leave() -> NoReturn:
    """End the process now that everything is written: taking JAX apart object by object costs a quarter of a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
