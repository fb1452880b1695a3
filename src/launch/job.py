"""One job: from its configuration to its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..analysis.reports import check_report
from ..config.choices import Kind
from ..config.identity import resolved
from ..config.schema import build
from ..files import atomic_write
from ..recipe.configure import make_plan
from ..tracking import console
from ..tracking.cache import stage_cache
from ..tracking.job import JobTracking

if TYPE_CHECKING:
    from ..data.base import TaskSequence, Transfer
    from ..recipe.resolve import TrainableSummary
    from ..recipe.run import RunResult


def run_job(cfg: DictConfig, folder: Path, overrides: list[str], sweep: str | None) -> float:
    """Run one job of a composed configuration and write its record to its folder.

    ``sweep`` is the sweep's name, and ``None`` for a single run, which prints more. Returns the objective: the
    validation loss, infinite when the run diverged.
    """
    with JobTracking(folder, resolved(cfg), overrides) as tracking:
        tracking.start_tracker(build("tracker", cfg.tracker))  # first, so that W&B starts while the rest is prepared
        check_report(cfg.report)
        plan = make_plan(cfg)

        from ..recipe.resolve import resolve
        from ..recipe.run import run
        from ..recipe.sequence import resolve_sequence, run_sequence
        from ..training.compiled import Compiled, prepare_jax

        prepare_jax()
        data: Any = plan.source.load()  # of the kind that the recipe takes: make_plan has checked it
        sequence = plan.recipe.recipe is Kind.sequence
        resolved_run: Any = resolve_sequence(plan.recipe, data) if sequence else resolve(plan.recipe, data)
        trainable = resolved_run.trainable
        tracking.start_run(sweep, data.fingerprint)  # all input has been checked
        if sweep is None:
            console.show_config(cfg)
            console.show_trainable(trainable.labels, trainable.lengths, trainable.sizes, trainable.trainable)
        stages = {"pretrain": plan.recipe.pretrain_steps, "finetune": plan.recipe.finetune_steps}
        if sequence:
            stages = {"finetune": len(data.tasks) * plan.recipe.finetune_steps}
        with console.ProgressBar(stages, plan.study.progress) as bar:

            def log(stage: str, row: dict[str, float]) -> None:
                tracking.log(stage, row)
                bar.update(stage, row)

            result = run_sequence(resolved_run, log) if sequence else run(resolved_run, log, stage_cache(plan.study))
        summary = complete(tracking, result, data, trainable, compile_seconds=round(Compiled.seconds, 4))
    if sweep is None:
        console.show_summary(summary, result.seconds, folder)
    else:
        console.echo(f"  {result.status}, val loss {result.objective:.4f}  ({' '.join(overrides)})")
    return result.objective


def complete(
    tracking: JobTracking,
    result: RunResult,
    data: Transfer | TaskSequence,
    trainable: TrainableSummary,
    **more: Any,
) -> dict[str, Any]:
    """Write a job's checkpoint, unless it diverged, and its summary, to which ``more`` is added; return the summary."""
    if not result.diverged:
        tracking.record.save_params(result.params, {"strategy": tracking.config["strategy"]["name"]})
        for name, content in data.files().items():
            with atomic_write(tracking.folder / name) as file:
                file.write(content.encode())
    return tracking.finish(
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
