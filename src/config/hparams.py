"""Hyperparameters: the allowed values of a dataclass field, and which fields are traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Check:
    """A condition on a value, and its description for error messages."""

    description: str
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


def hparam(default: Any = MISSING, check: Check | None = None, *, traced: bool = False) -> Any:
    """Declare a dataclass field as a hyperparameter.

    Args:
        default: the default value; a tuple for a list. Without one, the configuration must give a value.
        check: the allowed values; for a tuple, of each element. ``None`` passes if the field's type allows it.
        traced: whether the value is an argument of the compiled program, so that another value needs no compilation.
    """
    metadata = {"check": check, "traced": traced}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def check_values(spec: Any, key: str = "") -> None:
    """Apply each field's check; a :class:`UserError` contains key, value and what is allowed."""
    for f in dataclasses.fields(spec):
        value, check = getattr(spec, f.name), f.metadata.get("check")
        for element in value if isinstance(value, tuple) else (value,):
            if check is not None and element is not None and not check.accepts(element):
                raise UserError(f"{f'{key}.' if key else ''}{f.name} is {value}; allowed: {check.description}")


def hyperparameters(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Return a dataclass's traced values by dotted path; a traced field that is ``None`` is off, which is static."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(spec):
        path, value = f"{prefix}{f.name}", getattr(spec, f.name)
        if dataclasses.is_dataclass(value):
            values |= hyperparameters(value, f"{path}.")
        elif f.metadata.get("traced") and value is not None:
            values[path] = value
    return values


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
    """Return ``spec`` with every traced value set to 0: the part that a compiled program depends on, hashable."""
    return bind(spec, dict.fromkeys(hyperparameters(spec), 0))
