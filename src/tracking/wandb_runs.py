"""Makes a job's record from a W&B run, and reads the runs of a W&B server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UserError
from .record_reader import NUMBERS, STAGES, Job, RecordRow, number, numbers

# The fields of a record that a run's summary may contain beside its metrics.
RECORD_FIELDS = (*NUMBERS, "last_finite_step", "trainable_parameters", "total_parameters")
# Of a run's state on the server. "crashed" means that it lost its connection: whether it failed is unknown.
STATUS = {"finished": "completed", "failed": "failed"}


History = Callable[[], Iterable[Mapping[str, Any]]]


def load_wandb_project(path: str, api: Any = None) -> list[Job]:
    """Read every run of ``entity/project`` or ``entity/project/group`` as a job.

    The histories are complete, not W&B's sample of 500 points; each is fetched when its ``rows`` are read. ``api`` is a
    ``wandb.Api``, by default that of the user who is logged in.

    Raises:
        UserError: the path has another form, nobody is logged in, or the server does not know the project.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"--wandb is '{path}'; allowed: entity/project or entity/project/group")
    import wandb
    from wandb.errors import Error

    try:
        api = api or wandb.Api()
        filters = {"group": parts[2]} if len(parts) == 3 else None
        # Not lazy: one request per page of runs, instead of one more per run for its config.
        return [
            job_from_run(
                name=run.name,
                run_id=run.id,
                status=STATUS.get(run.state, "unfinished"),
                config=run.config,
                summary=run.summary_metrics,
                history=run.scan_history,
                git_commit=getattr(run, "commit", None),
                started=run.created_at,
            )
            for run in api.runs("/".join(parts[:2]), filters=filters, lazy=False)
        ]
    except (Error, ValueError, OSError) as error:  # requests' own errors are OSErrors
        raise UserError(f"W&B did not return the runs of '{path}': {' '.join(str(error).split())}") from error


def job_from_run(
    name: str,
    run_id: str,
    status: str,
    *,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: History,
    **more: Any,
) -> Job:
    """Make a job of a run.

    Its metrics are the numbers of the run's summary, without W&B's own (``_step``) and the history's last values
    (``finetune/loss``). The summary's :data:`RECORD_FIELDS` become fields; an infinite objective is a diverged job.
    """
    fields: dict[str, Any] = {"seconds": summary.get("_runtime")}
    fields |= {key: number(summary[key]) for key in RECORD_FIELDS if summary.get(key) is not None}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    others = ("_", *(f"{stage}/" for stage in STAGES))
    flat = {key: value for key, value in flat_numbers(summary).items() if key not in RECORD_FIELDS}
    diverged = status == "completed" and fields.get("objective") == math.inf
    return Job(
        name=name or run_id,
        status="diverged" if diverged else status,
        job_id=str(config.pop("job_id", run_id)),  # Thaw adds this and the next to the run's configuration
        data_fingerprint=config.pop("data_fingerprint", None),
        config=config,
        metrics={key: value for key, value in flat.items() if not key.startswith(others)},
        rows=lambda: stage_rows(history()),
        **fields,
        **more,
    )


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping's numbers under dotted names, without media (``_type``), text and lists."""
    flat: dict[str, Any] = {}
    for key, value in numbers(values).items():
        if isinstance(value, Mapping) and "_type" not in value:
            flat |= flat_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[prefix + key] = value
    return flat


def stage_rows(history: Iterable[Mapping[str, Any]]) -> list[RecordRow]:
    """Convert W&B's history to a record's rows.

    ``finetune/val_loss`` becomes ``val_loss`` of stage ``finetune``. Values of no stage keep their names, under stage
    "" and W&B's ``_step``.
    """
    rows = []
    for logged in history:
        values = flat_numbers(logged)
        for stage in STAGES:
            if f"{stage}/step" in values:
                own = {key: values.pop(key) for key in list(values) if key.startswith(f"{stage}/")}
                rows.append({"stage": stage} | {key.removeprefix(f"{stage}/"): value for key, value in own.items()})
        rest = {key: value for key, value in values.items() if not key.startswith("_")}
        if rest:
            rows.append({"stage": "", "step": values.get("_step")} | rest)
    return rows
