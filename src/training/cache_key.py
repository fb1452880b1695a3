"""Keys of the stage cache: hashes of everything that decides the numbers of a stage."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from ..config.hparams import static_part
from ..environment import PACKAGE, PACKAGE_DIR, code_digest, versions
from ..store import key_of
from .stage import Stage, traced

FORMAT = 2  # of an entry's content
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def stage_key(stage: Stage, data_fingerprint: str, extra: Mapping[str, Any] = {}) -> str:
    """Return the key of a stage: a hash of its fields, the source files that it runs, the data and the libraries.

    Traced values count as the arrays that the programs take, so ``0.05`` and ``np.float32(0.05)`` are one rate. Static
    values count exactly: Adam computes ``1 - b2`` in float64, before it is compiled.

    Args:
        stage: its fields are plain values, enums and dataclasses of such.
        data_fingerprint: of the rows that it learns from.
        extra: what else decides the bits, as JSON; at least the kind of device, since devices round differently.

    Raises:
        TypeError: a field that is no plain value, or a class without a source file: neither has a lasting name.
    """
    arrays = {path: [array.dtype.name, array.tobytes().hex()] for path, array in traced(stage).items()}
    loop = PACKAGE_DIR / "training" / "loop.py"
    description = {
        "stage": _described(static_part(stage)),
        "freeze_impl": stage.strategy.freeze_impl.name,
        "traced": arrays,
        "code": code_digest(source_files(stage, loop)),
    }
    return _key(description, data_fingerprint, extra)


def finding_key(what: Any, params: Mapping[str, Any], data_fingerprint: str, extra: Mapping[str, Any] = {}) -> str:
    """Return the key of something that was computed about a stage's parameters, such as their Fisher information.

    The parameters count by their bits, not by their stage: the same stage, computed in another way, rounds differently.

    Args:
        what: a dataclass that says what was computed, without traced fields.
        params: flat.
        data_fingerprint: of the rows that it was computed from.
        extra: as in :func:`stage_key`.

    Raises:
        TypeError: as in :func:`stage_key`.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in params.items()}
    bits = {path: [a.dtype.name, a.shape, hashlib.sha256(a.tobytes()).hexdigest()] for path, a in arrays.items()}
    description = {"finding": _described(what), "params": bits, "code": code_digest(source_files(what))}
    return _key(description, data_fingerprint, extra)


def _key(description: Mapping[str, Any], data_fingerprint: str, extra: Mapping[str, Any]) -> str:
    libraries = {name: versions()[name] for name in LIBRARIES}
    always = {"format": FORMAT, "data": data_fingerprint, "versions": libraries, "extra": dict(extra)}
    return key_of({**description, **always})


def stage_label(stage: Stage) -> str:
    """Return a description for people: ``"Mlp(widths=8, activation=relu), Regression, Sgd, lr 0.05, ..."``."""
    values = {f.name: getattr(stage.model, f.name) for f in dataclasses.fields(stage.model) if f.repr}
    model = ", ".join(f"{name}={_short(value)}" for name, value in values.items() if value is not None)
    names = [type(part).__name__ for part in (stage.objective, stage.optimizer)]
    rate = f"lr {np.float32(stage.lr):.6g}"
    return ", ".join(
        [f"{type(stage.model).__name__}({model})", *names, rate, f"{stage.steps} steps", f"seed {stage.seed}"]
    )


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_short, value))
    return value.name if isinstance(value, Enum) else str(value)


def _described(value: Any) -> Any:
    """Return a specification as JSON, classes and enums by name."""
    if dataclasses.is_dataclass(value):
        values = {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": _qualified(type(value)), "fields": values}
    if isinstance(value, Enum):
        return {"enum": _qualified(type(value)), "name": value.name}
    if isinstance(value, (tuple, list)):
        return [_described(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value  # JSON writes a float as the shortest decimal that gives the same bits back
    raise TypeError(f"a stage with {value!r} in it has no lasting name: only plain values, enums and dataclasses have")


def _qualified(cls: type) -> str:
    """Return a class's name; the same in a checkout and in a wheel."""
    return f"{cls.__module__.removeprefix(f'{PACKAGE}.')}.{cls.__qualname__}"


# --- the source files that a specification runs ----------------------------------------------------------------------


def source_files(specification: Any, *more: Path) -> set[Path]:
    """Return the source files that a stage, or a finding, runs.

    These are the files of its objects' classes and their bases, ``more`` of them (a stage's loop), and what these files
    import of this package, directly or not. Files that only others use (scripts, data, analysis) are not among them.
    """
    waiting = {Path(file) for cls in _classes(specification) for file in _file_of(cls)} | set(more)
    found: set[Path] = set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= _imports(file) - found
    return found


def _classes(value: Any) -> Iterator[type]:
    """Yield the classes, bases included, of a specification's dataclasses and enums."""
    if dataclasses.is_dataclass(value) or isinstance(value, Enum):
        yield from type(value).__mro__
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _classes(getattr(value, f.name))


def _file_of(cls: type) -> Iterator[str]:
    if cls.__module__.partition(".")[0] in sys.stdlib_module_names:
        return
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        raise TypeError(f"{_qualified(cls)} has no source file, so what it computes has no lasting name")
    yield file


@functools.cache
def _imports(file: Path) -> frozenset[Path]:
    """Return the files of this package that a file imports, read once per process."""
    if not file.is_relative_to(PACKAGE_DIR):
        return frozenset()  # another package counts by its version
    nodes = ast.walk(ast.parse(file.read_bytes()))
    return frozenset(found for node in nodes for found in _imported(node, file))


def _imported(node: ast.AST, file: Path) -> Iterator[Path]:
    """Yield the files that an import statement names; ``from a import b`` may mean ``a/b.py``."""
    if isinstance(node, ast.Import):
        places = [PACKAGE_DIR.parent.joinpath(*alias.name.split(".")) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        start = file.parents[node.level - 1] if node.level else PACKAGE_DIR.parent
        place = start.joinpath(*(node.module or "").split("."))
        places = [place, *(place / alias.name for alias in node.names)]
    else:
        return
    for place in places:
        candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
        yield from (path for path in candidates if path.is_relative_to(PACKAGE_DIR) and path.is_file())
