"""The reader of finished jobs' folders; every command that starts from one uses it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..checkpoints.adapters import LoraAdapter, extract, merge, split_adapter
from ..checkpoints.huggingface import build_model
from ..checkpoints.tensor_files import read_tensors
from ..config.choices import Kind
from ..config.schema import CONFIG_GROUPS, RecipeConfig, StudyConfig
from ..data.base import DataSource, Transfer
from ..errors import UserError, listed
from ..models.base import Model, head_paths
from ..recipe.configure import Plan, make_plan
from ..tracking.record_reader import Job, load_job
from ..tracking.record_writer import CHECKPOINT
from ..types import Params


@dataclass(frozen=True, eq=False)
class FinishedJob:
    """A job's folder. Everything but the configuration is read when it is first used, and raises then."""

    folder: Path
    config: DictConfig

    @functools.cached_property
    def model(self) -> Model:
        """The configured model."""
        return build_model(self.config.model)

    def read_params(self) -> Params:
        """Return the parameters that the job ended with, its strategy's among them."""
        return read_tensors(self.folder / CHECKPOINT)[0]  # type: ignore[return-value]

    @functools.cached_property
    def record(self) -> Job:
        """The job's record; a :class:`UserError` if it is not completed."""
        record = load_job(self.folder, self.folder.name)
        if record.status != "completed":
            raise UserError(f"'{self.folder}' is {record.status}; allowed: a completed job")
        return record

    @functools.cached_property
    def plan(self) -> Plan:
        """The recipe, data and study of a completed job of ``recipe=transfer``.

        Raises:
            UserError: the job is not completed, is of another version, or learned a sequence of tasks.
        """
        _ = self.record
        keys = (*RecipeConfig.__dataclass_fields__, *StudyConfig.__dataclass_fields__, *CONFIG_GROUPS)
        if missing := [key for key in keys if key not in self.config]:
            raise UserError(f"the configuration of '{self.folder}' is of another version: it lacks {listed(missing)}")
        plan = make_plan(self.config)
        if plan.recipe.recipe is Kind.sequence:
            raise UserError(f"'{self.folder}' learned a sequence of tasks; allowed: a job of recipe=transfer")
        return plan

    @functools.cached_property
    def data(self) -> Transfer:
        """The job's data; a :class:`UserError` if they changed since the job ran."""
        data, recorded = _load_data(self.plan.source), self.record.data_fingerprint
        if recorded not in (None, data.fingerprint):
            raise UserError(f"the data of '{self.folder}' changed since: {data.fingerprint}, recorded {recorded}")
        return data

    @functools.cached_property
    def adapter(self) -> LoraAdapter:
        """The LoRA adapter in the parameters, with the model's last group as its head; raises if there is none."""
        strategy, params = self.config.strategy, self.read_params()
        if not split_adapter(params)[0] or strategy.get("alpha") is None:
            raise UserError(f"'{self.folder}' holds no LoRA adapter: its strategy is '{strategy.get('name')}'")
        stabilised = bool(strategy.get("rank_stabilised", False))
        return extract(params, head_paths(self.model, params), float(strategy.alpha), stabilised)

    @functools.cached_property
    def base(self) -> Params:
        """The parameters without the adapter's factors; the head is the job's."""
        return split_adapter(self.read_params())[1]

    def merged_params(self) -> Params:
        """Return the parameters with a LoRA adapter, if any, merged into the kernels; refuse DoRA."""
        params = self.read_params()
        return merge(params, self.adapter.scaling) if split_adapter(params)[0] else params


@functools.cache
def _load_data(source: DataSource) -> Transfer:
    return source.load()


def read_job(folder: Path) -> FinishedJob:
    """Return a job's folder with its configuration read; a :class:`UserError` if it is not a job's."""
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"'{folder}' is no job's folder: it has no .hydra/config.yaml")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise UserError(f"'{path}' holds no configuration; allowed: what a job wrote")
    return FinishedJob(folder, config)
