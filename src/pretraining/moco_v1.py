"""``pretrain=moco_v1``: MoCo as it was first made, for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, UNIT, hparam
from .augmentation import Augmentation
from .contrastive import Shape, Temperature
from .moco import Moco

CROP = (0.2, 1.0)  # of the area, in both versions for ImageNet


@dataclass(frozen=True)
class MocoV1(Moco):
    """MoCo (He et al., arXiv 1911.05722, sections 3.3 and 4.1).

    A projection of one layer, and views without a blur in which colours always change, hue included (arXiv 1805.01978).
    """

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.07))
    augmentation: Augmentation = hparam(Augmentation(crop=CROP, jitter=1.0, hue=0.4))
    queue: int = hparam(65536, COUNT)
    momentum: float = hparam(0.999, UNIT, traced=True)
