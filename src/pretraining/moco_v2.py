"""``pretrain=moco_v2``: MoCo with SimCLR's projection head and blur, for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, UNIT, hparam
from .augmentation import Augmentation
from .contrastive import Shape, Temperature
from .moco import Moco
from .moco_v1 import CROP


@dataclass(frozen=True)
class MocoV2(Moco):
    """MoCo v2 (Chen et al., arXiv 2003.04297, section 3)."""

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.2))
    augmentation: Augmentation = hparam(Augmentation(crop=CROP, blur=0.5))
    hidden: int | None = hparam(2048, COUNT)
    queue: int = hparam(65536, COUNT)
    momentum: float = hparam(0.999, UNIT, traced=True)
