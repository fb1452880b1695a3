"""Checkpoints of Hugging Face, read: a folder with ``config.json`` and ``model.safetensors``, whole or in shards.

All of it is data from outside: sizes are checked, files outside the folder are never opened, and pickles are not read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from omegaconf import DictConfig

from ..config.hparams import static_part
from ..config.schema import build
from ..errors import UserError, listed
from ..models.base import CheckpointConfig, Checkpointed, Model
from ..models.projected import Wrapped
from ..models.transformer import TIED
from ..models.vision import MEAN, STD, Scaling, Vision, is_number
from ..notices import warn_once
from ..types import Params
from .architectures import (
    ARCHITECTURES,
    Architecture,
    NetworkModel,
    TensorNames,
    fixed_outputs,
    param_shapes,
    tensor_names,
    to_our_axes,
    to_torch_axes,
)
from .tensor_files import MAX_LISTED, Tensor, misfit, open_files, read_json

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"  # of images
DOWNLOADED = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors", "tokenizer.json", "tokenizer_config.json", PREPROCESSOR)
MAX_SIZE = 2**24  # of a size in config.json
MAX_SIZES = 32  # in a list

M = TypeVar("M", bound=Model)

# --- files -----------------------------------------------------------------------------------------------------------


def folder_of(checkpoint: str) -> Path:
    """Return the folder of a checkpoint; one on the Hugging Face Hub is downloaded unless its cache has it.

    Raises:
        UserError: there is no such folder, and the Hub does not provide it.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", checkpoint):
        raise UserError(f"model.checkpoint is '{checkpoint}', and there is no such folder")
    return _downloaded(checkpoint)


@functools.cache
def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.checkpoint is '{name}': there is no such folder, and the Hugging Face Hub does not provide it "
            f"({type(error).__name__}); allowed: a folder, or a name that the Hub or its local cache has"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors.

    Raises:
        UserError: there are none, they are pickled, or the index names files outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return shards(folder / INDEX)
    if (folder / PICKLE).is_file():
        raise UserError(
            f"'{folder}' has {PICKLE} only, a pickle, which can run code when it is read; "
            "allowed: model.safetensors (transformers' save_pretrained writes it)"
        )
    raise UserError(f"'{folder}' holds no {WEIGHTS}; allowed: a folder that transformers' save_pretrained wrote")


def shards(index: Path) -> list[Path]:
    """Return the files that a checkpoint's index names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"'{index}' names no files; allowed: an index with a weight_map")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise UserError(f"'{index}' names the file '{name}'; allowed: safetensors files beside it")
        if not index.with_name(name).is_file():
            raise UserError(f"'{index}' names the file '{name}', which does not exist")
    return [index.with_name(name) for name in files]


Stamp = tuple[tuple[str, int, int], ...]  # name, size and modification time of files


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Return a cache key that changes when the files do."""
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def fingerprint(model: Model) -> str | None:
    """Return 16 hexadecimal digits of a SHA-256 over a checkpoint's files and the code that reads them.

    ``None`` for a model without a checkpoint.

    Raises:
        UserError: the files cannot be read.
    """
    if not isinstance(model, Checkpointed) or model.checkpoint is None:
        return None
    folder = folder_of(model.checkpoint)
    files = weight_files(folder)
    read_json(folder / CONFIG)
    preprocessor = [folder / PREPROCESSOR] if (folder / PREPROCESSOR).is_file() else []
    code = [Path(__file__), Path(__file__).with_name("architectures.py")]
    return _digest(stamp_of([folder / CONFIG, *preprocessor, *files, *code]))


@functools.cache
def _digest(stamp: Stamp) -> str:
    digest = hashlib.sha256()
    for name, size, _ in stamp:
        with Path(name).open("rb") as file:
            digest.update(f"{Path(name).name} {size} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


# --- config.json and preprocessor_config.json ------------------------------------------------------------------------


def build_model(node: DictConfig) -> Any:
    """Return the model that a configuration describes, with its checkpoint's ``config.json`` read."""
    return load_config(build("model", node))


def load_config(model: M) -> M:
    """Return the model with the sizes of its checkpoint, and how its pixels are scaled; the weights are not read.

    A model without a checkpoint is returned as it is.

    Raises:
        UserError: the files cannot be read, describe another architecture or a variant that the network does not
            compute, or contradict the model's settings.
    """
    if not isinstance(model, Checkpointed) or model.checkpoint is None:
        return model
    network = read_config(model.architecture, model.checkpoint)
    needed = isinstance(model, Vision) and None in (model.mean, model.std)
    scaling = read_scaling(model.checkpoint) if needed else None
    loaded: Any = replace(model, checkpoint_config=CheckpointConfig(network, scaling))
    _ = loaded.sizes  # raises where the settings contradict the checkpoint
    return loaded


def read_config(architecture: str, checkpoint: str) -> Any:
    """Return the sizes in a checkpoint's ``config.json``, as the architecture's ``config_class``.

    Raises:
        UserError: another architecture, an impossible size, or a variant that the network does not compute.
    """
    path = folder_of(checkpoint) / CONFIG
    if not path.is_file():
        raise UserError(f"'{path.parent}' has no {CONFIG}; allowed: a folder that transformers' save_pretrained wrote")
    return _config(architecture, stamp_of([path]))


@functools.cache
def _config(architecture: str, stamp: Stamp) -> Any:
    path = Path(stamp[0][0])
    config, table = read_json(path), ARCHITECTURES[architecture]
    if (kind := config.get("model_type")) != architecture:
        other = f"; model={kind} reads it" if kind in ARCHITECTURES else ""
        raise UserError(f"'{path}' describes a model of type '{kind}', and the run has model={architecture}{other}")
    for key, allowed in table.required.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"'{path}': {key} is '{config[key]}'; allowed: {listed(map(str, allowed))}")
    sizes = {ours: config.get(theirs) for ours, theirs in table.config_keys.items()}
    if sizes.get("intermediate", 0) is None and isinstance(sizes["width"], int):
        sizes["intermediate"] = 4 * sizes["width"]
    for ours, value in sizes.items():
        theirs, default, least = table.config_keys[ours], table.config_class._field_defaults[ours], int(ours != "types")
        accepted, words = _accepts(value, default, least)
        if not accepted:
            words = listed(table.required[theirs]) if isinstance(default, str) else words
            raise UserError(f"'{path}': {theirs} is {value!r}; allowed: {words}")
    return table.config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()})


def _accepts(value: Any, default: Any, least: int) -> tuple[bool, str]:
    """Return whether ``config.json`` may give a size this value, by the type of its default, and what it may give."""
    whole = f"a whole number from {least} to {MAX_SIZE}"
    if isinstance(default, tuple):
        good = isinstance(value, list) and 0 < len(value) <= MAX_SIZES
        return good and all(
            _accepts(item, None, least)[0] for item in value
        ), f"a list of 1 to {MAX_SIZES}, each {whole}"
    if isinstance(default, float):
        return isinstance(value, float) and 0 < value < 1, "a number between 0 and 1"
    if isinstance(default, str):  # if it is there at all, it is one of the values that the table requires
        return isinstance(value, str), "text"
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIZE, whole


def read_scaling(checkpoint: str) -> Scaling:
    """Return the mean and standard deviation that a checkpoint's ``preprocessor_config.json`` gives pixels from 0 to 1.

    Raises:
        UserError: there is no such file, its numbers are impossible, or it does not divide pixels by 255.
    """
    path = folder_of(checkpoint) / PREPROCESSOR
    if not path.is_file():
        raise UserError(f"'{path.parent}' has no {PREPROCESSOR}, so model.mean and model.std must be given")
    config = read_json(path)
    factor = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) is not True or not is_number(factor) or not math.isclose(factor, 1 / 255):
        raise UserError(f"'{path}' does not divide pixels by 255; allowed: do_rescale with a rescale_factor of 1/255")
    if config.get("do_normalize", True) is False:
        return Scaling((0.0,), (1.0,))
    found = []
    for key, check in (("image_mean", MEAN), ("image_std", STD)):
        value = config.get(key)
        values: list[Any] = value if isinstance(value, list) else [value]
        if not values or not all(map(check.accepts, values)):
            raise UserError(f"'{path}': {key} is {value!r}; allowed: {check.description}")
        found.append(tuple(map(float, values)))
    return Scaling(*found)


# --- parameters ------------------------------------------------------------------------------------------------------


def read_initial(model: Model, outputs: int) -> Params:
    """Return the parameters, by path, that replace initial ones: a checkpoint's; ``{}`` where the model has none.

    Args:
        model: of a pre-training stage. A wrapped network's checkpoint is read without its head.
        outputs: of the stage's head.
    """
    network = model.model if isinstance(model, Wrapped) else model
    if not model.has_checkpoint or not isinstance(network, NetworkModel):
        return {}
    return read_checkpoint(network, None if isinstance(model, Wrapped) else outputs)  # type: ignore[return-value]


def read_checkpoint(model: NetworkModel, outputs: int | None = None) -> dict[str, np.ndarray]:
    """Return a checkpoint's parameters by path, as float32. The arrays are cached and shared, so they are read-only.

    The head is left out where the checkpoint has none, or one of another kind or size. A warning, given once, names
    what is not read and what keeps its initial values.

    Args:
        model: with a ``checkpoint``, as :func:`load_config` returns it.
        outputs: of the head; ``None``: it is left out, unless its size is the vocabulary's.

    Raises:
        UserError: the files cannot be read, or their tensors do not fit this network: all of them are named.
    """
    if model.checkpoint is None:
        raise UserError("model.checkpoint is null; allowed here: a folder or a name on the Hugging Face Hub")
    folder = folder_of(model.checkpoint)
    return dict(_read(static_part(model), outputs, stamp_of([folder / CONFIG, *weight_files(folder)])))


@functools.lru_cache(maxsize=2)
def _read(model: NetworkModel, outputs: int | None, stamp: Stamp) -> dict[str, np.ndarray]:
    config, *files = (Path(name) for name, _, _ in stamp)
    table = ARCHITECTURES[model.architecture]
    classes = read_json(config).get("architectures") or []
    found = without_aliases(table, model.head_name, list_tensors(files, table.prefix), classes)
    names, faults, notes = match_tensors(model, outputs, found, classes)
    if model.head_name in TIED:
        faults += untied(table, found)
    if faults:
        raise UserError(f"'{config.parent}' does not fit this network: {listed(faults, MAX_LISTED)}")
    if notes:
        warn_once(f"checkpoint '{config.parent}': {'; '.join(notes)}")
    return {path: _parameter(found[name], transposed) for name, (path, transposed) in names.items()}


def _parameter(tensor: Tensor, transposed: bool) -> np.ndarray:
    values = tensor.read()
    values = np.ascontiguousarray(values.transpose(to_our_axes(values.ndim))) if transposed else values
    values.flags.writeable = False
    return values


def list_tensors(files: Sequence[Path], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of files by their present names, without the trunk's prefix; gamma and beta are old names.

    Raises:
        UserError: a file is damaged or not safetensors, or two tensors have one name.
    """
    found: dict[str, Tensor] = {}
    for path, file in open_files(files):
        for name in file.keys():  # noqa: SIM118  (an open file, no dict)
            key = name.removeprefix(prefix)
            key = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))
            if key in found:
                raise UserError(f"'{path.parent}' has '{key}' twice, as '{found[key].name}' and '{name}'")
            part = file.get_slice(name)
            found[key] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
    return found


def without_aliases(
    table: Architecture, head: str, found: Mapping[str, Tensor], classes: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors by the table's names, where a class with this head calls some modules otherwise."""
    given = set(classes) & set(table.classes[head])
    names = {theirs: ours for cls in given for theirs, ours in table.aliases.get(cls, {}).items()}
    parts = {name: name.rpartition(".") for name in found}
    return {names.get(parts[name][0], parts[name][0]) + "".join(parts[name][1:]): found[name] for name in found}


def match_tensors(
    model: NetworkModel, outputs: int | None, found: Mapping[str, Tensor], classes: Sequence[str]
) -> tuple[TensorNames, list[str], list[str]]:
    """Return which tensors are read, a sentence for everything that does not fit, and notes on what is left out.

    Args:
        model: the network.
        outputs: of its head; ``None``: as in :func:`read_checkpoint`.
        found: the checkpoint's tensors.
        classes: the Hugging Face classes that it was saved from.
    """
    table, head = ARCHITECTURES[model.architecture], model.head_name
    shapes = param_shapes(model, outputs or fixed_outputs(model) or 2)
    with_head = outputs is not None or head in TIED

    def ours(modules: Any, blocks: Sequence[str] = ()) -> TensorNames:
        return {name: entry for name, entry in tensor_names(modules, blocks).items() if entry[0] in shapes}

    names, notes = ours(table.trunk, table.block_names(model.sizes)), []
    for part, modules in (("pooler", table.pooler), ("head", table.heads[head] if with_head else ())):
        own, reason = ours(modules), ""
        if part == "head" and (others := other_classes(table, head, classes)):
            reason = f"the file's is that of {listed(others)}"
        elif not found.keys() & own.keys():
            reason = "the file has none"
        elif part == "head" and (wrong := misfits(own, found, shapes)):
            reason = f"the file's has another size: {listed(wrong)}"
        if not reason:
            names |= own
        elif own:
            notes.append(f"the {part} keeps its initial values, {reason}")
    faults = [f"{name} is missing" for name in names if name not in found] + misfits(names, found, shapes)
    rest = [n for n in found if n not in names and n not in table.tied and not re.fullmatch(table.buffers, n)]
    faults += [f"{found[name].name} is unexpected" for name in rest if not re.fullmatch(table.ignored, name)]
    if ignored := sorted({name.split(".")[0] for name in rest if re.fullmatch(table.ignored, name)}):
        notes.append(f"not read: {listed(ignored)}")
    return names, faults, notes


def other_classes(table: Architecture, head: str, classes: Sequence[str]) -> list[str]:
    """Return the known classes that a checkpoint was saved from, if none of them has this head."""
    known = {name for own in table.classes.values() for name in own}
    return [] if set(classes) & set(table.classes[head]) else [name for name in classes if name in known]


def misfits(names: TensorNames, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return a sentence for each of these tensors that has another shape or type than its parameter."""
    wrong = []
    for name, (path, transposed) in names.items():
        if name in found:
            shape = shapes[path]
            shape = tuple(shape[axis] for axis in to_torch_axes(len(shape))) if transposed else shape
            wrong.append(misfit(found[name], shape))
    return [words for words in wrong if words]


def untied(table: Architecture, found: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each tensor that should be a copy of another and differs: the network has one for both."""
    return [
        f"{found[copy].name} differs from {found[original].name}, to which the head is tied"
        for copy, original in table.tied.items()
        if copy in found and original in found and not np.array_equal(found[copy].read(), found[original].read())
    ]
