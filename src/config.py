"""The typed schema: how a configuration node becomes an object, what values it may hold, which of them are traced.

A group's option is a dataclass in the file of the same name: ``strategy=discriminative`` is
``src/strategies/discriminative.py``'s ``Discriminative``. Its fields are declared with :func:`knob`, which states the
allowed values and whether the field is *traced*: a hyperparameter that enters the compiled program as an argument, so
that one compilation serves every value of it.
"""

from __future__ import annotations

import dataclasses
import importlib
import keyword
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as OMITTED
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from src.choices import CacheMode, Kind, Resume
from src.errors import UserError, did_you_mean, listed

CONF = Path(__file__).parents[1] / "conf"

# Where the class of a group's option is found; `{name}` is the option's name.
ROOMS = {
    "model": "src.models.{name}",
    "strategy": "src.strategies.{name}",
    "data": "src.data.{name}",
    "pretrain": "src.objectives.{name}",
    "optimizer": "src.engine.optimizers",
    "schedule": "src.engine.schedules",
    "trainer": "src.engine.trainer",
    "retention": "src.retention.{name}",
    "tracker": "src.tracking.options",
}


@dataclass(frozen=True)
class Check:
    """What a value must satisfy, and the words that say so."""

    words: str
    accepts: Callable[[Any], bool]


POSITIVE = Check("a finite number > 0", lambda v: math.isfinite(v) and v > 0)
NON_NEGATIVE = Check("a finite number >= 0", lambda v: math.isfinite(v) and v >= 0)
FRACTION = Check("a number strictly between 0 and 1", lambda v: 0 < v < 1)
SHARE = Check("a number >= 0 and less than 1", lambda v: 0 <= v < 1)
UNIT = Check("a number from 0 to 1", lambda v: 0 <= v <= 1)
RATIO = Check("a number > 0 and at most 1", lambda v: 0 < v <= 1)
COUNT = Check("a whole number >= 1", lambda v: v >= 1)
SEVERAL = Check("a whole number >= 2", lambda v: v >= 2)
NATURAL = Check("a whole number >= 0", lambda v: v >= 0)
SEED = Check("a whole number from 0 to 4294967295", lambda v: 0 <= v < 2**32)


def knob(default: Any = MISSING, check: Check | None = None, *, traced: bool = False) -> Any:
    """Declare a dataclass field: its default, its allowed values, and whether it is traced.

    A list-valued default is given as a tuple; the check then applies to each element. ``None`` always passes (the
    field's type says whether it is allowed).
    """
    metadata = {"check": check, "traced": traced}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Knobs:
    """The recipe's own knobs, at the top level of the configuration. Units are in ``conf/config.yaml``."""

    recipe: Kind = knob(Kind.transfer)
    seed: int = knob(0, SEED, traced=True)
    lr_pre: float = knob(0.05, POSITIVE, traced=True)
    lr_fine: float = knob(0.05, POSITIVE, traced=True)
    pretrain_steps: int = knob(200, NATURAL)
    finetune_steps: int = knob(100, NATURAL)
    batch_size: int | None = knob(None, COUNT)
    log_every: int = knob(10, COUNT)


@dataclass(frozen=True)
class Study:
    """What changes no number: how a run is called, shown, resumed, and what is kept for the next."""

    name: str | None = knob(None)
    report: str | None = knob(None)
    progress: bool = knob(True)
    resume: Resume = knob(Resume.auto)
    cache: CacheMode = knob(CacheMode.use)
    cache_folder: str = knob("outputs/cache")
    cache_limit: float = knob(2000.0, NON_NEGATIVE)


def register_schema() -> None:
    """Give Hydra the types of the top-level keys, so that a wrong one is refused while the configuration is composed.

    The groups are typed when they are built (:func:`build`): each by the dataclass of the option that was chosen.
    """
    fields = [*dataclasses.fields(Knobs), *dataclasses.fields(Study)]
    hints = {**typing.get_type_hints(Knobs), **typing.get_type_hints(Study)}
    plain_fields = [(f.name, hints[f.name], f.default) for f in fields]
    groups = [(group, Any, OMITTED) for group in ROOMS]
    ConfigStore.instance().store(name="schema", node=dataclasses.make_dataclass("Config", [*plain_fields, *groups]))


def option_class(group: str, name: str) -> type:
    """Return the dataclass behind ``group=name``, for instance ``("strategy", "frozen")`` -> ``Frozen``.

    Raises:
        UserError: no such option; the allowed ones are listed.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if keyword.iskeyword(class_name):  # "None" cannot be the name of a class: it is NoRetention
        class_name = f"No{group.capitalize()}"
    module_name = ROOMS[group].format(name=name)
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
    """Return what a built option is called where each has a file of its own: like that file."""
    return type(option).__module__.rpartition(".")[2]


def build(group: str, node: DictConfig, key: str | None = None) -> Any:
    """Turn the node of a group into the frozen dataclass it describes, every value checked.

    Args:
        group: which room to look in, ``"optimizer"`` for instance.
        node: the composed node, with its ``name``.
        key: where the node lies in the configuration (default: ``group``); errors name it.

    Raises:
        UserError: unknown option or field, a value of the wrong type or outside what is allowed.
    """
    key = key or group
    cls = option_class(group, str(node.get("name")))
    values = {name: value for name, value in settings(node).items() if name != "name"}
    nested = {name: build(name, values.pop(name), f"{key}.{name}") for name in list(values) if is_option(values[name])}
    hints = typing.get_type_hints(cls)
    for name in [n for n in values if dataclasses.is_dataclass(hints.get(n)) and isinstance(values[n], DictConfig)]:
        nested[name] = typed(hints[name], settings(values.pop(name)), f"{key}.{name}")  # settings that belong together
    return typed(cls, values, key, **nested)


def settings(node: DictConfig) -> dict[str, Any]:
    """Return a node's values, interpolations resolved; options of groups stay nodes, missing values stay ``???``."""

    def value(name: str) -> Any:
        found = OMITTED if OmegaConf.is_missing(node, name) else node[name]
        return OmegaConf.to_container(found, resolve=True) if isinstance(found, ListConfig) else found

    return {str(name): value(str(name)) for name in node}


def is_option(value: Any) -> bool:
    """Tell whether a configuration value is itself an option of a group (``pretrain.optimizer``)."""
    return isinstance(value, DictConfig) and "name" in value


def typed(cls: type, values: Mapping[str, Any], key: str, **ready: Any) -> Any:
    """Make a ``cls`` from plain values with OmegaConf's conversion and the fields' own checks.

    Args:
        cls: a dataclass declared with :func:`knob`.
        values: what was configured.
        key: the values' place in the configuration, ``""`` at the top.
        ready: fields that are objects already, set as they are.

    Raises:
        UserError: unknown field, wrong type, or a value that its check refuses.
    """
    prefix = f"{key}." if key else ""
    hints = typing.get_type_hints(cls)
    plain_fields = [f for f in dataclasses.fields(cls) if f.name not in ready]
    names = [f.name for f in plain_fields]
    schema = dataclasses.make_dataclass(
        cls.__name__,
        [(f.name, hints[f.name], OMITTED if f.default is MISSING else f.default) for f in plain_fields],
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
    made = cls(**{str(k): _frozen(v) for k, v in dict(converted).items()}, **ready)  # type: ignore[call-overload]
    check_values(made, key)
    return made


def check_value(spec: Any, path: str, value: Any) -> None:
    """Apply to ``value`` the check of the field at a dotted path of a specification."""
    *above, name = path.split(".")
    for part in above:
        spec = getattr(spec, part)
    (f,) = (f for f in dataclasses.fields(spec) if f.name == name)
    _apply(f, value, path)


def check_values(spec: Any, key: str = "") -> None:
    """Apply each field's check; raises :class:`UserError` naming key, value and what is allowed."""
    for f in dataclasses.fields(spec):
        _apply(f, getattr(spec, f.name), f"{key}.{f.name}" if key else f.name)


def _apply(f: dataclasses.Field[Any], value: Any, full: str) -> None:
    check = f.metadata.get("check")
    for element in value if isinstance(value, tuple) else (value,):
        if check is not None and element is not None and not check.accepts(element):
            raise UserError(f"{full} is {value if isinstance(value, tuple) else element}; allowed: {check.words}")


def type_message(error: Exception, key: str = "") -> str:
    """Say OmegaConf's ``ValidationError`` in one sentence that names the whole key."""
    lines = str(error).splitlines()
    inside = next((line.split(":", 1)[1].strip() for line in lines if "full_key:" in line), "")
    return f"{'.'.join(part for part in (key, inside) if part)}: {lines[0].rstrip('.')}"


# --- traced and static halves of a specification -------------------------------------------------------------------


def hyperparameters(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Return the traced values of a specification by dotted path, nested dataclasses included.

    A traced field that is ``None`` is switched off, which is structure: it stays static.
    """
    return {path: getattr(owner, name) for path, owner, name in _traced_fields(spec, prefix)}


def bind(spec: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return ``spec`` with its traced fields replaced by ``values`` (arrays or tracers), by dotted path."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(spec):
        path, value = f"{prefix}{f.name}", getattr(spec, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = bind(value, values, f"{path}.")
        elif path in values:
            changes[f.name] = values[path]
    return dataclasses.replace(spec, **changes)


def static_part(spec: Any) -> Any:
    """Return ``spec`` with every traced value set to 0: what a compiled program depends on, hashable."""
    return bind(spec, dict.fromkeys(hyperparameters(spec), 0))


def _traced_fields(spec: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for f in dataclasses.fields(spec):
        value = getattr(spec, f.name)
        if dataclasses.is_dataclass(value):
            yield from _traced_fields(value, f"{prefix}{f.name}.")
        elif f.metadata.get("traced") and value is not None:
            yield f"{prefix}{f.name}", spec, f.name


def _frozen(value: Any) -> Any:
    """Return lists as tuples, so that a specification can be hashed."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
