"""Registers ``hydra/launcher=fused`` and ``hydra/launcher=isolated``.

Hydra executes this file at every start, outside ``sys.modules``; therefore it imports nothing of the project at the top
and has no postponed annotations. The project's package is called ``src`` in a checkout and ``thaw`` in a wheel; the
launchers import from the one whose command line is running.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
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
    mode: str = "map"  # map: same bits as one job at a time; vmap: faster for small networks; auto: by network size
    batch_size: int | None = None  # jobs in one program; null: as many as fit in memory


@dataclass
class IsolatedConf:
    """Each job runs in its own process."""

    _target_: str = "hydra_plugins.thaw_launcher.launchers.IsolatedLauncher"
    slots: int = 1  # jobs at a time
    devices: list[str] = field(default_factory=list)  # CUDA_VISIBLE_DEVICES of each slot
    stagger: float = 0.0  # seconds between two starts
    on_error: str = "continue"  # or stop: start no further job
    retries: int = 0  # further attempts at a failed job
    timeout: float | None = None  # seconds per attempt


class _SweepLauncher(Launcher):
    module: str  # in the project's `launch` package
    runner: str  # a class in that module

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings and lock the sweep's folder."""
        launch = f"{task_function.__globals__['__package__']}.launch"  # type: ignore[attr-defined]
        runner = getattr(import_module(f"{launch}.{self.module}"), self.runner)(**self.settings)
        self.sweep = import_module(f"{launch}.sweep").Sweep(hydra_context, task_function, config, runner)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs."""
        return self.sweep.launch(job_overrides, initial_job_idx)


class FusedLauncher(_SweepLauncher):
    """``hydra/launcher=fused``."""

    module, runner = "fused", "Fused"


class IsolatedLauncher(_SweepLauncher):
    """``hydra/launcher=isolated``."""

    module, runner = "isolated", "Isolated"


for name, node in (("fused", FusedConf), ("isolated", IsolatedConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="thaw")
