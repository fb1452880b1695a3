"""Composing the jobs of a sweep without paying Hydra's price for each.

Hydra reads every file and applies every override again for each job, 60 to 150 ms, even where two jobs differ in
nothing but a number. Here Hydra composes once for each distinct set of *structural* overrides (group choices, lists,
added keys); overrides that give a scalar to an existing key are applied to the result, with the same conversion and the
same errors. What lands in ``.hydra/`` is, byte for byte, what Hydra would have written: a test compares them.
"""

from __future__ import annotations

import copy
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

from ..config.identity import resolved

PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_.+-]*[/=][A-Za-z0-9_/.=,+-]*")  # text that YAML neither quotes nor folds
LONGEST_LINE = 60  # characters of an override; YAML folds long lines, by where they stand


class Composed(NamedTuple):
    """One job's configuration."""

    template: Template
    overrides: tuple[str, ...]
    values: dict[str, Any]  # the scalars that it gives, converted, by key
    config: dict[str, Any]  # the resolved task configuration, plain


class SweepComposer:
    """Stands in for Hydra's configuration loader while a sweep is composed.

    Sweepers validate each job by composing it through the loader; they get this one and need not know.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._groups = set(loader.list_groups(""))
        self._parsed: dict[str, Override] = {}
        self._templates: dict[tuple[str, ...], Template] = {}
        self._composed: dict[tuple[str, ...], Composed] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Check that a job can be composed (Hydra's interface); the result is for looking at, until the next call."""
        return self.compose(master_config, sweep_overrides).template.cfg

    def compose_fully(self, master_config: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Compose a job as Hydra does, for whoever needs a configuration of its own."""
        return self._loader.load_sweep_config(master_config, list(overrides))

    def compose(self, master_config: DictConfig, overrides: Sequence[str]) -> Composed:
        """Compose a job.

        Raises:
            ConfigCompositionException: as Hydra does, for a key that does not exist or a value of the wrong type.
        """
        job = tuple(overrides)
        if job not in self._composed:
            parsed = [self._parse(line) for line in job]
            form = tuple(f"{p.key_or_group}=" if self._gives_scalar(p) else p.input_line or "" for p in parsed)
            if form not in self._templates:
                cfg = self.compose_fully(master_config, job)
                self._templates[form] = Template(cfg, {p.key_or_group for p in parsed if self._gives_scalar(p)})
            self._composed[job] = self._templates[form].fill(job, [p for p in parsed if self._gives_scalar(p)])
        return self._composed[job]

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            (self._parsed[line],) = OverridesParser.create().parse_overrides([line])
        return self._parsed[line]

    def _gives_scalar(self, override: Override) -> bool:
        """Tell whether an override does nothing but give a scalar to a key that exists already."""
        key, line = override.key_or_group, override.input_line or ""
        plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        return (
            plain
            and key not in self._groups
            and not override.is_hydra_override()
            and "/" not in key
            and "${" not in line
            and len(line) <= LONGEST_LINE
            and isinstance(override.value(), (int, float, str, bool, type(None)))
        )


class Template:
    """What jobs that differ in scalars only have in common: a composed configuration and its YAML with gaps."""

    def __init__(self, cfg: DictConfig, keys: set[str]) -> None:
        self.cfg, self._keys = cfg, keys
        self._converted: dict[Any, Any] = {}
        self._resolved = resolved(cfg)
        self._interpolates = "${" in OmegaConf.to_yaml(_task(cfg))
        self._scalars: dict[Any, str] = {}
        plain: Any = OmegaConf.to_container(cfg, enum_to_str=True)
        hydra = {"hydra": plain.pop("hydra")}
        self.subdir = hydra["hydra"]["sweep"]["subdir"]
        self.dirname = hydra["hydra"]["job"]["config"]["override_dirname"]
        for key in keys:
            _put(plain, key, _gap(key))
        self._config_yaml = OmegaConf.to_yaml(plain)
        overrides = hydra["hydra"]["overrides"]["task"]
        hydra["hydra"]["overrides"]["task"] = [_gap(i) for i in range(len(overrides))]
        hydra["hydra"]["job"] |= {"override_dirname": _gap("dirname"), "id": _gap("id"), "num": _gap("num")}
        hydra["hydra"]["runtime"]["output_dir"] = _gap("folder")
        self._hydra_yaml = OmegaConf.to_yaml(hydra)

    def fill(self, job: tuple[str, ...], scalars: Sequence[Override]) -> Composed:
        """Return the job that gives these scalars."""
        values = {p.key_or_group: self._convert(p) for p in scalars}
        if self._interpolates:  # another key may refer to one of these
            for key, value in values.items():
                OmegaConf.update(self.cfg, key, value)
            return Composed(self, job, values, resolved(self.cfg))
        config = copy.copy(self._resolved)
        for key, value in values.items():
            _put(config, key, value, fresh=True)
        return Composed(self, job, values, config)

    def _convert(self, override: Override) -> Any:
        """Return an override's value as the configuration would hold it: ``1`` as 1.0 where a float belongs."""
        key = override.key_or_group
        value: Any = override.value()
        known = (key, type(value), value)
        if known not in self._converted:
            try:
                OmegaConf.update(self.cfg, key, value, merge=True)
            except OmegaConfBaseException as error:
                message = f"Error merging override {override.input_line}"
                raise ConfigCompositionException(message).with_traceback(sys.exc_info()[2]) from error
            parent, _, name = key.rpartition(".")
            node: Any = OmegaConf.select(self.cfg, parent) if parent else self.cfg
            only: Any = OmegaConf.to_container(OmegaConf.masked_copy(node, name), enum_to_str=True)
            self._converted[known] = only[name]
        return self._converted[known]

    def yaml_files(self, job: Composed, number: int, folder: str) -> dict[str, str]:
        """Return the three files of ``.hydra`` for a job, which its place in the sweep and its folder complete."""
        values = {_gap(key): self._scalar(key, value) for key, value in job.values.items()}
        lines = {_gap(i): self._scalar("hydra.overrides.task", line, item=True) for i, line in enumerate(job.overrides)}
        named = {
            "hydra.job.override_dirname": ("dirname", override_dirname(job.overrides, self.dirname)),
            "hydra.runtime.output_dir": ("folder", folder),
        }
        places = {_gap(gap): self._scalar(key, value) for key, (gap, value) in named.items()}
        places |= {_gap("id"): f"'{number}'", _gap("num"): str(number)}
        return {
            "config.yaml": _filled(self._config_yaml, values),
            "hydra.yaml": _filled(self._hydra_yaml, {**lines, **places}),
            "overrides.yaml": _items(job.overrides),
        }

    def _scalar(self, key: str, value: Any, item: bool = False) -> str:
        """Return a scalar's YAML as it stands under its key: how a long one is folded depends on that."""
        if isinstance(value, str) and PLAIN.fullmatch(value):
            return value
        known = (key, type(value), value)
        if known not in self._scalars:
            nested: Any = [value] if item else value
            for name in reversed(key.split(".")):
                nested = {name: nested}
            text = OmegaConf.to_yaml(nested)
            mark = "- " if item else f"{key.rpartition('.')[2]}: "
            self._scalars[known] = text[text.index(mark) + len(mark) :].removesuffix("\n")
        return self._scalars[known]


def override_dirname(overrides: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return Hydra's ``hydra.job.override_dirname`` for a job's overrides."""
    kept = sorted(line for line in overrides if line.split("=")[0].lstrip("+~") not in settings["exclude_keys"])
    return re.sub("[=]", settings["kv_sep"], settings["item_sep"].join(kept))


def _task(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _gap(name: Any) -> str:
    return f"gap<{name}>"  # no YAML quoting, and no configuration holds it


def _filled(text: str, gaps: Mapping[str, str]) -> str:
    for gap, value in gaps.items():
        text = text.replace(gap, value)
    return text


def _items(lines: Sequence[str]) -> str:
    """Return a list of texts as YAML."""
    if all(map(PLAIN.fullmatch, lines)):
        return "".join(f"- {line}\n" for line in lines)
    return OmegaConf.to_yaml(list(lines))


def _put(config: dict[str, Any], key: str, value: Any, fresh: bool = False) -> None:
    """Set a dotted key; with ``fresh``, the dictionaries on the way are copied first."""
    *above, name = key.split(".")
    for part in above:
        if fresh:
            config[part] = copy.copy(config[part])
        config = config[part]
    config[name] = value
