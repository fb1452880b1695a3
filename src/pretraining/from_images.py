"""What options of ``pretrain`` have in common that learn from images without their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.schema import option_name
from ..errors import UserError
from ..models.base import Model
from .feature_eval import Measured

if TYPE_CHECKING:
    from ..data.base import Transfer


@dataclass(frozen=True)
class FromImages(Measured):
    """Base of these."""

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data that is no images."""
        rows = (data.source or data.target)["train"].x
        if rows.ndim != 4:
            raise UserError(
                f"pretrain={option_name(self)} learns from images, and the data is rows of shape {rows.shape[1:]}; "
                "allowed: data=cifar10, data=image_folder, or data.images=true of digits and mnist"
            )
        super().check(model, data, batch)
