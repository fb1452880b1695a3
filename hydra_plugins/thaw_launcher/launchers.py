"""Registers ``hydra/launcher=fused`` and ``hydra/launcher=isolated``.

Hydra runs this file at every start, outside ``sys.modules``, so it holds no logic and no postponed annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class FusedConf:
    """Jobs that differ in traced values only run as one program."""

    _target_: str = "hydra_plugins.thaw_launcher.launchers.FusedLauncher"
    mode: str = "map"  # map: the bits of one job at a time; vmap: faster where networks are small; auto: by size
    batch_size: int | None = None  # jobs in one program; null: as many as fit in memory


@dataclass
class IsolatedConf:
    """Each job a process of its own."""

    _target_: str = "hydra_plugins.thaw_launcher.launchers.IsolatedLauncher"
    slots: int = 1  # jobs at a time
    devices: list[str] = field(default_factory=list)  # one accelerator a slot: its CUDA_VISIBLE_DEVICES
    stagger: float = 0.0  # seconds between two starts
    on_error: str = "continue"  # or stop: starts no further job
    retries: int = 0  # further tries of a failed job
    timeout: float | None = None  # seconds a job may take


class _SweepLauncher(Launcher):
    way: str

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take hold of the sweep's folder."""
        from src.launch.sweep import Sweep

        self.sweep = Sweep(hydra_context, task_function, config, self.way, self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs."""
        return self.sweep.launch(job_overrides, initial_job_idx)


class FusedLauncher(_SweepLauncher):
    """``hydra/launcher=fused``."""

    way = "fused"


class IsolatedLauncher(_SweepLauncher):
    """``hydra/launcher=isolated``."""

    way = "isolated"


for name, node in (("fused", FusedConf), ("isolated", IsolatedConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="thaw")
