"""LoRA and DoRA in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written.

PEFT stores ``lora_A (r, in)`` and ``lora_B (out, r)`` under the name that Hugging Face's class has for the module,
DoRA's magnitudes beside them, and some modules in full (``modules_to_save``: the head). A folder is data from outside:
nothing in it can run, and none of its paths is followed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError, listed
from ..models.base import head_paths
from ..models.layers import scale
from ..models.transformer import TIED, Transformer
from ..types import Params
from .adapters import LORA_PARAMS, A, B, LoraAdapter, check_base, check_modules, extract, fingerprint
from .architectures import ARCHITECTURES, fixed_outputs, model_tensor_names, param_shapes
from .huggingface import MAX_SIZE, Matched, list_tensors, misfits, read_checkpoint
from .huggingface_export import check_exportable
from .tensor_files import MAX_LISTED, Tensor, check_file, check_new_folder, misfit, read_json, write_json, write_tensors

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
MAGNITUDE = "dora_magnitude"
SUFFIXES = {".lora_A.weight": A, ".lora_B.weight": B, ".lora_magnitude_vector": MAGNITUDE}  # PEFT's name -> ours
TASK_TYPES = {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "spans": "QUESTION_ANS", "causal": "CAUSAL_LM"}

# Keys of adapter_config.json that are used here, and keys that do not affect the outputs. All others must be off.
USED = {"peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"}
USED |= {"use_rslora", "use_dora", "bias", "init_lora_weights"}
NO_EFFECT = {"auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout"}
NO_EFFECT |= {"fan_in_fan_out", "modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"}
NO_EFFECT |= {"megatron_core", "qalora_group_size", "runtime_config", "eva_config"}
# The others (pissa, olora, corda, loftq ...) change the base's kernels, so the adapter is not one of the plain base.
INIT_LORA_WEIGHTS = (True, False, "gaussian", "eva", "orthogonal")
NO_EFFECT |= {"loftq_config", "corda_config", "lora_ga_config"}  # of initialisations that are excluded above


class PeftAdapter(NamedTuple):
    """What fine-tuning under LoRA or DoRA learned."""

    lora: LoraAdapter
    magnitudes: Mapping[str, np.ndarray] = {}  # of DoRA: (out,) by module; empty: LoRA

    @property
    def adapter(self) -> LoraAdapter:
        """The LoRA adapter; a :class:`UserError` for DoRA, which also scales the kernels."""
        if self.magnitudes:
            raise UserError(
                "this is a DoRA adapter, which scales the kernels, so it is not a sum of low-rank changes; "
                "allowed: LoRA, or merging it into its base"
            )
        return self.lora

    def params(self) -> dict[str, np.ndarray]:
        """Return the parameters by path as a job has them, with the head; the scales are not included."""
        magnitudes = {f"{module}/{MAGNITUDE}": leaf for module, leaf in self.magnitudes.items()}
        return {**self.lora.params, **magnitudes, **self.lora.head}

    def merged_kernel(self, module: str, kernel: Any) -> Any:
        """Return a kernel with the change in it: ``W + s A B``, of DoRA ``m (W + s A B) / ||W + s A B||``.

        Computed in float64 and rounded once. Source: Liu et al., arXiv 2402.09353, equation 5.
        """
        whole = np.asarray(kernel, np.float64) + self.lora.delta_weight(module)
        if module in self.magnitudes:
            norms = np.linalg.norm(whole, axis=0)
            whole = whole * (self.magnitudes[module] / np.where(norms > 0, norms, 1.0))  # a column of zeros stays zero
        return whole.astype(kernel.dtype)


def extract_peft(
    params: Mapping[str, Any], model: Transformer, alpha: float, rank_stabilised: bool = False
) -> tuple[PeftAdapter, Params]:
    """Return what fine-tuning under LoRA or DoRA learned, and the base with the trained head; raises as ``extract``."""
    end = f"/{MAGNITUDE}"
    magnitudes = {path.removesuffix(end): np.asarray(leaf) for path, leaf in params.items() if path.endswith(end)}
    rest: Any = {path: leaf for path, leaf in params.items() if not path.endswith(end)}
    lora = extract(rest, head_paths(model, rest), alpha, rank_stabilised)
    if magnitudes and magnitudes.keys() != lora.factors.keys():
        raise UserError(f"the adapter is incomplete: {MAGNITUDE} is not beside every lora_a")
    return PeftAdapter(lora, magnitudes), {path: leaf for path, leaf in rest.items() if path not in lora.params}


def merge_peft(adapter: PeftAdapter, base: Mapping[str, Any]) -> Params:
    """Return the base with the change in its kernels, and the adapter's head; refuse another base."""
    check_base(adapter.lora, base)
    params = {**base, **adapter.lora.head}
    kernels = {f"{module}/kernel": module for module in adapter.lora.factors}
    return params | {path: adapter.merged_kernel(module, params[path]) for path, module in kernels.items()}


# --- adapter_config.json ---------------------------------------------------------------------------------------------


class LoraConfig(NamedTuple):
    """The keys of ``adapter_config.json`` that affect the outputs, under PEFT's names."""

    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]  # by regular expression on the end of a module's name
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    target_modules: tuple[str, ...]  # ends of names; empty: chosen by other keys

    def rank(self, module: str) -> int:
        """Return r of a module: of the first pattern that matches its name, else the common one."""
        return _of_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """Return s of a module."""
        alpha = _of_pattern(self.alpha_pattern, module, self.lora_alpha)
        return float(scale(alpha, self.rank(module), self.use_rslora))


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if re.fullmatch(_end(pattern), module)), default)


def _end(pattern: str) -> str:
    return rf"(?:.*\.)?(?:{pattern})"  # a whole name, or the end of it after a dot


def read_lora_config(path: Path, model: Transformer) -> LoraConfig:
    """Return what ``adapter_config.json`` says.

    Raises:
        UserError: another kind of adapter or task, an impossible value, or a key whose effect is not computed here.
    """
    config = read_json(path)
    tasks = {"FEATURE_EXTRACTION", TASK_TYPES.get(model.head_name)} - {None}
    allowed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "peft_type": (None, ("LORA",)),
        "task_type": (None, tuple(tasks) if config.get("task_type") else (None,)),
        "bias": ("none", ("none",)),
        "init_lora_weights": (True, INIT_LORA_WEIGHTS),
        "use_rslora": (False, (False, True)),
        "use_dora": (False, (False, True)),
    }
    for key, (default, values) in allowed.items():
        if (value := config.get(key, default)) not in values:
            raise UserError(f"'{path}': {key} is {value!r}; allowed: {listed(sorted(map(str, values)))}")
    if on := [key for key in config.keys() - USED - NO_EFFECT if config[key]]:
        raise UserError(f"'{path}' asks for {listed(sorted(on))}, which is not computed here; allowed: null or false")
    r, alpha, targets = config.get("r", 8), config.get("lora_alpha", 8), config.get("target_modules")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict):
            raise UserError(f"'{path}': {key} is {patterns!r}; allowed: numbers by regular expression")
        for pattern in patterns:
            try:
                re.compile(_end(pattern))
            except (re.error, RecursionError) as error:
                message = f"'{path}': {key} has '{pattern}', which is no regular expression ({error})"
                raise UserError(message) from error
    for key, value in (("r", r), *ranks.items()):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"'{path}': the rank of '{key}' is {value!r}; allowed: a whole number >= 1")
    for key, value in (("lora_alpha", alpha), *alphas.items()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_SIZE:
            raise UserError(f"'{path}': the alpha of '{key}' is {value!r}; allowed: a number of at most {MAX_SIZE}")
    chosen = any(config.get(key) is not None for key in ("exclude_modules", "layers_to_transform"))
    ends = tuple(map(str, targets)) if isinstance(targets, list) and not chosen else ()
    return LoraConfig(
        r, float(alpha), ranks, alphas, bool(config.get("use_rslora")), bool(config.get("use_dora")), ends
    )


# --- adapter_model.safetensors ---------------------------------------------------------------------------------------


def check_files(folder: Path) -> None:
    """Refuse a folder without PEFT's two files, and one whose tensors are pickled."""
    check_file(folder, CONFIG, "PEFT's")
    check_file(folder, WEIGHTS, "PEFT's", PICKLE)


def read_peft(folder: Path, model: Transformer, base: Mapping[str, Any] | None = None) -> PeftAdapter:
    """Read an adapter that PEFT, or :func:`write_peft`, wrote; the size of its head is taken from the folder.

    ``base`` holds the parameters that it changes; ``None``: those of ``model.checkpoint``.

    Raises:
        UserError: the files cannot be read, ask for what is not computed here, or do not fit: all faults are named.
    """
    check_files(folder)
    config = read_lora_config(folder / CONFIG, model)
    base = read_checkpoint(model) if base is None else base
    found: dict[str, Tensor] = {}
    for name, tensor in list_tensors([folder / WEIGHTS], PREFIX).items():
        short = name.removeprefix(ARCHITECTURES[model.architecture].prefix)
        if (other := found.setdefault(short, tensor)) is not tensor:
            raise UserError(f"the adapter has one tensor twice, as '{other.name}' and '{tensor.name}'")
    tensors, modules, faults = _match_tensors(found, model, config, base)
    if faults:
        raise UserError(f"'{folder}' does not fit this network: {listed(faults, MAX_LISTED)}")
    params = {path: tensor.read(transposed) for path, (tensor, transposed) in tensors.items()}
    if bad := [tensors[path][0].name for path, values in params.items() if not np.isfinite(values).all()]:
        raise UserError(
            f"'{folder}' has numbers that are not finite in {listed(bad, MAX_LISTED)}; allowed: finite ones"
        )
    factors = {module: (params[f"{module}/{A}"], params[f"{module}/{B}"]) for module in modules}
    magnitudes = {module: params[f"{module}/{MAGNITUDE}"] for module in modules if config.use_dora}
    head = {path: values for path, values in params.items() if not _is_added(path)}
    paths = tuple(sorted({*head, *head_paths(model, base)}))
    rank = max(a.shape[-1] for a, _ in factors.values())
    meta = {"alpha": config.lora_alpha, "rank": rank, "rank_stabilised": config.use_rslora}
    scaling = {ours: config.scaling(theirs) for ours, theirs in modules.items()}
    return PeftAdapter(LoraAdapter(factors, scaling, head, fingerprint(base, paths), paths, meta), magnitudes)


def _is_added(path: str) -> bool:
    """Return whether a parameter is a factor or a magnitude."""
    return path.rpartition("/")[2] in SUFFIXES.values()


def _match_tensors(
    found: Mapping[str, Tensor], model: Transformer, config: LoraConfig, base: Mapping[str, Any]
) -> tuple[Matched, dict[str, str], list[str]]:
    """Return a folder's tensors, PEFT's names of adapted modules by ours, and a sentence for all that does not fit."""
    table = ARCHITECTURES[model.architecture]
    names = {name.removeprefix(table.prefix): entry for name, entry in model_tensor_names(model).items()}
    head = {path: found[name] for name, (path, _) in names.items() if name in found}.get("classifier/kernel")
    outputs = head.shape[0] if head and len(head.shape) == 2 else 0
    shapes = param_shapes(model, fixed_outputs(model) or outputs or 1)
    names = {name: entry for name, entry in names.items() if entry[0] in shapes}
    tensors: Matched = {}
    modules: dict[str, str] = {}
    faults = []
    for name, tensor in found.items():
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        added = SUFFIXES.get(suffix)
        path, transposed = names.get(f"{name.removesuffix(suffix)}.weight" if added else name, ("", False))
        module, _, leaf = path.rpartition("/")
        if path and not added:
            tensors[path] = tensor, transposed
        elif leaf == "kernel" and added and (config.use_dora or added in LORA_PARAMS):
            tensors[f"{module}/{added}"] = tensor, added in LORA_PARAMS
            modules[module] = tensor.name.removeprefix(PREFIX).removesuffix(suffix)
        elif (original := table.tied.get(name)) not in names:
            faults.append(f"{tensor.name} is unexpected")
        elif not _equal(tensor, found.get(original), base.get(names[original][0])):  # type: ignore[arg-type]
            faults.append(f"{tensor.name} differs from {original}, to which the head is tied")
    faults += _factor_faults(tensors, modules, config, shapes)
    faults += [
        f"{original} is saved in full, and its copy {copy} is not"
        for copy, original in table.tied.items()
        if model.head_name in TIED and original in found and copy not in found
    ]
    faults += misfits(names, found, shapes)
    saved = {path.rpartition("/")[0] for path in tensors if not _is_added(path)}
    for name, (path, _) in names.items():
        module, _, leaf = path.rpartition("/")
        if path not in tensors and (path not in base or module in saved):
            faults.append(f"{name} is missing")
        targeted = any(f".{table.prefix}{name}".endswith(f".{end}.weight") for end in config.target_modules)
        if leaf == "kernel" and targeted and module not in modules and module not in saved:
            faults.append(f"{name.removesuffix('.weight')}.lora_A.weight is missing")
    return tensors, modules, faults


def _equal(copy: Tensor, original: Tensor | None, of_base: Any) -> bool:
    """Return whether a tied tensor equals its original, in the folder or else in the base."""
    other = of_base if original is None else original.read()
    return other is not None and not misfit(copy, False, other.shape) and np.array_equal(copy.read(), other)


def _factor_faults(
    tensors: Matched, modules: Mapping[str, str], config: LoraConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yield a sentence for each factor or magnitude that is missing or has another shape or type."""
    if not modules:
        yield "it has no lora_A and lora_B"
    for module, name in modules.items():
        inputs, outputs = shapes[f"{module}/kernel"]
        rank = config.rank(name)
        expected: dict[str, tuple[int, ...]] = {A: (inputs, rank), B: (rank, outputs), MAGNITUDE: (outputs,)}
        for suffix, ours in SUFFIXES.items():
            entry = tensors.get(f"{module}/{ours}")
            if entry is None and (config.use_dora or ours != MAGNITUDE):
                yield f"{name}{suffix} is missing"
            elif entry and (fault := misfit(*entry, expected[ours])):
                yield fault


# --- writing ---------------------------------------------------------------------------------------------------------


def write_peft(
    folder: Path,
    adapter: PeftAdapter | LoraAdapter,
    model: Transformer,
    base: Mapping[str, Any],
    base_name: str,
    *,
    dropout: float = 0.0,
) -> None:
    """Write an adapter of ``base`` as PEFT's ``save_pretrained`` would, with the head in full and its change merged.

    PEFT loads the base from ``base_name``: a folder, or a name on the Hugging Face Hub. ``dropout`` of the adapter's
    input is for further training.

    Raises:
        UserError: the network is not one of Hugging Face's, the adapter does not fit it, or the folder is not empty.
    """
    adapter = adapter if isinstance(adapter, PeftAdapter) else PeftAdapter(adapter)
    check_exportable(model)
    check_new_folder(folder)
    _check_fit(adapter, model, base)
    adapter = _merge_into_head(adapter)
    factors, saved = _to_tensors(adapter, model, base)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {PREFIX + name: leaf for name, leaf in (factors | saved).items()}, {"format": "pt"})
    names = {"base_model_name_or_path": base_name, "lora_dropout": dropout}
    write_json(folder / CONFIG, _to_config(adapter, model, saved) | names)


def _to_tensors(
    adapter: PeftAdapter, model: Transformer, base: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return factors with magnitudes, and what is saved in full, under PEFT's names without :data:`PREFIX`."""
    names, suffixes = model_tensor_names(model), {ours: suffix for suffix, ours in SUFFIXES.items()}
    theirs = {path: (name, transposed) for name, (path, transposed) in names.items()}
    factors, saved = {}, {}
    for path, leaf in adapter.params().items():
        module, _, last = path.rpartition("/")
        name, transposed = theirs[f"{module}/kernel" if last in suffixes else path]
        if last in suffixes:
            factors[name.removesuffix(".weight") + suffixes[last]] = leaf.T if last in LORA_PARAMS else leaf
        else:
            saved[name] = leaf.T if transposed else leaf
    # PEFT loads a module that is saved in full only with its copies of tied tensors.
    modules, table = _modules(saved), ARCHITECTURES[model.architecture]
    for copy, original in table.tied.items() if model.head_name in TIED else ():
        path = names[original if original in names else table.prefix + original][0]
        if path in adapter.lora.head or any(copy.startswith(f"{module}.") for module in modules):
            saved[copy] = np.array(adapter.lora.head.get(path, base[path]))
    return factors, saved


def _modules(saved: Iterable[str]) -> list[str]:
    """Return the outermost modules of tensors that are saved in full."""
    modules = sorted({name.rpartition(".")[0] for name in saved})
    return [module for module in modules if not any(module.startswith(f"{other}.") for other in modules)]


def _merge_into_head(adapter: PeftAdapter) -> PeftAdapter:
    """Return the adapter with its changes of kernels that are saved in full merged into these."""
    head, factors, magnitudes = dict(adapter.lora.head), dict(adapter.lora.factors), dict(adapter.magnitudes)
    for module in [module for module in factors if f"{module}/kernel" in head]:
        head[f"{module}/kernel"] = adapter.merged_kernel(module, head[f"{module}/kernel"])
        del factors[module]
        magnitudes.pop(module, None)
    return PeftAdapter(replace(adapter.lora, factors=factors, head=head), magnitudes)


def _check_fit(adapter: PeftAdapter, model: Transformer, base: Mapping[str, Any]) -> None:
    """Refuse an adapter of another network or base, one without its head, and one that changes only that."""
    lora = adapter.lora
    kernel = lora.head.get("classifier/kernel")
    shapes = param_shapes(model, fixed_outputs(model) or (1 if kernel is None else kernel.shape[-1]))
    lacking = [p for p in head_paths(model, shapes) if p not in lora.head and model.head_name not in TIED]
    if lacking:
        raise UserError(f"the adapter has no head: {listed(sorted(lacking))} missing; allowed: one with its head")
    if all(f"{module}/kernel" in lora.head for module in lora.factors):
        raise UserError("the adapter changes no kernel below the head; allowed: one with low-rank changes there")
    wrong = [path for path, leaf in lora.head.items() if shapes.get(path) != leaf.shape]
    outputs = {module: b.shape[-1:] for module, (_, b) in lora.factors.items()}
    wrong += [f"{module}/{MAGNITUDE}" for module, leaf in adapter.magnitudes.items() if leaf.shape != outputs[module]]
    if wrong:
        raise UserError(
            f"the adapter does not fit this network: {listed(wrong, MAX_LISTED)} of another shape, or absent"
        )
    check_modules(lora, {path: np.broadcast_to(0.0, shape) for path, shape in shapes.items()})
    check_base(lora, {**base, **lora.head})


def _to_config(adapter: PeftAdapter, model: Transformer, saved: Iterable[str]) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``: the commonest rank and alpha, and patterns of full names."""
    lora = adapter.lora
    theirs = {path: (name.removesuffix(".weight"), axes) for name, (path, axes) in model_tensor_names(model).items()}
    use_rslora = bool(lora.meta.get("rank_stabilised", False))
    ranks, alphas = {}, {}
    for module, rank in lora.ranks.items():
        name = theirs[f"{module}/kernel"][0]
        alpha = float(f"{lora.scaling[module] * (math.sqrt(rank) if use_rslora else rank):.12g}")  # 16, not 15.99...98
        ranks[name], alphas[name] = rank, int(alpha) if alpha.is_integer() else alpha
    (r, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(model.head_name),
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "target_modules": sorted(ranks),
        "modules_to_save": _modules(saved) or None,
        "fan_in_fan_out": not any(theirs[f"{module}/kernel"][1] for module in lora.factors),
        "bias": "none",
        "use_rslora": use_rslora,
        "use_dora": bool(adapter.magnitudes),
        "init_lora_weights": True,
    }
