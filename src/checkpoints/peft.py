"""LoRA and DoRA in PEFT's file format: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written.

PEFT stores ``lora_A (r, in)`` and ``lora_B (out, r)`` by the names that Hugging Face's class has for the module, DoRA's
magnitudes beside them, and some modules in full (``modules_to_save``: the head). The names are those of
``src/checkpoints/huggingface.py``. A folder is data from outside: nothing in it can run, and none of its paths is followed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors.numpy import save

from ..errors import UserError, listed
from ..files import atomic_write
from ..models.base import head_paths
from ..models.lowrank import scale
from ..models.transformer import TIED, Transformer
from ..types import Params
from .adapters import LEAVES, A, Adapter, B, check_base, check_modules, fingerprint, taken_apart
from .huggingface import (
    ARCHITECTURES,
    LARGEST,
    NUMBERS,
    SHOWN,
    Tensor,
    full_names,
    misshapen,
    parameter_shapes,
    read_checkpoint,
    read_json,
    tensors,
)
from .huggingface_export import check_class, check_empty

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROOT = "base_model.model."
MAGNITUDE = "dora_magnitude"
ENDS = {".lora_A.weight": A, ".lora_B.weight": B, ".lora_magnitude_vector": MAGNITUDE}  # theirs -> ours
TASKS = {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS", "spans": "QUESTION_ANS", "causal": "CAUSAL_LM", "masked": None}
TASKS |= {"pretraining": None}

# Of adapter_config.json: what is used here, and what says nothing about the outputs. Any other key must be off.
USED = {"peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"}
USED |= {"use_rslora", "use_dora", "bias", "init_lora_weights"}
SILENT = {"auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout"}
SILENT |= {"fan_in_fan_out", "modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"}
SILENT |= {"megatron_core", "qalora_group_size", "runtime_config", "eva_config"}
# Others (pissa, olora, corda, loftq ...) change the base's own kernels, so on the base as it was they mean nothing.
INITIAL = (True, False, "gaussian", "eva", "orthogonal")

T = TypeVar("T")


class Tuning(NamedTuple):
    """What fine-tuning under LoRA or DoRA learned."""

    lora: Adapter
    magnitudes: Mapping[str, np.ndarray] = {}  # of DoRA: (out,) by module; empty: a sum of low-rank changes only

    @property
    def adapter(self) -> Adapter:
        """The adapter that this is.

        Raises:
            UserError: DoRA, which is more than one.
        """
        if self.magnitudes:
            raise UserError(
                "this is a DoRA adapter, which scales what it adds to, so it is no sum of low-rank changes; "
                "allowed: LoRA, or merging it into its base"
            )
        return self.lora

    def params(self) -> dict[str, np.ndarray]:
        """Return the leaves by path as a job has them, with the head; the scales are not in them."""
        beside = {f"{module}/{MAGNITUDE}": leaf for module, leaf in self.magnitudes.items()}
        return {**self.lora.leaves, **beside, **self.lora.head}


def split(
    params: Mapping[str, Any], model: Transformer, alpha: float, rank_stabilised: bool = False
) -> tuple[Tuning, Params]:
    """Take what fine-tuning left apart: what it learned, and the base with the trained head.

    Raises:
        UserError: there is no LoRA in it, half of one, or other leaves beside it.
    """
    beside = {path.rpartition("/")[0]: leaf for path, leaf in params.items() if path.endswith(f"/{MAGNITUDE}")}
    pairs, base = taken_apart({path: leaf for path, leaf in params.items() if not path.endswith(f"/{MAGNITUDE}")})
    if not pairs:
        raise UserError("these parameters hold no adapter: no leaf is called lora_a or lora_b")
    if beside and beside.keys() != pairs.keys():
        raise UserError(f"the adapter is not whole: {MAGNITUDE} is not beside every lora_a")
    ranks = {module: a.shape[-1] for module, (a, _) in pairs.items()}
    scales = {module: scale(alpha, rank, rank_stabilised) for module, rank in ranks.items()}
    own = tuple(sorted(head_paths(model, base)))
    meta = {"alpha": alpha, "rank": max(ranks.values()), "rank_stabilised": rank_stabilised}
    head = {path: np.asarray(base[path]) for path in own}
    magnitudes = {module: np.asarray(leaf) for module, leaf in beside.items()}
    return Tuning(Adapter(pairs, scales, head, fingerprint(base, own), own, meta), magnitudes), base


def merged(tuning: Tuning, base: Mapping[str, Any]) -> Params:
    """Return the base with the change in its kernels: ``W + s A B``, of DoRA ``m (W + s A B) / ||W + s A B||``.

    Computed in float64 and rounded once. The head is the tuning's.

    Raises:
        UserError: another base, or modules that do not fit.
    """
    check_base(tuning.lora, base)
    params = {**base, **tuning.lora.head}
    return params | {f"{m}/kernel": _turned(tuning, m, params[f"{m}/kernel"]) for m in tuning.lora.deltas}


def _turned(tuning: Tuning, module: str, kernel: Any) -> Any:
    whole = np.asarray(kernel, np.float64) + tuning.lora.delta(module)
    if module in tuning.magnitudes:  # Liu et al., arXiv 2402.09353, equation 5; a column of zeros stays one
        lengths = np.linalg.norm(whole, axis=0)
        whole = whole * (tuning.magnitudes[module] / np.where(lengths > 0, lengths, 1.0))
    return whole.astype(kernel.dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What ``adapter_config.json`` says about the outputs."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]  # by regular expression on the end of a module's name
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    targets: tuple[str, ...]  # ends of names; empty: said otherwise

    def scale(self, module: str) -> float:
        """Return s of a module by its name: of the first pattern that matches, else the common one."""
        rank, alpha = of_pattern(self.ranks, module, self.rank), of_pattern(self.alphas, module, self.alpha)
        return float(scale(alpha, rank, self.rank_stabilised))


def of_pattern(patterns: Mapping[str, T], module: str, default: T) -> T:
    """Return the value of the first pattern that matches a name, or the end of it after a dot."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(_end(pattern), module)), default)


def _end(pattern: str) -> str:
    return rf"(?:.*\.)?(?:{pattern})"


def read_settings(path: Path, model: Transformer) -> Settings:
    """Return what ``adapter_config.json`` says.

    Raises:
        UserError: another kind of adapter or task, values that cannot be, or a setting that changes the outputs in a
            way that is not computed here.
    """
    config = read_json(path)
    wanted = {None, "FEATURE_EXTRACTION", TASKS[model.head_name]}
    allowed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "peft_type": (None, ("LORA",)),
        "task_type": (None, tuple(task for task in wanted if task) if config.get("task_type") else (None,)),
        "bias": ("none", ("none",)),
        "init_lora_weights": (True, INITIAL),
        "use_rslora": (False, (False, True)),
        "use_dora": (False, (False, True)),
    }
    for key, (default, values) in allowed.items():
        if (value := config.get(key, default)) not in values:
            raise UserError(f"'{path}': {key} is {value!r}; allowed: {listed(sorted(map(str, values)))}")
    if on := [key for key in config.keys() - USED - SILENT if config[key] and not _idle(key, config)]:
        raise UserError(f"'{path}' asks for {listed(sorted(on))}, which is not computed here; allowed: null or false")
    alpha, targets = config.get("lora_alpha", 8), config.get("target_modules")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    _check_numbers(path, {"r": config.get("r", 8)}, ranks, {"lora_alpha": alpha}, alphas)
    chosen = any(config.get(key) is not None for key in ("exclude_modules", "layers_to_transform"))
    ends = tuple(map(str, targets)) if isinstance(targets, list) and not chosen else ()
    flags = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    return Settings(config.get("r", 8), float(alpha), ranks, alphas, *flags, ends)


def _idle(key: str, config: Mapping[str, Any]) -> bool:
    """Tell whether a key belongs to a way of initialising that was not taken."""
    return key in ("loftq_config", "corda_config", "lora_ga_config") and config.get("init_lora_weights") in INITIAL


def _check_numbers(path: Path, rank: Mapping[str, Any], ranks: Any, alpha: Mapping[str, Any], alphas: Any) -> None:
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict):
            raise UserError(f"'{path}': {key} is {patterns!r}; allowed: numbers by regular expression")
        for pattern in patterns:
            try:
                re.compile(_end(pattern))
            except (re.error, RecursionError) as error:
                raise UserError(f"'{path}': {key} has '{pattern}', which is no regular expression ({error})") from error
    for key, value in (*rank.items(), *ranks.items()):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"'{path}': the rank of '{key}' is {value!r}; allowed: a whole number >= 1")
    for key, value in (*alpha.items(), *alphas.items()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise UserError(f"'{path}': the alpha of '{key}' is {value!r}; allowed: a number of at most {LARGEST}")


def weights_of(folder: Path) -> Path:
    """Return the file with an adapter's tensors.

    Raises:
        UserError: there is none, or only a pickle.
    """
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_file():
            continue
        if name == WEIGHTS and (folder / PICKLE).is_file():
            raise UserError(
                f"'{folder}' has {PICKLE} only, a pickle, which can run code when it is read; allowed: {WEIGHTS} "
                "(PEFT's save_pretrained writes it)"
            )
        raise UserError(f"'{folder}' holds no {name}; allowed: a folder that PEFT's save_pretrained wrote")
    return folder / WEIGHTS


def read_peft(folder: Path, model: Transformer, base: Mapping[str, Any] | None = None) -> Tuning:
    """Read an adapter that PEFT, or :func:`write_peft`, wrote.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: the network that it is for; the size of its head is taken from the folder.
        base: the parameters that it changes; ``None``: those of ``model.checkpoint``.

    Raises:
        UserError: the files cannot be read, ask for what is not computed here, or do not fit: all of it is named.
    """
    file = weights_of(folder)
    settings = read_settings(folder / CONFIG, model)
    found = _without_prefix(tensors([file], ROOT), ARCHITECTURES[model.architecture].prefix)
    base = read_checkpoint(model) if base is None else base
    content = _sorted(found, model, settings, base)
    if content.faults:
        raise UserError(f"'{folder}' does not fit this network: {listed(content.faults, SHOWN)}")
    read = {path: tensor.read() for path, tensor in content.tensors.items()}
    if bad := [content.tensors[path].name for path, values in read.items() if not np.isfinite(values).all()]:
        raise UserError(f"'{folder}' holds numbers that are not finite in {listed(bad, SHOWN)}; allowed: finite ones")
    read = {path: np.ascontiguousarray(v.T) if path in content.transposed else v for path, v in read.items()}
    deltas = {module: (read[f"{module}/{A}"], read[f"{module}/{B}"]) for module in content.modules}
    magnitudes = {m: read[f"{m}/{MAGNITUDE}"] for m in content.modules if settings.dora}
    head = {path: values for path, values in read.items() if path.rpartition("/")[2] not in (*LEAVES, MAGNITUDE)}
    paths = tuple(sorted({*head, *head_paths(model, base)}))
    ranks = [a.shape[-1] for a, _ in deltas.values()]
    meta = {"alpha": settings.alpha, "rank": max(ranks), "rank_stabilised": settings.rank_stabilised}
    scales = {ours: settings.scale(theirs) for ours, theirs in content.modules.items()}
    return Tuning(Adapter(deltas, scales, head, fingerprint(base, paths), paths, meta), magnitudes)


def _without_prefix(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    short: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if (other := short.setdefault(name.removeprefix(prefix), tensor)) is not tensor:
            raise UserError(f"the adapter has one tensor twice, as '{other.name}' and '{tensor.name}'")
    return short


class Content(NamedTuple):
    """Which tensor is which of our leaves."""

    tensors: dict[str, Tensor]  # by our path
    transposed: set[str]  # paths
    modules: dict[str, str]  # with a low-rank change: our module -> its name in the file
    faults: list[str]


def _sorted(found: Mapping[str, Tensor], model: Transformer, settings: Settings, base: Mapping[str, Any]) -> Content:
    """Sort a folder's tensors into factors and modules that are saved in full, and name everything that is wrong."""
    table = ARCHITECTURES[model.architecture]
    names = {name.removeprefix(table.prefix): entry for name, entry in full_names(model).items()}
    shapes = parameter_shapes(model, _outputs(found, model, names))
    names = {name: entry for name, entry in names.items() if entry[0] in shapes}
    content = Content({}, set(), {}, [])
    for name, tensor in found.items():
        end = next((end for end in ENDS if name.endswith(end)), None)
        path, transposed = names.get(name if end is None else name.removesuffix(end) + ".weight", ("", False))
        if path and end is None:
            content.tensors[path] = tensor
            content.transposed.update({path} if transposed else ())
        elif path.endswith("/kernel") and end is not None and (settings.dora or ENDS[end] in LEAVES):
            module = path.removesuffix("/kernel")
            content.tensors[f"{module}/{ENDS[end]}"] = tensor
            content.transposed.update({f"{module}/{ENDS[end]}"} if ENDS[end] in LEAVES else ())
            content.modules[module] = tensor.name.removeprefix(ROOT).removesuffix(end)
        elif (original := table.tied.get(name)) not in names:
            content.faults.append(f"{tensor.name} is unexpected")
        elif not _same(tensor, found.get(original), base.get(names[original][0])):  # type: ignore[arg-type]
            content.faults.append(f"{tensor.name} differs from {original}, to which the head is tied")
    content.faults.extend(_misfits(content, settings, shapes))
    content.faults.extend(
        f"{original} is saved in full, and its copy {copy} is not"
        for copy, original in table.tied.items()
        if model.head_name in TIED and original in found and copy not in found
    )
    content.faults.extend(misshapen({n: e for n, e in names.items() if n in found}, found, shapes))
    content.faults.extend(f"{name} is missing" for name in _missing(content, settings, names, base, table.prefix))
    return content


def _outputs(found: Mapping[str, Tensor], model: Transformer, names: Mapping[str, tuple[str, bool]]) -> int:
    """Return the number of outputs that the folder's head has; of a head that is missing, 1."""
    if model.head_name in TIED or model.head_name == "spans":
        return model.sizes.vocab_size if model.head_name in TIED else 2
    theirs = next(name for name, (path, _) in names.items() if path == "classifier/kernel")
    shape = found[theirs].shape if theirs in found else ()
    return shape[0] if len(shape) == 2 and shape[0] > 0 else 1


def _same(copy: Tensor, original: Tensor | None, of_base: Any) -> bool:
    """Tell whether a tensor is what the network takes from another place: of the folder, or else of the base."""
    other = of_base if original is None else original.read()
    return other is not None and copy.dtype in NUMBERS and np.array_equal(copy.read(), np.asarray(other))


def _misfits(content: Content, settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    """Yield what is wrong with the shapes of factors and magnitudes, and what lacks its other half."""
    if not content.modules:
        yield "it has no lora_A and lora_B"
    for module, name in content.modules.items():
        inputs, outputs = shapes[f"{module}/kernel"]
        rank = of_pattern(settings.ranks, name, settings.rank)
        wanted: dict[str, tuple[int, ...]] = {A: (rank, inputs), B: (outputs, rank)}
        wanted |= {MAGNITUDE: (outputs,)} if settings.dora else {}
        for end, leaf in ENDS.items():
            tensor = content.tensors.get(f"{module}/{leaf}")
            if leaf in wanted and tensor is None:
                yield f"{name}{end} is missing"
            elif tensor is not None and tensor.shape != wanted[leaf]:
                yield f"{name}{end} is {tensor.shape} instead of {wanted[leaf]}"
            elif tensor is not None and tensor.dtype not in NUMBERS:
                yield f"{name}{end} holds {tensor.dtype} instead of {listed(NUMBERS)}"


def _missing(
    content: Content,
    settings: Settings,
    names: Mapping[str, tuple[str, bool]],
    base: Mapping[str, Any],
    prefix: str,
) -> list[str]:
    """Return the names of what is nowhere: leaves of neither folder nor base, of half a module, of a target."""
    halves = {path.rpartition("/")[0] for path in content.tensors if path.rpartition("/")[2] not in ENDS.values()}
    missing = []
    for name, (path, _) in names.items():
        module, _, leaf = path.rpartition("/")
        if path not in content.tensors and (path not in base or module in halves):
            missing.append(name)
        ends = [f".{prefix}{name}".endswith(f".{end}.weight") for end in settings.targets]
        if leaf == "kernel" and any(ends) and module not in content.modules and module not in halves:
            missing.append(f"{name.removesuffix('.weight')}.lora_A.weight")
    return missing


# --- writing ---------------------------------------------------------------------------------------------------------


def write_peft(
    folder: Path,
    tuning: Tuning | Adapter,
    model: Transformer,
    base: Mapping[str, Any],
    name: str,
    dropout: float = 0.0,
) -> None:
    """Write an adapter as PEFT's ``save_pretrained`` would. The head is saved in full, with any change beside it.

    Args:
        folder: a new or an empty one.
        tuning: what was learned.
        model: the network that it is for.
        base: the parameters that it changes.
        name: of the checkpoint that holds them, which PEFT loads: a folder, or a name on the Hugging Face Hub.
        dropout: of the correction's input, for those who go on training.

    Raises:
        UserError: the network is none of Hugging Face's, the adapter does not fit it, or the folder holds something.
    """
    tuning = tuning if isinstance(tuning, Tuning) else Tuning(tuning)
    check_class(model)
    check_empty(folder)
    _check_fit(tuning, model, base)
    tuning = with_whole_head(tuning)
    factors, whole = to_tensors(tuning, model, base)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as file:
        # order="C", because safetensors writes a transposed array's memory as it lies: another array.
        leaves = {ROOT + key: np.asarray(leaf, order="C") for key, leaf in {**factors, **whole}.items()}
        file.write(save(leaves, {"format": "pt"}))
    config = to_config(tuning, model, whole) | {"base_model_name_or_path": name, "lora_dropout": dropout}
    with atomic_write(folder / CONFIG) as file:
        file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def to_tensors(
    tuning: Tuning, model: Transformer, base: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return factors and magnitudes, and what is saved in full, under PEFT's names below :data:`ROOT`."""
    theirs = {path: (name, transposed) for name, (path, transposed) in full_names(model).items()}
    factors, whole = {}, {}
    for path, leaf in tuning.params().items():
        module, _, own = path.rpartition("/")
        end = next((end for end, ours in ENDS.items() if ours == own), None)
        name, transposed = theirs[path if end is None else f"{module}/kernel"]
        if end is None:
            whole[name] = leaf.T if transposed else leaf
        else:
            factors[name.removesuffix(".weight") + end] = leaf.T if own in LEAVES else leaf
    # A module that is saved in full is saved with its copies of what lies elsewhere, or PEFT does not load it.
    names, modules = full_names(model), _modules(whole)
    table = ARCHITECTURES[model.architecture]
    for copy, original in table.tied.items() if model.head_name in TIED else ():
        path = names[original if original in names else table.prefix + original][0]
        if path in tuning.lora.head or any(copy.startswith(f"{module}.") for module in modules):
            whole[copy] = np.array(tuning.lora.head.get(path, base[path]))
    return factors, whole


def _modules(whole: Iterable[str]) -> list[str]:
    """Return the modules of tensors that are saved in full; one within another is saved with it."""
    modules = sorted({name.rpartition(".")[0] for name in whole})
    return [module for module in modules if not any(module.startswith(f"{other}.") for other in modules)]


def with_whole_head(tuning: Tuning) -> Tuning:
    """Return the tuning with changes beside kernels that are saved in full added to these."""
    lora = tuning.lora
    inside = [module for module in lora.deltas if f"{module}/kernel" in lora.head]
    head = {**lora.head, **{f"{m}/kernel": _turned(tuning, m, lora.head[f"{m}/kernel"]) for m in inside}}
    deltas = {module: pair for module, pair in lora.deltas.items() if module not in inside}
    magnitudes = {module: leaf for module, leaf in tuning.magnitudes.items() if module not in inside}
    return Tuning(Adapter(deltas, lora.scales, head, lora.base, lora.head_paths, lora.meta), magnitudes)


def _check_fit(tuning: Tuning, model: Transformer, base: Mapping[str, Any]) -> None:
    """Refuse an adapter of another network or base, one without its head, and one that changes only that."""
    lora = tuning.lora
    kernel = lora.head.get("classifier/kernel")
    shapes = parameter_shapes(model, _fixed(model) or (1 if kernel is None else kernel.shape[-1]))
    lacking = [p for p in head_paths(model, shapes) if p not in lora.head and model.head_name not in TIED]
    if lacking:
        raise UserError(f"the adapter brings no head: {listed(sorted(lacking))} missing; allowed: one with its head")
    if all(f"{module}/kernel" in lora.head for module in lora.deltas):
        raise UserError("the adapter changes no kernel below the head; allowed: one with low-rank changes there")
    wrong = [path for path, leaf in lora.head.items() if shapes.get(path) != leaf.shape]
    wrong += [f"{m}/{MAGNITUDE}" for m, leaf in tuning.magnitudes.items() if leaf.shape != lora.deltas[m][1].shape[-1:]]
    if wrong:
        raise UserError(f"the adapter does not fit this network: {listed(wrong, SHOWN)} of another shape or not in it")
    check_modules(lora, {path: np.broadcast_to(0.0, shape) for path, shape in shapes.items()})
    check_base(lora, {**base, **lora.head})


def _fixed(model: Transformer) -> int | None:
    """Return the outputs that a head always has."""
    return model.sizes.vocab_size if model.head_name in TIED else 2 if model.head_name == "spans" else None


def to_config(tuning: Tuning, model: Transformer, whole: Iterable[str]) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says: the commonest rank and alpha, and by full names where they differ."""
    lora = tuning.lora
    stabilised = bool(lora.meta.get("rank_stabilised", False))
    theirs = {
        path: (name.removesuffix(".weight"), transposed) for name, (path, transposed) in full_names(model).items()
    }
    names = {module: theirs[f"{module}/kernel"][0] for module in lora.deltas}
    ranks = {names[module]: rank for module, rank in lora.ranks.items()}
    alphas = {
        names[module]: _number(lora.scales[module] * (math.sqrt(rank) if stabilised else rank))
        for module, rank in lora.ranks.items()
    }
    (rank, _), (alpha, _) = (Counter(values.values()).most_common(1)[0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": TASKS[model.head_name],
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_modules": sorted(ranks),
        "modules_to_save": _modules(whole) or None,
        "fan_in_fan_out": not any(theirs[f"{module}/kernel"][1] for module in lora.deltas),
        "bias": "none",
        "use_rslora": stabilised,
        "use_dora": bool(tuning.magnitudes),
        "init_lora_weights": True,
    }


def _number(alpha: float) -> int | float:
    """Return an alpha without the rounding of its scale: 16, not 15.999999999999998."""
    rounded = float(f"{alpha:.12g}")
    return int(rounded) if rounded.is_integer() else rounded
