"""``pretrain=moco_v1``: MoCo as first published, for ImageNet."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, UNIT, hparam
from .augmentation import Augmentation
from .contrastive import (
    Shape,
    Temperature,
)
from .moco import Moco


@dataclass(frozen=True)
class MocoV1(Moco):
    """MoCo (He et al., arXiv 1911.05722, sections 3.3 and 4.1): no blur, colours always change (as in 1805.01978)."""

    temperature: Temperature = hparam(Temperature(Shape.constant, cold=0.07))
    augmentation: Augmentation = hparam(Augmentation(crop=(0.2, 1.0), jitter=1.0, hue=0.4))
    queue_size: int = hparam(65536, COUNT)
    momentum: float = hparam(0.999, UNIT, traced=True)
