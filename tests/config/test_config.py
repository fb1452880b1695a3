"""The schema: YAML files match their dataclasses, keys have comments, wrong values raise errors that name them."""

import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.config.identity import register_resolvers
from src.config.schema import (
    CONF,
    CONFIG_GROUPS,
    RecipeConfig,
    StudyConfig,
    build,
    is_setting,
    option_class,
    option_names,
    register_schema,
)
from src.errors import UserError
from src.optim.optimizers import Adamw, Sgd
from src.recipe.configure import make_plan

OPTIONS = [(group, name) for group in CONFIG_GROUPS for name in option_names(group)]


def composed(*overrides):
    register_resolvers()
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_a_yaml_file_has_the_fields_and_defaults_of_its_dataclass(group, name):
    cls = option_class(group, name)
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    assert values.pop("name") == name
    nested = {entry.split("@")[1].split()[0] for entry in map(str, values.pop("defaults", [])) if "@" in entry}
    nested = {word.split("'")[0] for word in nested}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in nested and is_setting(f)}
    assert set(values) == set(fields)
    for key, value in values.items():
        if str(value).startswith("${"):  # refers to another key with its own default
            continue
        default = fields[key].default
        if value == "???":
            assert default is dataclasses.MISSING
        else:
            assert value == as_written(default), key


def as_written(default):
    """Return a default in the form of the YAML file."""
    if dataclasses.is_dataclass(default):
        return {f.name: as_written(getattr(default, f.name)) for f in dataclasses.fields(default)}
    return getattr(default, "name", list(default) if isinstance(default, tuple) else default)


def test_top_level_defaults_are_the_dataclass_s():
    cfg = composed()
    for f in [*dataclasses.fields(RecipeConfig), *dataclasses.fields(StudyConfig)]:
        assert cfg[f.name] == f.default, f.name


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_is_explained(path):
    """Each setting has a comment on its line, each file one at its top (of a preset: the command)."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    if path.parent.name in CONFIG_GROUPS:
        for line in lines:
            if ":" in line and not line.startswith(("#", "name:", "defaults:", " ")):
                assert " # " in line, line


@pytest.mark.parametrize("preset", ["experiment=four_strategies", "experiment=reference", "experiment=digits"])
def test_presets_build(preset):
    make_plan(composed(preset))


SWEPT = {
    path.stem: params["pretrain"].split(",")
    for path in sorted((CONF / "experiment").glob("*.yaml"))
    if "pretrain" in (params := yaml.safe_load(path.read_text()).get("hydra", {}).get("sweeper", {}).get("params", {}))
}


@pytest.mark.parametrize("name", SWEPT)
def test_pre_trainings_that_are_compared_share_an_optimizer_and_a_schedule(name):
    """One ``lr_pre`` for plain SGD and for Adam would leave one of them untrained."""
    options = [composed(f"experiment={name}", f"pretrain={option}").pretrain for option in SWEPT[name]]
    assert len(options) > 1
    assert all((option.optimizer, option.schedule) == (options[0].optimizer, options[0].schedule) for option in options)


def presets_with_views():
    """Return each preset of digits with each option of ``pretrain`` that it names and that draws random views."""
    views = [name for name in option_names("pretrain") if hasattr(option_class("pretrain", name), "augmentation")]
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        entries = yaml.safe_load(path.read_text()).get("defaults", [])
        groups = {key: value for entry in entries for key, value in entry.items()}
        options = SWEPT.get(path.stem, [groups.get("override /pretrain", "supervised")])
        if groups.get("override /data") == "digits":
            yield from ((path.stem, option) for option in options if option in views)


@pytest.mark.parametrize(("name", "option"), list(presets_with_views()))
def test_presets_of_digits_draw_views_in_which_a_digit_stays_readable(name, option):
    augmentation = build("pretrain", composed(f"experiment={name}", f"pretrain={option}").pretrain).augmentation
    assert augmentation.crop[0] >= 0.4
    assert augmentation.flip == 0.0


@pytest.mark.parametrize("name", [name for name in SWEPT if {"simclr", "moco"} <= set(SWEPT[name])])
def test_presets_compare_simclr_and_moco_with_one_projection_head(name):
    options = [composed(f"experiment={name}", f"pretrain={option}").pretrain for option in ("simclr", "moco")]
    assert [(option.proj_hidden_dim, option.proj_output_dim) for option in options] == [(128, 64)] * 2


def test_debug_presets_override_experiments():
    assert make_plan(composed("experiment=digits", "debug=fast")).recipe.finetune_steps == 2
    assert make_plan(composed("debug=nans")).recipe.log_every == 1


def test_build_gives_frozen_typed_objects():
    cfg = composed("optimizer=adamw", "optimizer.weight_decay=1", "optimizer.clip_norm=2")
    optimizer = build("optimizer", cfg.optimizer)
    assert optimizer == Adamw(weight_decay=1.0, clip_norm=2.0)
    assert isinstance(optimizer.weight_decay, float)
    assert hash(optimizer)
    assert build("model", composed("model.widths=[4,5]").model).widths == (4, 5)
    assert build("pretrain", cfg.pretrain).optimizer == Sgd()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=adam", "optimizer.b1=2"], "optimizer.b1 is 2.0; allowed: a number from 0 to 1"),
        (["optimizer.clip_norm=0"], "optimizer.clip_norm is 0.0; allowed: a finite number > 0"),
        (
            ["pretrain.optimizer.weight_decay=-1"],
            "pretrain.optimizer.weight_decay is -1.0; allowed: a finite number >=",
        ),
        (["model.widths=[8,0]"], r"model.widths is \(8, 0\); allowed: a whole number >= 1"),
        (["model.activation=rel"], "model.activation: Invalid value 'rel', expected one of .relu, gelu"),
        (["strategy.nam=full"], "nam"),
        (["+strategy.decay=1"], "strategy.decay is not a setting of strategy; it has: none"),
        (["strategy.name=discrimnative"], "strategy.name is 'discrimnative' .did you mean 'discriminative'"),
        (["+sed=1"], "there is no key 'sed' .did you mean 'seed'"),
    ],
)
def test_wrong_values_are_named(overrides, message):
    with pytest.raises(Exception, match=message) as found:
        make_plan(composed(*overrides))
    assert isinstance(found.value, UserError) or "nam" in message


def test_interpolations_are_resolved():
    cfg = composed("lr_fine=0.25", "optimizer.weight_decay=${lr_fine}")
    assert build("optimizer", cfg.optimizer).weight_decay == 0.25


def test_an_enum_is_written_by_name():
    assert OmegaConf.to_container(composed())["data"]["pretrain_on"] == "first"
