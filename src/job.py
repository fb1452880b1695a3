"""One job: from its configuration to its record."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from src.choices import Kind
from src.config import ROOMS, Knobs, Study, build, option_class, option_names, typed
from src.errors import UserError, did_you_mean, listed
from src.results.records import Job, load_job
from src.results.study import check_report
from src.sweeps.identity import resolved
from src.tracking.job import JobTracking
from src.tracking.record import replacing

if TYPE_CHECKING:
    from src.data.base import Source, TaskSequence, Transfer
    from src.engine.stage_cache import StageCache
    from src.recipe import Movement, Outcome, Recipe
    from src.sequence import SequenceOutcome


SWEEP_VARIABLE = "THAW_SWEEP"  # tells a job that runs in a process of its own which sweep it belongs to


@dataclass(frozen=True)
class Plan:
    """What a composed configuration describes, every value checked."""

    recipe: Recipe
    source: Source  # of the data
    tracker: Any
    study: Study


def make_plan(cfg: DictConfig) -> Plan:
    """Return what a composed configuration describes.

    Raises:
        UserError: a value that is not allowed, an unknown option or setting.
    """
    from src.recipe import Recipe

    known = [*Knobs.__dataclass_fields__, *Study.__dataclass_fields__, *ROOMS]
    for key in (str(key) for key in cfg if key not in {*known, "hydra"}):  # `+key=value` gets past Hydra
        raise UserError(f"there is no key '{key}'{did_you_mean(key, known)}; the keys are: {listed(known, 40)}")
    check_report(cfg.report)
    kind = typed(Knobs, {"recipe": cfg.recipe}, "").recipe
    ordered = kind is Kind.sequence
    if option_class("data", str(cfg.data.get("name"))).is_sequence != ordered:
        given, fits = ("no sequence", "transfer") if ordered else ("a sequence of tasks", "sequence")
        others = [name for name in option_names("data") if option_class("data", name).is_sequence == ordered]
        raise UserError(
            f"data={cfg.data.name} is {given}, and recipe is '{kind.name}'; "
            f"allowed: recipe={fits}, or data={listed(others)}"
        )
    groups = {name: build(name, cfg[name]) for name in ROOMS if name in Recipe.__dataclass_fields__}
    return Plan(
        recipe=typed(Recipe, {name: cfg[name] for name in Knobs.__dataclass_fields__}, "", **groups),
        source=build("data", cfg.data),
        tracker=build("tracker", cfg.tracker),
        study=typed(Study, {name: cfg[name] for name in Study.__dataclass_fields__}, ""),
    )


def run_job(cfg: DictConfig, folder: Path, overrides: list[str], sweep: str | None) -> float:
    """Run one job and write its record.

    Args:
        cfg: the task's configuration.
        folder: where the record goes.
        overrides: what was asked for on the command line.
        sweep: the sweep's name; ``None`` for a single run, which tells the terminal more.

    Returns:
        The objective.
    """
    with JobTracking(folder, resolved(cfg), overrides) as tracking:
        tracking.open_view(build("tracker", cfg.tracker))  # first: W&B starts beside everything below
        plan = make_plan(cfg)

        from src import recipe as steps
        from src.engine.compiled import prepare_jax
        from src.sequence import check_sequence, run_sequence
        from src.tracking import console

        prepare_jax()
        data: Any = plan.source.load()  # of the kind that the recipe takes: make_plan has checked it
        sequence = plan.recipe.recipe is Kind.sequence
        movement = check_sequence(plan.recipe, data) if sequence else steps.where_it_moves(plan.recipe, data)
        tracking.publish(sweep, data.fingerprint)  # nothing that a user can get wrong is left
        if sweep is None:
            console.show_config(cfg)
            console.show_movement(movement)
        tasks = len(data.tasks) if sequence else 1
        stages = {"pretrain": plan.recipe.pretrain_steps} if not sequence else {}
        stages["finetune"] = tasks * plan.recipe.finetune_steps
        with console.Bar(stages, plan.study.progress) as bar:

            def watch(stage: str, row: dict[str, float]) -> None:
                tracking.log(stage, row)
                bar.update(stage, row)

            if sequence:
                outcome = run_sequence(plan.recipe, data, watch)
            else:
                outcome = steps.run(plan.recipe, data, watch, stage_cache(plan.study))
        complete(tracking, outcome, data, movement)
        console.show_outcome(outcome, folder, overrides if sweep else None)
    return outcome.objective


def complete(
    tracking: JobTracking,
    outcome: Outcome | SequenceOutcome,
    data: Transfer | TaskSequence,
    movement: Movement,
    **more: Any,
) -> None:
    """Write what a job ended with, and ``more``; parameters that stopped being finite are not worth keeping."""
    if not outcome.diverged:
        tracking.record.save_params(outcome.params, {"strategy": tracking.config["strategy"]["name"]})
        for name, content in data.files().items():
            with replacing(tracking.folder / name) as file:
                file.write(content.encode())
    tracking.finish(
        outcome.status,
        objective=outcome.objective,
        metrics=outcome.metrics,
        last_finite_step=outcome.last_finite_step,
        parameters={"trainable": movement.trainable, "total": movement.total},
        flops_per_step=outcome.cost.flops,
        bytes={"peak": outcome.cost.peak_bytes, "optimizer": outcome.cost.optimizer_bytes},
        **outcome.facts(),
        data=data.facts(),
        **more,
    )


def find_finished(folder: Path) -> tuple[Job, Plan]:
    """Return the record of a completed job's folder, and what its configuration describes.

    Raises:
        UserError: no folder of a job, one that is not completed, or one of another version.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is no job's folder: it has no .hydra/config.yaml")
    record = load_job(folder, folder.name)
    if record.status != "completed":
        raise UserError(f"'{folder}' is {record.status}; allowed: a completed job")
    config: Any = OmegaConf.load(path)
    missing = [key for key in (*Knobs.__dataclass_fields__, *Study.__dataclass_fields__, *ROOMS) if key not in config]
    if not isinstance(config, DictConfig) or missing:
        raise UserError(f"'{path}' is of another version: it has no {listed(missing)}")
    plan = make_plan(config)
    if plan.recipe.recipe is Kind.sequence:
        raise UserError(f"'{folder}' learned a sequence of tasks; allowed: a job of recipe=transfer")
    return record, plan


@functools.cache
def stage_cache(study: Study) -> StageCache:
    """Return the cache of pre-trained stages that a study asks for."""
    from src.engine.stage_cache import StageCache
    from src.tracking.console import say

    limit = int(study.cache_limit * 1e6)
    return StageCache(Path(study.cache_folder), study.cache, limit, lambda text: say(f"warning: {text}", "yellow"))
