"""LoRA adapters: extracted from fine-tuned parameters, added to their base, merged into it, and unmerged.

An adapter is a low-rank change of each adapted kernel, ``kernel + s A B`` (Hu et al. 2021, arXiv 2106.09685), with the
head that was trained beside it. It is valid only on the base that it was trained on, so it carries that base's
fingerprint. Everything here is NumPy on the host, computed in float64 and rounded once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array

from ..errors import UserError, listed
from ..models.base import ApplyOptions, ModuleCall
from ..models.layers import lowrank, scale
from ..types import Params
from .tensor_files import read_tensors, write_tensors

A, B = LORA_PARAMS = ("lora_a", "lora_b")  # beside a module's own kernel and bias
OWN_PARAMS = ("kernel", "bias")
FORMAT = "thaw-adapter-1"
MAX_NAMED = 40  # parameters in one sentence

Factors = tuple[np.ndarray, np.ndarray]  # A (in, r), B (r, out); of a convolution (kh, kw, in, r) and (1, 1, r, out)


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """Low-rank changes by module, and the head trained with them; complete and finite, or it cannot be made."""

    factors: Mapping[str, Factors]  # {"Dense_0": (A, B)}; ranks may differ from module to module
    scaling: Mapping[str, float]  # s of each module: alpha / r, or alpha / sqrt(r) if rank-stabilised
    head: Mapping[str, np.ndarray]  # parameters that are saved in full, by path; may be empty
    base: str  # the fingerprint of the parameters that it changes
    head_paths: tuple[str, ...] = ()  # the paths that the fingerprint leaves out, whether they are in `head` or not
    meta: Mapping[str, Any] = field(default_factory=dict)  # facts about its training that JSON can hold

    def __post_init__(self) -> None:
        wrong = [f"{module}: A {a.shape} and B {b.shape}" for module, (a, b) in self.factors.items() if not _fit(a, b)]
        wrong += [f"{module}: no scale" for module in self.factors if module not in self.scaling]
        wrong += [f"{path}: not one of the head's paths" for path in self.head if path not in self.head_paths]
        if wrong:
            raise UserError(f"the adapter is inconsistent: {listed(wrong, MAX_NAMED)}")
        bad = [path for path, leaf in {**self.params, **self.head}.items() if not np.isfinite(leaf).all()]
        bad += [f"the scale of {module}" for module in self.factors if not math.isfinite(self.scaling[module])]
        if bad:
            raise UserError(
                f"the adapter has numbers that are not finite in {listed(bad, MAX_NAMED)}; allowed: finite ones"
            )

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The factors by path, ``{"Dense_0/lora_a": A, ...}``, without the scales."""
        return {
            f"{m}/{name}": leaf for m, pair in self.factors.items() for name, leaf in zip((A, B), pair, strict=True)
        }

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module's change."""
        return {module: a.shape[-1] for module, (a, _) in self.factors.items()}

    def delta_weight(self, module: str) -> np.ndarray:
        """Return ``s A B`` of a module in its kernel's shape, as float64."""
        a, b = (np.asarray(factor, np.float64) for factor in self.factors[module])
        return self.scaling[module] * np.tensordot(a, b.reshape(b.shape[-2:]), 1)


def _fit(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ndim >= 2 and a.shape[-1] >= 1 and b.shape[:-1] == (1,) * (a.ndim - 2) + a.shape[-1:]


def fingerprint(base: Mapping[str, Any], exclude: Iterable[str] = ()) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the sorted (path, shape, dtype, bytes) of a base's parameters.

    An adapter's factors are skipped, and the paths in ``exclude``: those of the head, which belongs to the adapter.
    """
    digest, excluded = hashlib.sha256(), set(exclude)
    for path in sorted(path for path in base if path not in excluded and _name(path) not in LORA_PARAMS):
        leaf = np.asarray(base[path])
        digest.update(f"{path}{leaf.shape}{leaf.dtype.name}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()[:16]


# --- from and to parameters ------------------------------------------------------------------------------------------


def extract(
    params: Mapping[str, Any], head_paths: Iterable[str], alpha: float, rank_stabilised: bool = False
) -> LoraAdapter:
    """Take the adapter out of what ``strategy=lora`` left; parameters at ``head_paths`` were trained in full.

    Raises:
        UserError: ``params`` holds no adapter, an incomplete one, or one that is not a sum of low-rank changes.
    """
    factors, rest = split_adapter(params)
    if not factors:
        raise UserError("these parameters hold no adapter: none is called lora_a or lora_b")
    ranks = {module: a.shape[-1] for module, (a, _) in factors.items()}
    scaling = {module: float(scale(alpha, rank, rank_stabilised)) for module, rank in ranks.items()}
    head = {path: np.asarray(rest[path]) for path in sorted(set(head_paths) & rest.keys())}
    meta = {"alpha": alpha, "rank": max(ranks.values()), "rank_stabilised": rank_stabilised}
    return LoraAdapter(factors, scaling, head, fingerprint(rest, head), tuple(head), meta)


def add_adapter(adapter: LoraAdapter, base: Mapping[str, Any]) -> Params:
    """Return the base with the adapter beside its kernels, which :data:`LORA_OPTIONS` applies, and with its head.

    ``lora_b`` includes the scale. Another adapter's factors in ``base`` are replaced. Without a head of the adapter's
    the base keeps its own.

    Raises:
        UserError: another base, or modules that do not fit.
    """
    rest = split_adapter(base)[1]
    check_base(adapter, rest)
    added: dict[str, Any] = dict(adapter.head)
    for module, (a, b) in adapter.factors.items():
        added |= {f"{module}/{A}": a, f"{module}/{B}": scale_factor(adapter.scaling[module], b)}
    return rest | added


def merge(params: Mapping[str, Any], scaling: Mapping[str, float] | float = 1.0) -> Params:
    """Return the parameters with ``s A B`` added to the kernels, and no factors. Without factors they are unchanged.

    The scale s is 1 for what :func:`add_adapter` returns, since ``lora_b`` includes it.
    """
    factors, rest = split_adapter(params)
    scales = scaling if isinstance(scaling, Mapping) else dict.fromkeys(factors, scaling)
    adapter = LoraAdapter(factors, scales, {}, "")
    check_modules(adapter, rest)
    return _shifted(adapter, rest, 1.0)


def unmerge(params: Mapping[str, Any], adapter: LoraAdapter) -> Params:
    """Return merged parameters with the adapter's change subtracted from the kernels; the head stays the adapter's.

    Kernels come back to within rounding: about 1e-7 of their size in float32, 4e-3 in bfloat16.

    Raises:
        UserError: the parameters are not merged, or modules do not fit.
    """
    factors, rest = split_adapter(params)
    if factors:
        raise UserError(f"there is nothing to unmerge: lora_a and lora_b are beside {listed(factors)}")
    check_modules(adapter, rest)
    return _shifted(adapter, rest, -1.0)


def _shifted(adapter: LoraAdapter, params: Params, sign: float) -> Params:
    found: Any = dict(params)
    for module in adapter.factors:
        kernel = np.asarray(params[f"{module}/kernel"])
        shifted = kernel.astype(np.float64) + sign * adapter.delta_weight(module)
        found[f"{module}/kernel"] = shifted.astype(kernel.dtype)
    return found


def lora_call(ctx: ModuleCall) -> Array:
    """Return ``module(x) + (x A) B`` in the precision of ``module(x)``; see ``Strategy.wrap_call``."""
    outputs = ctx.call(ctx.x)
    return outputs + lowrank(ctx.module, ctx.x, ctx.params[A], ctx.params[B]).astype(outputs.dtype)


LORA_OPTIONS = ApplyOptions(adapter_params=frozenset(LORA_PARAMS), wrap_call=lora_call)  # for `add_adapter`'s results


# --- parts and checks ------------------------------------------------------------------------------------------------


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def split_adapter(params: Mapping[str, Any]) -> tuple[dict[str, Factors], Params]:
    """Return the factors (A, B) by module, and all other parameters.

    Raises:
        UserError: one factor of a pair is missing, or a module has other parameters beside them: then its change is
            not a sum of low-rank changes (DoRA scales the kernel).
    """
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in params if _name(path) in LORA_PARAMS))
    rest: Any = {path: leaf for path, leaf in params.items() if _name(path) not in LORA_PARAMS}
    missing = [f"{module}/{name}" for module in modules for name in LORA_PARAMS if f"{module}/{name}" not in params]
    if missing:
        raise UserError(f"the adapter is incomplete: {listed(missing, MAX_NAMED)} missing")
    others = [path for path in rest if path.rpartition("/")[0] in modules and _name(path) not in OWN_PARAMS]
    if others:
        raise UserError(
            f"{listed(others, MAX_NAMED)} beside lora_a and lora_b: the change is not a sum of low-rank changes, so it "
            "can be neither extracted nor merged as one"
        )
    return {m: (np.asarray(params[f"{m}/{A}"]), np.asarray(params[f"{m}/{B}"])) for m in modules}, rest


def scale_factor(factor: float, b: np.ndarray) -> np.ndarray:
    """Return ``factor * B`` in at least float32: bfloat16 would round it again, by up to 0.4 %."""
    if factor == 1.0:
        return b
    return (factor * np.asarray(b, np.float64)).astype(np.result_type(b.dtype, np.float32))


def check_base(adapter: LoraAdapter, base: Mapping[str, Any]) -> None:
    """Refuse modules that do not fit, and a base that the adapter was not trained on."""
    check_modules(adapter, base)
    if (found := fingerprint(base, adapter.head_paths)) != adapter.base:
        raise UserError(different_bases(adapter.base, found))


def different_bases(expected: str, found: str) -> str:
    """Return the sentence that refuses another base's fingerprint."""
    return (
        f"the adapter was trained on the base {expected}, and this is the base {found}; allowed: the same base, "
        "because a low-rank change is a difference from one set of weights"
    )


def check_modules(adapter: LoraAdapter, base: Mapping[str, Any]) -> None:
    """Refuse an adapter of kernels that do not exist or have other shapes; all are named."""
    wrong = []
    for module, (a, b) in adapter.factors.items():
        kernel, shape = base.get(f"{module}/kernel"), (*a.shape[:-1], b.shape[-1])
        if kernel is None:
            wrong.append(f"there is no {module}/kernel")
        elif tuple(kernel.shape) != shape:
            wrong.append(f"{module}/kernel is {tuple(kernel.shape)} and the adapter's {shape}")
    if wrong:
        raise UserError(f"the adapter does not fit these parameters: {listed(wrong, MAX_NAMED)}")


# --- files -----------------------------------------------------------------------------------------------------------


def save_adapter(adapter: LoraAdapter, path: Path) -> None:
    """Write an adapter as one safetensors file, with scales, fingerprint and facts as JSON in its metadata."""
    texts = {"scales": dict(adapter.scaling), "head_paths": list(adapter.head_paths), "meta": dict(adapter.meta)}
    metadata = {name: json.dumps(value) for name, value in texts.items()} | {"format": FORMAT, "base": adapter.base}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {**adapter.params, **adapter.head}, metadata)


def load_adapter(path: Path) -> LoraAdapter:
    """Read an adapter that :func:`save_adapter` wrote; a :class:`UserError` refuses other and damaged files."""
    leaves, metadata = read_tensors(path)
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(metadata["format"])
        scaling, head_paths, meta = (json.loads(metadata[name]) for name in ("scales", "head_paths", "meta"))
        factors = {module: (leaves[f"{module}/{A}"], leaves[f"{module}/{B}"]) for module in scaling}
        base = metadata["base"]
    except (KeyError, ValueError) as error:
        raise UserError(f"'{path}' is a safetensors file, but no adapter of the format {FORMAT}") from error
    head = {path: leaf for path, leaf in leaves.items() if _name(path) not in LORA_PARAMS}
    return LoraAdapter(factors, scaling, head, base, tuple(head_paths), meta)
