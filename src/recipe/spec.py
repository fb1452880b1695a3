"""The recipe: everything that decides a run's numbers, apart from the data."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from ..config.schema import RecipeConfig
from ..models.base import Model
from ..models.mlp import Mlp
from ..optim.optimizers import Optimizer, Sgd
from ..optim.schedules import Constant, Schedule
from ..pretraining.base import Pretraining, Supervised
from ..retention.base import NoRetention, Retention
from ..strategies.base import Strategy
from ..strategies.frozen import Frozen
from ..training.trainer import TrainerConfig


@dataclass(frozen=True)
class Recipe(RecipeConfig):
    """The top-level hyperparameters and the chosen option of each config group."""

    model: Model = hparam(Mlp())
    pretrain: Pretraining = hparam(Supervised(Sgd(), Constant()))
    strategy: Strategy = hparam(Frozen())
    optimizer: Optimizer = hparam(Sgd())
    schedule: Schedule = hparam(Constant())
    trainer: TrainerConfig = hparam(TrainerConfig())
    retention: Retention = hparam(NoRetention())
