"""``pretrain=moco_v2``: MoCo v2 (Chen et al., arXiv 2003.04297, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, hparam
from .augmentation import Augmentation
from .contrastive import (
    Shape,
    Temperature,
)
from .moco_v1 import MocoV1


@dataclass(frozen=True)
class MocoV2(MocoV1):
    """MoCo v2 (Chen et al., arXiv 2003.04297, section 3)."""

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.2))
    augmentation: Augmentation = hparam(Augmentation(crop=(0.2, 1.0), blur=0.5))
    proj_hidden_dim: int | None = hparam(2048, COUNT)
