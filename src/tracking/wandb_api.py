"""Reads runs from a W&B server."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from .records import Job
from .wandb_runs import job_from_run

# A crashed run lost touch with the server: whether it failed, nobody said.
STATUS = {"finished": "completed", "failed": "failed"}


def load_wandb_project(path: str, api: Any = None) -> list[Job]:
    """Read every run of ``entity/project`` or ``entity/project/group`` as a job.

    The histories are whole, not W&B's sample of 500 points, and each is fetched when its ``rows`` are read.

    Args:
        path: where the runs are.
        api: a ``wandb.Api``; by default the one of whoever is logged in.

    Raises:
        UserError: the path has another form, nobody is logged in, or the server does not know the project.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"--wandb takes entity/project or entity/project/group, got '{path}'")
    import wandb
    from wandb.errors import Error

    try:
        api = api or wandb.Api()
        filters = {"group": parts[2]} if len(parts) == 3 else None
        # Not lazy: one request a page of runs instead of one more a run for its config.
        return [job_from_api_run(run) for run in api.runs("/".join(parts[:2]), filters=filters, lazy=False)]
    except (Error, ValueError, OSError) as error:  # requests' own errors are OSErrors
        raise UserError(f"W&B did not give the runs of '{path}': {' '.join(str(error).split())}") from error


def job_from_api_run(run: Any) -> Job:
    """Make a job of a ``wandb.apis.public.Run``."""
    return job_from_run(
        name=run.name,
        run_id=run.id,
        status=STATUS.get(run.state, "unfinished"),
        config=run.config,
        summary=run.summary_metrics,
        history=run.scan_history,
        git_commit=getattr(run, "commit", None),
        started=run.created_at,
    )
