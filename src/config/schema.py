"""The typed schema: builds objects from configuration nodes and checks their values.

An option of a config group is a dataclass in the file of the same name: ``strategy=discriminative`` is the class
``Discriminative`` of ``src/strategies/discriminative.py``. Its fields are declared with :func:`hparam`.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as OMITTED
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from ..environment import PACKAGE, PACKAGE_DIR, ROOT
from ..errors import UserError, did_you_mean, listed
from .choices import CacheMode, Kind, Resume
from .hparams import COUNT, NATURAL, NON_NEGATIVE, POSITIVE, SEED, check_values, hparam

# A wheel contains `conf` inside the package, a checkout beside it.
CONF = next(folder for folder in (PACKAGE_DIR / "conf", ROOT / "conf") if folder.is_dir())

# The module of the class of each group's options; `{name}` is the option's name.
CONFIG_GROUPS = {
    "model": "models.{name}",
    "strategy": "strategies.{name}",
    "data": "data.{name}",
    "pretrain": "pretraining.{name}",
    "optimizer": "optim.optimizers",
    "schedule": "optim.schedules",
    "trainer": "training.trainer",
    "retention": "retention.{name}",
    "tracker": "tracking.trackers",
}

# Options whose class is not named after them (``None`` cannot be a class's name).
CLASS_NAMES = {("trainer", "plain"): "TrainerConfig", ("retention", "none"): "NoRetention"}


@dataclass(frozen=True)
class RecipeConfig:
    """The top-level hyperparameters of the recipe. Units are in ``conf/config.yaml``."""

    recipe: Kind = hparam(Kind.transfer)
    seed: int = hparam(0, SEED, traced=True)
    lr_pre: float = hparam(0.05, POSITIVE, traced=True)
    lr_fine: float = hparam(0.05, POSITIVE, traced=True)
    pretrain_steps: int = hparam(200, NATURAL)
    finetune_steps: int = hparam(100, NATURAL)
    batch_size: int | None = hparam(None, COUNT)
    log_every: int = hparam(10, COUNT)


@dataclass(frozen=True)
class StudyConfig:
    """Top-level settings that change no number: name, report, progress, resuming and the stage cache."""

    name: str | None = hparam(None)
    report: str | None = hparam(None)
    progress: bool = hparam(True)
    resume: Resume = hparam(Resume.auto)
    cache: CacheMode = hparam(CacheMode.use)
    cache_folder: str = hparam("outputs/cache")
    cache_limit: float = hparam(2000.0, NON_NEGATIVE)


def register_schema() -> None:
    """Register the types of the top-level keys with Hydra; :func:`build` checks the groups."""
    fields: list[Any] = []
    for cls in (RecipeConfig, StudyConfig):
        hints = typing.get_type_hints(cls)
        fields += [(f.name, hints[f.name], f.default) for f in dataclasses.fields(cls)]
    fields += [(group, Any, OMITTED) for group in CONFIG_GROUPS]
    ConfigStore.instance().store(name="schema", node=dataclasses.make_dataclass("Config", fields))


def option_class(group: str, name: str) -> type:
    """Return the dataclass of ``group=name``, for instance ``("strategy", "frozen")`` -> ``Frozen``.

    Raises:
        UserError: no such option; the allowed ones are listed.
    """
    class_name = CLASS_NAMES.get((group, name), "".join(part.capitalize() for part in name.split("_")))
    module_name = f"{PACKAGE}.{CONFIG_GROUPS[group].format(name=name)}"
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
    except AttributeError:
        pass
    allowed = option_names(group)
    raise UserError(f"{group}.name is '{name}'{did_you_mean(name, allowed)}; allowed: {listed(allowed)}")


def option_names(group: str) -> list[str]:
    """Return the names of a group's options: its YAML files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def option_name(option: Any) -> str:
    """Return the name of a built option: that of its module, in groups with one module per option."""
    return type(option).__module__.rpartition(".")[2]


def build(group: str, node: DictConfig, key: str | None = None) -> Any:
    """Build the frozen dataclass of a group's node, whose key in the configuration is ``key`` (default: the group's).

    Raises:
        UserError: unknown option or field, a value of the wrong type or outside what is allowed.
    """
    key = key or group
    cls = option_class(group, str(node.get("name")))
    hints = typing.get_type_hints(cls)
    values, built = {}, {}
    for name, value in settings(node).items():
        if isinstance(value, DictConfig) and "name" in value:  # an option of another group, as `pretrain.optimizer`
            built[name] = build(name, value, f"{key}.{name}")
        elif isinstance(value, DictConfig) and dataclasses.is_dataclass(hints.get(name)):
            built[name] = typed(hints[name], settings(value), f"{key}.{name}")
        elif name != "name":
            values[name] = value
    return typed(cls, values, key, **built)


def settings(node: DictConfig) -> dict[str, Any]:
    """Return a node's values with interpolations resolved; nested options stay nodes, missing values stay ``???``."""

    def value(name: str) -> Any:
        found = OMITTED if OmegaConf.is_missing(node, name) else node[name]
        return OmegaConf.to_container(found, resolve=True) if isinstance(found, ListConfig) else found

    return {str(name): value(str(name)) for name in node}


def typed(cls: type, values: Mapping[str, Any], key: str, **ready: Any) -> Any:
    """Create a ``cls``, declared with :func:`hparam`, from the plain values below a key (``""`` at the top level).

    Fields that are objects already are given as ``ready``.

    Raises:
        UserError: unknown field, wrong type, or a value that is not allowed.
    """
    prefix = f"{key}." if key else ""
    hints = typing.get_type_hints(cls)
    plain_fields = [f for f in dataclasses.fields(cls) if f.name not in ready and is_setting(f)]
    names = [f.name for f in plain_fields]
    schema = dataclasses.make_dataclass(
        cls.__name__, [(f.name, hints[f.name], OMITTED if f.default is MISSING else f.default) for f in plain_fields]
    )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(values))
        converted = OmegaConf.to_container(merged, throw_on_missing=True)
    except ConfigKeyError as error:
        bad = str(error.key)
        raise UserError(
            f"{prefix}{bad} is not a setting of {key or 'the recipe'}{did_you_mean(bad, names)}; "
            f"it has: {listed(names) or 'none'}"
        ) from error
    except ValidationError as error:
        raise UserError(type_message(error, key)) from error
    except MissingMandatoryValue as error:
        lost = f"{prefix}{error.full_key}"
        raise UserError(f"{lost} is missing: give it as {lost}=...") from error
    made = cls(**{str(k): _hashable(v) for k, v in dict(converted).items()}, **ready)  # type: ignore[call-overload]
    check_values(made, key)
    return made


def is_setting(f: dataclasses.Field[Any]) -> bool:
    """Tell whether a dataclass field can be configured; others have ``metadata={"setting": False}``."""
    return f.metadata.get("setting", True)


def type_message(error: Exception, key: str = "") -> str:
    """Return OmegaConf's ``ValidationError`` as one sentence with the full key."""
    lines = str(error).splitlines()
    inside = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    return f"{'.'.join(part for part in (key, inside) if part)}: {lines[0].rstrip('.')}"


def _hashable(value: Any) -> Any:
    """Return lists as tuples, which are hashable."""
    return tuple(_hashable(v) for v in value) if isinstance(value, list) else value
