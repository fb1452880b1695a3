"""``pretrain=moco_v2``: MoCo with SimCLR's projection head and blur, for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from src.config import COUNT, UNIT, knob
from src.objectives.augmentation import Augmentation
from src.objectives.contrastive import Shape, Temperature
from src.objectives.moco import Moco
from src.objectives.moco_v1 import CROP


@dataclass(frozen=True)
class MocoV2(Moco):
    """MoCo v2 (Chen et al., arXiv 2003.04297, section 3)."""

    temperature: Temperature = knob(Temperature(Shape.constant, cold=0.2))
    augmentation: Augmentation = knob(Augmentation(crop=CROP, blur=0.5))
    hidden: int | None = knob(2048, COUNT)
    queue: int = knob(65536, COUNT)
    momentum: float = knob(0.999, UNIT, traced=True)
