"""From a composed configuration to a recipe, a data source and a tracker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..analysis.reports import check_report
from ..config.choices import Kind
from ..config.schema import CONFIG_GROUPS, RecipeConfig, Study, build, option_class, option_names, typed
from ..errors import UserError, did_you_mean, listed

if TYPE_CHECKING:
    from ..data.base import Source
    from .run import Recipe


@dataclass(frozen=True)
class Plan:
    """What a composed configuration describes, every value checked."""

    recipe: Recipe
    source: Source  # of the data
    tracker: Any
    study: Study


def make_plan(cfg: DictConfig) -> Plan:
    """Return what a composed configuration describes.

    Raises:
        UserError: a value that is not allowed, an unknown option or setting.
    """
    from .run import Recipe

    known = [*RecipeConfig.__dataclass_fields__, *Study.__dataclass_fields__, *CONFIG_GROUPS]
    for key in (str(key) for key in cfg if key not in {*known, "hydra"}):  # `+key=value` gets past Hydra
        raise UserError(f"there is no key '{key}'{did_you_mean(key, known)}; the keys are: {listed(known, 40)}")
    check_report(cfg.report)
    kind = typed(RecipeConfig, {"recipe": cfg.recipe}, "").recipe
    ordered = kind is Kind.sequence
    if option_class("data", str(cfg.data.get("name"))).is_sequence != ordered:
        given, fits = ("no sequence", "transfer") if ordered else ("a sequence of tasks", "sequence")
        others = [name for name in option_names("data") if option_class("data", name).is_sequence == ordered]
        raise UserError(
            f"data={cfg.data.name} is {given}, and recipe is '{kind.name}'; "
            f"allowed: recipe={fits}, or data={listed(others)}"
        )
    groups = {name: build(name, cfg[name]) for name in CONFIG_GROUPS if name in Recipe.__dataclass_fields__}
    return Plan(
        recipe=typed(Recipe, {name: cfg[name] for name in RecipeConfig.__dataclass_fields__}, "", **groups),
        source=build("data", cfg.data),
        tracker=build("tracker", cfg.tracker),
        study=typed(Study, {name: cfg[name] for name in Study.__dataclass_fields__}, ""),
    )
