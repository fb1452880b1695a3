"""One job: from its configuration to its record."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config.choices import Kind
from ..config.identity import resolved
from ..config.schema import Study, build
from ..files import atomic_write
from ..recipe.configure import make_plan
from ..tracking.job import JobTracking

if TYPE_CHECKING:
    from ..data.base import TaskSequence, Transfer
    from ..recipe.resolve import TrainableSummary
    from ..recipe.run import RunResult
    from ..recipe.sequence import SequenceResult
    from ..training.stage_cache import StageCache


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

        from ..recipe.resolve import resolve
        from ..recipe.run import run
        from ..recipe.sequence import resolve_sequence, run_sequence
        from ..tracking import console
        from ..training.compiled import Compiled, prepare_jax

        prepare_jax()
        data: Any = plan.source.load()  # of the kind that the recipe takes: make_plan has checked it
        sequence = plan.recipe.recipe is Kind.sequence
        resolved_run: Any = resolve_sequence(plan.recipe, data) if sequence else resolve(plan.recipe, data)
        trainable = resolved_run.trainable
        tracking.publish(sweep, data.fingerprint)  # nothing that a user can get wrong is left
        if sweep is None:
            console.show_config(cfg)
            console.show_movement(trainable)
        tasks = len(data.tasks) if sequence else 1
        stages = {"pretrain": plan.recipe.pretrain_steps} if not sequence else {}
        stages["finetune"] = tasks * plan.recipe.finetune_steps
        with console.Bar(stages, plan.study.progress) as bar:

            def watch(stage: str, row: dict[str, float]) -> None:
                tracking.log(stage, row)
                bar.update(stage, row)

            if sequence:
                result = run_sequence(resolved_run, watch)
            else:
                result = run(resolved_run, watch, stage_cache(plan.study))
        complete(tracking, result, data, trainable, compile_seconds=round(Compiled.seconds, 4))
        console.show_outcome(result, folder, overrides if sweep else None)
    return result.objective


def complete(
    tracking: JobTracking,
    result: RunResult | SequenceResult,
    data: Transfer | TaskSequence,
    trainable: TrainableSummary,
    **more: Any,
) -> None:
    """Write what a job ended with, and ``more``; parameters that stopped being finite are not worth keeping."""
    if not result.diverged:
        tracking.record.save_params(result.params, {"strategy": tracking.config["strategy"]["name"]})
        for name, content in data.files().items():
            with atomic_write(tracking.folder / name) as file:
                file.write(content.encode())
    tracking.finish(
        result.status,
        objective=result.objective,
        metrics=result.metrics,
        last_finite_step=result.last_finite_step,
        parameters={"trainable": trainable.trainable, "total": trainable.total},
        flops_per_step=result.cost.flops,
        bytes={"peak": result.cost.peak_bytes, "optimizer": result.cost.optimizer_bytes},
        **result.summary(),
        data=data.facts(),
        **more,
    )


@functools.cache
def stage_cache(study: Study) -> StageCache:
    """Return the cache of pre-trained stages that a study asks for."""
    from ..tracking.console import say
    from ..training.stage_cache import StageCache

    limit = int(study.cache_limit * 1e6)
    return StageCache(Path(study.cache_folder), study.cache, limit, lambda text: say(f"warning: {text}", "yellow"))
