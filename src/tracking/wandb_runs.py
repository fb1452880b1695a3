"""What a W&B run means as a job's record, whether it came from a file or from the server."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .records import STAGES, Job, Row, number

# The fields of a record that a run's summary may carry beside its metrics.
RECORD_FIELDS = (
    "objective",
    "last_finite_step",
    "trainable_parameters",
    "total_parameters",
    "flops_per_step",
    "seconds",
    "seconds_per_update",
    "compile_seconds",
)


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping's numbers under dotted names, without media (``_type``), text and lists."""
    flat: dict[str, Any] = {}
    for key, given in values.items():
        value = number(given)
        if isinstance(value, Mapping) and "_type" not in value:
            flat |= flat_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[prefix + key] = value
    return flat


def stage_rows(history: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Turn W&B's history into a record's rows.

    ``finetune/val_loss`` beside ``finetune/step`` is the value ``val_loss`` of stage ``finetune``. What has
    no stage with a step keeps its name, under stage "" and W&B's own ``_step``.
    """
    rows = []
    for logged in history:
        values = flat_numbers(logged)
        for stage in STAGES:
            if f"{stage}/step" in values:
                own = {key: values.pop(key) for key in list(values) if key.startswith(f"{stage}/")}
                rows.append({"stage": stage} | {key.removeprefix(f"{stage}/"): own[key] for key in own})
        rest = {key: value for key, value in values.items() if not key.startswith("_")}
        if rest:
            rows.append({"stage": "", "step": values.get("_step")} | rest)
    return rows


def job_from_run(
    name: str,
    run_id: str,
    status: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Callable[[], Iterable[Mapping[str, Any]]],
    **more: Any,
) -> Job:
    """Make a job of a run.

    Its metrics are the numbers of its summary, without W&B's own (``_step``) and without the last values of
    the history (``finetune/loss``). An objective or a cost that Thaw put there counts as such;
    an infinite objective means that the job diverged.
    """
    fields: dict[str, Any] = {key: number(summary[key]) for key in RECORD_FIELDS if summary.get(key) is not None}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    # Thaw notes its job's identity and data in the run's configuration, which the record keeps apart.
    noted: dict[str, Any] = {
        "job_id": str(config.pop("job_id", run_id)),
        "data_fingerprint": config.pop("data_fingerprint", None),
    }
    fields = noted | {"seconds": summary.get("_runtime")} | fields | more
    metrics = {
        key: value
        for key, value in flat_numbers(summary).items()
        if not key.startswith(("_", *(f"{stage}/" for stage in STAGES))) and key not in RECORD_FIELDS
    }
    diverged = status == "completed" and fields.get("objective") == math.inf
    return Job(
        name=name or run_id,
        status="diverged" if diverged else status,
        config=config,
        metrics=metrics,
        rows=functools.partial(read_history, history),
        **fields,
    )


def read_history(history: Callable[[], Iterable[Mapping[str, Any]]]) -> list[Row]:
    """Read a run's history now, as rows."""
    return stage_rows(history())
