"""A LoRA adapter as a thing of its own: taken out of a fine-tuned model, put on its base, merged and taken off again.

An adapter is a sum of low-rank changes to kernels, ``kernel + s A B`` (Hu et al. 2021, arXiv 2106.09685), and the head
that was trained with it. It means something on the base that it was trained on only, so it carries that base's
fingerprint. Everything here is NumPy on the host, computed in float64 and rounded once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") known)
import numpy as np
from jaxtyping import Array

from ..errors import UserError, listed
from ..models.base import ApplyOptions, ModuleCall, same_bits
from ..models.lowrank import lowrank
from ..types import Params

A, B = LEAVES = ("lora_a", "lora_b")  # beside a module's own kernel and bias
OWN = ("kernel", "bias")

Pair = tuple[np.ndarray, np.ndarray]  # A (in, r) and B (r, out); of a convolution (kh, kw, in, r) and (1, 1, r, out)
Scales = float | Mapping[str, float]  # one for all modules, or one a module


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank changes by module, and the head trained with them. One that exists is whole and finite.

    Attributes:
        deltas: ``{"Dense_0": (A, B)}``; ranks may differ from module to module.
        scales: s of each module: ``alpha / r``, rank-stabilised ``alpha / sqrt(r)`` (:func:`scale`).
        head: leaves that are saved in full, by path; may be empty.
        base: :func:`fingerprint` of the parameters that it changes.
        head_paths: what that fingerprint leaves out, whether it is in ``head`` or not.
        meta: what JSON can say about its making: alpha, rank, ...
    """

    deltas: Mapping[str, Pair]
    scales: Mapping[str, float]
    head: Mapping[str, np.ndarray]
    base: str
    head_paths: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [
            *(f"{module}: A {a.shape} and B {b.shape}" for module, (a, b) in self.deltas.items() if not _fit(a, b)),
            *(f"{module}: no scale" for module in self.deltas if module not in self.scales),
            *(f"{path}: not among the head's paths" for path in self.head if path not in self.head_paths),
        ]
        if wrong:
            raise UserError(f"the adapter does not fit together: {listed(wrong, 40)}")
        leaves = {
            f"{m}/{name}": leaf for m, pair in self.deltas.items() for name, leaf in zip(LEAVES, pair, strict=True)
        }
        bad = [path for path, leaf in {**leaves, **self.head}.items() if not np.isfinite(leaf).all()]
        bad += [f"the scale of {module}" for module in self.deltas if not math.isfinite(self.scales[module])]
        if bad:
            raise UserError(f"the adapter holds numbers that are not finite in {listed(bad, 40)}; allowed: finite ones")

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """The factors by path, ``{"Dense_0/lora_a": A, ...}``, without the scales."""
        return {f"{m}/{name}": leaf for m, pair in self.deltas.items() for name, leaf in zip(LEAVES, pair, strict=True)}

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module's change."""
        return {module: a.shape[-1] for module, (a, _) in self.deltas.items()}

    def delta(self, module: str) -> np.ndarray:
        """Return ``s A B`` of a module in its kernel's shape, as float64."""
        return self.scales[module] * product(*self.deltas[module])


def _fit(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ndim >= 2 and a.shape[-1] >= 1 and b.shape[:-1] == (1,) * (a.ndim - 2) + a.shape[-1:]


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``A B`` in the kernel's shape, contracted over r, as float64."""
    return np.tensordot(np.asarray(a, np.float64), np.asarray(b, np.float64).reshape(b.shape[-2:]), 1)


def fingerprint(base: Mapping[str, Any], exclude: Iterable[str] = ()) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the sorted (path, shape, dtype, bytes) of the leaves.

    Args:
        base: parameters and batch statistics; leaves of adapters count for nothing.
        exclude: paths of the head, which belongs to the adapter.
    """
    digest, left_out = hashlib.sha256(), set(exclude)
    for path in sorted(path for path in base if path not in left_out and _name(path) not in LEAVES):
        leaf = np.asarray(base[path])
        digest.update(f"{path}{leaf.shape}{leaf.dtype.name}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()[:16]


def extract(
    params: Mapping[str, Any],
    scales: Scales,
    head_paths: Iterable[str],
    base: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Adapter:
    """Take the adapter out of fine-tuned parameters.

    Args:
        params: the base with leaves ``lora_a`` and ``lora_b`` beside kernels, and the trained head.
        scales: s.
        head_paths: the leaves that were trained in full.
        base: what fine-tuning began with, to be checked against; ``None``: ``params`` is believed to hold it.
        meta: see :class:`Adapter`.

    Raises:
        UserError: there is no adapter in ``params``, half of one, one that is more than a sum of deltas, or a leaf of
            the base that moved.
    """
    pairs, rest = taken_apart(params)
    if not pairs:
        raise UserError("these parameters hold no adapter: no leaf is called lora_a or lora_b")
    paths = tuple(sorted(set(head_paths) & rest.keys()))
    if base is not None:
        kept = {path: leaf for path, leaf in base.items() if _name(path) not in LEAVES}
        moved = [p for p in sorted({*rest, *kept} - set(paths)) if not same_bits(rest.get(p), kept.get(p))]
        if moved:
            raise UserError(
                f"fine-tuning changed the base in {listed(moved, 40)}; an adapter holds low-rank changes and the head, "
                "so name these leaves among the head's paths"
            )
    head = {path: np.asarray(rest[path]) for path in paths}
    return Adapter(pairs, _by_module(scales, pairs), head, fingerprint(rest, paths), paths, dict(meta or {}))


def apply(adapter: Adapter, base: Mapping[str, Any]) -> Params:
    """Return the base with the adapter on a side path, as :data:`SIDE` runs it, and with the adapter's head.

    The scale is in ``lora_b``. Another adapter's leaves in ``base`` are left out, so applying is swapping; a head that
    the adapter does not bring stays as it is.

    Raises:
        UserError: another base, or modules that do not fit.
    """
    rest = taken_apart(base)[1]
    check_base(adapter, rest)
    added: dict[str, Any] = dict(adapter.head)
    for module, (a, b) in adapter.deltas.items():
        added |= {f"{module}/{A}": a, f"{module}/{B}": times(adapter.scales[module], b)}
    return rest | added


def merge(params: Mapping[str, Any], scales: Scales = 1.0) -> Params:
    """Return the parameters with ``s A B`` added to the kernels and no side path left.

    Parameters without one are returned as they are, so merging twice changes nothing.

    Args:
        params: what :func:`apply` returns, or what fine-tuning under LoRA left.
        scales: s; 1 for what :func:`apply` returns, where it is in ``lora_b`` already.

    Raises:
        UserError: the leaves fit no kernel, or are not finite.
    """
    pairs, rest = taken_apart(params)
    adapter = Adapter(pairs, _by_module(scales, pairs), {}, "")
    check_modules(adapter, rest)
    return rest | _moved(adapter, rest, 1.0)


def unmerge(params: Mapping[str, Any], adapter: Adapter) -> Params:
    """Return merged parameters with the adapter's deltas taken off again; the head stays the adapter's.

    Kernels come back to within rounding: about 1e-7 of their size in float32, 4e-3 in bfloat16. Keep the base where
    that matters.

    Raises:
        UserError: the parameters are not merged, or modules do not fit.
    """
    pairs, rest = taken_apart(params)
    if pairs:
        raise UserError(f"there is nothing to unmerge: the adapter is on a side path beside {listed(pairs)}")
    check_modules(adapter, rest)
    return rest | _moved(adapter, rest, -1.0)


def beside(ctx: ModuleCall) -> Array:
    """Return ``module(x) + (x A) B`` in the precision of ``module(x)``; see ``Strategy.wrap_call``."""
    outputs = ctx.call(ctx.x)
    return outputs + lowrank(ctx.module, ctx.x, ctx.params[A], ctx.params[B]).astype(outputs.dtype)


SIDE = ApplyOptions(adapter_params=frozenset(LEAVES), wrap_call=beside)  # how a model runs what `apply` returns


# --- what these share ----------------------------------------------------------------------------------------------


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def taken_apart(params: Mapping[str, Any]) -> tuple[dict[str, Pair], Params]:
    """Return the pairs (A, B) by module, and everything else.

    Raises:
        UserError: half a pair, or a module with other leaves beside its pair: such a change is no sum of deltas (DoRA
            scales what it adds to).
    """
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in params if _name(path) in LEAVES))
    rest: Any = {path: leaf for path, leaf in params.items() if _name(path) not in LEAVES}
    halves = [f"{module}/{name}" for module in modules for name in LEAVES if f"{module}/{name}" not in params]
    if halves:
        raise UserError(f"the adapter is not whole: {listed(halves, 40)} missing")
    more = [path for path in rest if path.rpartition("/")[0] in modules and _name(path) not in OWN]
    if more:
        raise UserError(
            f"{listed(more, 40)} beside lora_a and lora_b: this is more than a sum of low-rank deltas, so it can be "
            "neither extracted nor merged as one"
        )
    return {m: (np.asarray(params[f"{m}/{A}"]), np.asarray(params[f"{m}/{B}"])) for m in modules}, rest


def _by_module(scales: Scales, modules: Iterable[str]) -> dict[str, float]:
    if isinstance(scales, Mapping):
        return {module: float(s) for module, s in scales.items()}
    return {module: float(scales) for module in modules}


def ranks(params: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of the side path beside each module that has one."""
    return {module: a.shape[-1] for module, (a, _) in taken_apart(params)[0].items()}


def check_base(adapter: Adapter, base: Mapping[str, Any]) -> None:
    """Refuse a base that the adapter was not trained on, all that does not fit at once."""
    check_modules(adapter, base)
    if (found := fingerprint(base, adapter.head_paths)) != adapter.base:
        raise UserError(another_base(adapter.base, found))


def another_base(expected: str, found: str) -> str:
    """Say why two fingerprints cannot go together."""
    return (
        f"the adapter was trained on the base {expected}, this is the base {found}; a low-rank change is a difference "
        "from one set of weights, so blending across bases is undefined"
    )


def check_modules(adapter: Adapter, base: Mapping[str, Any]) -> None:
    """Refuse modules that are not there and kernels of other shapes, all at once."""
    wrong = []
    for module, (a, b) in adapter.deltas.items():
        kernel, shape = base.get(f"{module}/kernel"), (*a.shape[:-1], b.shape[-1])
        if kernel is None:
            wrong.append(f"there is no {module}/kernel")
        elif tuple(kernel.shape) != shape:
            wrong.append(f"{module}/kernel is {tuple(kernel.shape)} and the adapter's {shape}")
    if wrong:
        raise UserError(f"the adapter does not fit these parameters: {listed(wrong, 40)}")


def times(factor: float, b: np.ndarray) -> np.ndarray:
    """Return ``factor * B``, of at least float32: bfloat16 would round each factor anew, by up to 0.4 %."""
    if factor == 1.0:
        return b
    return (factor * np.asarray(b, np.float64)).astype(np.result_type(b.dtype, np.float32))


def _moved(adapter: Adapter, params: Mapping[str, Any], sign: float) -> dict[str, Any]:
    moved = {}
    for module in adapter.deltas:
        kernel = np.asarray(params[f"{module}/kernel"])
        added = kernel.astype(np.float64) + sign * adapter.delta(module)
        moved[f"{module}/kernel"] = added.astype(kernel.dtype)
    return moved
