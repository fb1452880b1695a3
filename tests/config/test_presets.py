"""Every experiment preset composes and builds; those whose data is embedded train two updates of both stages."""

import functools
import math
from dataclasses import replace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.config.identity import register_resolvers
from src.config.schema import CONF, register_schema
from src.recipe.configure import make_plan
from tests.runs import run

PRESETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / "experiment").glob("*.yaml"))}
EMBEDDED = ("diabetes", "digits", "docstrings", "synthetic")  # data that needs no file


def option(preset, group):
    """Return the option that a preset chooses in a group, ``None`` for the default of ``conf/config.yaml``."""
    lines = [entry for entry in PRESETS[preset].get("defaults", []) if f"override /{group}" in entry]
    return lines[0][f"override /{group}"] if lines else None


TRAINED = [preset for preset in PRESETS if option(preset, "data") in (None, *EMBEDDED)]
NETWORKS = ("resnet", "vit", "bert")  # minutes to compile
ALIKE = ("lora_rank", "fisher_estimators")  # lora_compose and ewc_vs_l2sp run the same code


def is_slow(preset):
    return option(preset, "model") in NETWORKS or preset in ALIKE


@functools.cache
def composed(preset):
    """Return the configuration of the first job of a preset's sweep; a required key (``???``) gets a dummy value."""
    register_resolvers()
    register_schema()
    sweep = PRESETS[preset].get("hydra", {}).get("sweeper", {}).get("params", {})
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in sweep.items()])
    swept = [
        f"{p.key_or_group}={next(p.sweep_string_iterator()) if p.is_sweep_override() else p.value()}" for p in parsed
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        job = [f"experiment={preset}", *swept]
        cfg = compose("config", overrides=job)
        missing = sorted(OmegaConf.missing_keys(cfg))
        return compose("config", overrides=[*job, *(f"{key}=dummy" for key in missing)]) if missing else cfg


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_and_builds(preset):
    cfg = composed(preset)
    plan = make_plan(cfg)
    assert plan.study.name in (None, preset)
    assert plan.recipe.lr_fine == cfg.lr_fine
    assert type(plan.recipe.strategy).__module__ == f"src.strategies.{cfg.strategy.name}"
    assert type(plan.source).__module__ == f"src.data.{cfg.data.name}"


@pytest.mark.parametrize(
    "preset",
    [pytest.param(preset, marks=pytest.mark.slow) if is_slow(preset) else preset for preset in TRAINED],
)
def test_a_preset_trains(preset):
    """Two updates of pre-training and of fine-tuning, by the code path of a single run."""
    plan, stages = make_plan(composed(preset)), set()
    recipe = replace(plan.recipe, pretrain_steps=2, finetune_steps=2, log_every=1)
    outcome = run(recipe, plan.source.load(), lambda stage, _: stages.add(stage))
    assert stages == ({"pretrain", "finetune"} if recipe.strategy.pretrained else {"finetune"})
    assert not outcome.diverged
    assert outcome.metrics
    assert all(math.isfinite(value) for value in outcome.metrics.values())
