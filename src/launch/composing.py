"""Composes the jobs of a sweep; Hydra's own composition takes 60 to 150 ms for each job.

Here Hydra composes once for each distinct set of *structural* overrides (group choices, lists, added keys); overrides
that set an existing key to a scalar are applied to the result, with the same conversion and the same errors. The files
in ``.hydra/`` are, byte for byte, what Hydra would have written.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config.identity import resolved, without_hydra

UNQUOTED = re.compile(r"[A-Za-z/][A-Za-z0-9_.+-]*[/=][A-Za-z0-9_/.=,+-]*")  # text that YAML neither quotes nor folds
JOB_KEYS = ("hydra.job.override_dirname", "hydra.job.id", "hydra.job.num", "hydra.runtime.output_dir")
MAX_OVERRIDE_LENGTH = 60  # characters; where YAML folds a longer line depends on its position


class ComposedJob(NamedTuple):
    """One job's configuration."""

    composition: Composition
    overrides: tuple[str, ...]
    scalars: dict[str, Any]  # the scalars that its overrides set, converted, by key
    config: dict[str, Any]  # the resolved task configuration as plain data


class CachingConfigLoader:
    """Replaces Hydra's loader, through which sweepers compose each job to validate it."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._groups = set(loader.list_groups(""))
        self._compositions: dict[tuple[str, ...], Composition] = {}
        self._composed: dict[tuple[str, ...], ComposedJob] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Check that a job can be composed (Hydra's interface); the result is valid until the next call."""
        return self.compose(master_config, sweep_overrides).composition.cfg

    def compose_fully(self, master_config: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Compose a job as Hydra does; the caller owns the result."""
        return self._loader.load_sweep_config(master_config, list(overrides))

    def compose(self, master_config: DictConfig, overrides: Sequence[str]) -> ComposedJob:
        """Compose a job.

        Raises:
            ConfigCompositionException: as Hydra does, for a key that does not exist or a value of the wrong type.
        """
        job = tuple(overrides)
        if job not in self._composed:
            parsed = [_parse(line) for line in job]
            scalars = [override for override in parsed if self._sets_scalar(override)]
            structure = tuple(f"{p.key_or_group}=" if p in scalars else p.input_line or "" for p in parsed)
            if structure not in self._compositions:
                cfg = self.compose_fully(master_config, job)
                self._compositions[structure] = Composition(cfg, {override.key_or_group for override in scalars})
            self._composed[job] = self._compositions[structure].fill(job, scalars)
        return self._composed[job]

    def _sets_scalar(self, override: Override) -> bool:
        """Tell whether an override only sets an existing key to a scalar."""
        key, line = override.key_or_group, override.input_line or ""
        plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        return (
            plain
            and key not in self._groups
            and not override.is_hydra_override()
            and "/" not in key
            and "${" not in line
            and len(line) <= MAX_OVERRIDE_LENGTH
            and isinstance(override.value(), (int, float, str, bool, type(None)))
        )


@functools.cache
def _parse(line: str) -> Override:
    return OverridesParser.create().parse_overrides([line])[0]


class Composition:
    """What jobs that differ in scalars only share: a composed configuration and its YAML with placeholders."""

    def __init__(self, cfg: DictConfig, keys: set[str]) -> None:
        self.cfg = cfg
        self._converted: dict[Any, Any] = {}
        self._resolved = resolved(cfg)
        self._interpolates = "${" in OmegaConf.to_yaml(without_hydra(cfg))
        plain: Any = OmegaConf.to_container(cfg, enum_to_str=True)
        hydra = {"hydra": plain.pop("hydra")}
        self.subdir = hydra["hydra"]["sweep"]["subdir"]
        self.dirname = hydra["hydra"]["job"]["config"]["override_dirname"]
        for key in keys:
            _put(plain, key, _placeholder(key))
        self._config_yaml = OmegaConf.to_yaml(plain)
        for key in JOB_KEYS:
            _put(hydra, key, _placeholder(key))
        overrides = hydra["hydra"]["overrides"]
        overrides["task"] = [_placeholder(i) for i in range(len(overrides["task"]))]
        self._hydra_yaml = OmegaConf.to_yaml(hydra)

    def fill(self, job: tuple[str, ...], overrides: Sequence[Override]) -> ComposedJob:
        """Return the job with these scalars."""
        scalars = {override.key_or_group: self._convert(override) for override in overrides}
        if self._interpolates:  # another key may refer to one of these
            for key, value in scalars.items():
                OmegaConf.update(self.cfg, key, value)
            return ComposedJob(self, job, scalars, resolved(self.cfg))
        config = copy.copy(self._resolved)
        for key, value in scalars.items():
            _put(config, key, value, copy_parents=True)
        return ComposedJob(self, job, scalars, config)

    def _convert(self, override: Override) -> Any:
        """Return an override's value as the configuration would hold it: ``1`` as 1.0 for a float."""
        key = override.key_or_group
        value: Any = override.value()
        given = (key, type(value), value)
        if given not in self._converted:
            try:
                OmegaConf.update(self.cfg, key, value, merge=True)
            except OmegaConfBaseException as error:
                message = f"Error merging override {override.input_line}"
                raise ConfigCompositionException(message).with_traceback(sys.exc_info()[2]) from error
            parent, _, name = key.rpartition(".")
            node: Any = OmegaConf.select(self.cfg, parent) if parent else self.cfg
            only: Any = OmegaConf.to_container(OmegaConf.masked_copy(node, name), enum_to_str=True)
            self._converted[given] = only[name]
        return self._converted[given]

    def yaml_files(self, job: ComposedJob, number: int, folder: str) -> dict[str, str]:
        """Return the three files of ``.hydra`` for a job with its number in the sweep and its folder."""
        values = (override_dirname(job.overrides, self.dirname), str(number), number, folder)
        hydra = {key: _scalar(key, value) for key, value in zip(JOB_KEYS, values, strict=True)}
        items = {i: _scalar("hydra.overrides.task", line, item=True) for i, line in enumerate(job.overrides)}
        unquoted = all(map(UNQUOTED.fullmatch, job.overrides))
        lines = "".join(f"- {line}\n" for line in job.overrides)
        return {
            "config.yaml": _filled(self._config_yaml, {key: _scalar(key, v) for key, v in job.scalars.items()}),
            "hydra.yaml": _filled(self._hydra_yaml, {**hydra, **items}),
            "overrides.yaml": lines if unquoted else OmegaConf.to_yaml(list(job.overrides)),
        }


@functools.lru_cache(maxsize=None, typed=True)  # typed: 1 and 1.0 are equal
def _scalar(key: str, value: Any, item: bool = False) -> str:
    """Return a scalar's YAML at its key, on which the folding of a long text depends."""
    if isinstance(value, str) and UNQUOTED.fullmatch(value):
        return value
    nested: Any = [value] if item else value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    text = OmegaConf.to_yaml(nested)
    start = "- " if item else f"{key.rpartition('.')[2]}: "
    return text[text.index(start) + len(start) :].removesuffix("\n")


def override_dirname(overrides: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return Hydra's ``hydra.job.override_dirname`` for a job's overrides."""
    kept = sorted(line for line in overrides if line.split("=")[0].lstrip("+~") not in settings["exclude_keys"])
    return re.sub("[=]", settings["kv_sep"], settings["item_sep"].join(kept))


def _placeholder(name: Any) -> str:
    return f"gap<{name}>"  # YAML does not quote it, and no configuration contains it


def _filled(text: str, values: Mapping[Any, str]) -> str:
    for name, value in values.items():
        text = text.replace(_placeholder(name), value)
    return text


def _put(config: dict[str, Any], key: str, value: Any, copy_parents: bool = False) -> None:
    """Set a dotted key; with ``copy_parents``, the dictionaries above it are copied first."""
    *above, name = key.split(".")
    for part in above:
        if copy_parents:
            config[part] = copy.copy(config[part])
        config = config[part]
    config[name] = value
