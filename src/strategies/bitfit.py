"""``strategy=bitfit``: the head and every bias are trained, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Array

from ..errors import UserError
from ..models.base import Model, head_paths
from ..optim.partition import FROZEN, Groups, Rule
from ..types import Params
from .base import Strategy


@dataclass(frozen=True)
class Bitfit(Strategy):
    """BitFit (Ben Zaken et al., arXiv 2106.10199): the head and all biases, those of normalisation layers too."""

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return rules that train the head and the biases."""
        return ((groups[-1][0], 1.0), (".*/bias", 1.0), (".*", FROZEN))

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return nothing; refuse a model without a bias below the head."""
        if not any(path.endswith("/bias") for path in params.keys() - head_paths(model, params)):
            head, _ = model.groups()[-1]
            raise UserError(
                f"strategy is bitfit, but the model has no bias below its {head}; allowed: a model with biases"
            )
        return {}
