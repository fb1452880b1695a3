"""Finished jobs as starting points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..config.choices import Kind
from ..config.schema import CONFIG_GROUPS, RecipeConfig, StudyConfig
from ..errors import UserError, listed
from ..recipe.configure import Plan, make_plan
from ..tracking.records import Job, load_job


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
    missing = [
        key
        for key in (*RecipeConfig.__dataclass_fields__, *StudyConfig.__dataclass_fields__, *CONFIG_GROUPS)
        if key not in config
    ]
    if not isinstance(config, DictConfig) or missing:
        raise UserError(f"'{path}' is of another version: it has no {listed(missing)}")
    plan = make_plan(config)
    if plan.recipe.recipe is Kind.sequence:
        raise UserError(f"'{folder}' learned a sequence of tasks; allowed: a job of recipe=transfer")
    return record, plan
