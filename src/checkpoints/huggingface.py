"""Checkpoints of Hugging Face, read: a folder with ``config.json`` and ``model.safetensors``, whole or in shards.

All of it is data from outside: sizes are checked, files outside the folder are never opened, and pickles are not read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
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
from .architectures import ARCHITECTURES, NetworkModel, TensorNames, fixed_outputs, param_shapes, tensor_names
from .tensor_files import MAX_LISTED, Tensor, check_file, misfit, open_files, read_json

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"  # of images
DOWNLOADED = (CONFIG, WEIGHTS, INDEX, "model-*.safetensors", "tokenizer.json", "tokenizer_config.json", PREPROCESSOR)
MAX_SIZE = 2**24  # of a size in config.json
MAX_SIZES = 32  # in a list

M = TypeVar("M", bound=Model)

# --- files -----------------------------------------------------------------------------------------------------------


def folder_of(checkpoint: str) -> Path:
    """Return the folder of a checkpoint; one on the Hugging Face Hub is downloaded unless its cache has it."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", checkpoint):
        raise UserError(f"model.checkpoint is '{checkpoint}', and there is no such folder")
    return _download(checkpoint)


@functools.cache
def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.checkpoint is '{name}': there is no such folder, and the Hugging Face Hub does not provide it "
            f"({type(error).__name__}); allowed: a folder, or a name that the Hub or its local cache has"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors; refuse pickles, and an index of files outside the folder."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        check_file(folder, WEIGHTS, "transformers'", PICKLE)
        return [folder / WEIGHTS]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"'{index}' names no files; allowed: an index with a weight_map")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise UserError(f"'{index}' names the file '{name}'; allowed: safetensors files beside it")
        if not (folder / name).is_file():
            raise UserError(f"'{index}' names the file '{name}', which does not exist")
    return [folder / name for name in files]


Stamp = tuple[tuple[str, int, int], ...]  # name, size and modification time of files


def stamp_of(files: Iterable[Path]) -> Stamp:
    """Return a cache key that changes when the files do."""
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def fingerprint(model: Model) -> str | None:
    """Return 16 hexadecimal digits of a SHA-256 over a checkpoint's files and the code that reads them, if any.

    Raises:
        UserError: the files cannot be read.
    """
    if not isinstance(model, Checkpointed) or model.checkpoint is None:
        return None
    folder = folder_of(model.checkpoint)
    files = weight_files(folder)
    read_json(folder / CONFIG)
    preprocessor = filter(Path.is_file, [folder / PREPROCESSOR])
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
    """Return the model with the sizes of its checkpoint, if any, and the scaling of its pixels, without the weights.

    Raises:
        UserError: the files cannot be read, describe another architecture or a variant that the network does not
            compute, or contradict the model's settings.
    """
    if not isinstance(model, Checkpointed) or model.checkpoint is None:
        return model
    folder = folder_of(model.checkpoint)
    if not (folder / CONFIG).is_file():
        raise UserError(f"'{folder}' has no {CONFIG}; allowed: a folder that transformers' save_pretrained wrote")
    network = _read_config(model.architecture, stamp_of([folder / CONFIG]))
    needed = isinstance(model, Vision) and None in (model.mean, model.std)
    scaling = read_scaling(folder) if needed else None
    loaded: Any = replace(model, checkpoint_config=CheckpointConfig(network, scaling))
    _ = loaded.sizes  # raises where the settings contradict the checkpoint
    return loaded


@functools.cache
def _read_config(architecture: str, stamp: Stamp) -> Any:
    """Return the sizes in ``config.json``, as the architecture's ``config_class``."""
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
        few = isinstance(value, list) and 0 < len(value) <= MAX_SIZES
        return few and all(_accepts(v, None, least)[0] for v in value), f"a list of 1 to {MAX_SIZES}, each {whole}"
    if isinstance(default, float):
        return isinstance(value, float) and 0 < value < 1, "a number between 0 and 1"
    if isinstance(default, str):  # if it is there at all, it is one of the values that the table requires
        return isinstance(value, str), "text"
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SIZE, whole


def read_scaling(folder: Path) -> Scaling:
    """Return the mean and standard deviation that ``preprocessor_config.json`` gives pixels from 0 to 1.

    Raises:
        UserError: there is no such file, its numbers are impossible, or it does not divide pixels by 255.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise UserError(f"'{folder}' has no {PREPROCESSOR}, so model.mean and model.std must be given")
    config = read_json(path)
    factor = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) is not True or not is_number(factor) or not math.isclose(factor, 1 / 255):
        raise UserError(f"'{path}' does not divide pixels by 255; allowed: do_rescale with a rescale_factor of 1/255")
    if config.get("do_normalize", True) is False:
        return Scaling((0.0,), (1.0,))
    given = {name: config.get(name) for name in ("image_mean", "image_std")}
    values: dict[str, list[Any]] = {name: v if isinstance(v, list) else [v] for name, v in given.items()}
    for name, check in (("image_mean", MEAN), ("image_std", STD)):
        if not values[name] or not all(map(check.accepts, values[name])):
            raise UserError(f"'{path}': {name} is {given[name]!r}; allowed: {check.description}")
    return Scaling(*(tuple(map(float, own)) for own in values.values()))


# --- parameters ------------------------------------------------------------------------------------------------------


def read_initial(model: Model, outputs: int) -> Params:
    """Return the parameters, by path, that replace a pre-training stage's initial ones; a checkpoint's, if any.

    A wrapped network's checkpoint is read without its head.
    """
    network = model.model if isinstance(model, Wrapped) else model
    if not model.has_checkpoint or not isinstance(network, NetworkModel):
        return {}
    return read_checkpoint(network, None if isinstance(model, Wrapped) else outputs)  # type: ignore[return-value]


def read_checkpoint(model: NetworkModel, outputs: int | None = None) -> dict[str, np.ndarray]:
    """Return a checkpoint's parameters by path, as float32. The arrays are cached and shared, so they are read-only.

    The head is left out without ``outputs``, unless its size is the vocabulary's, and where the checkpoint has none, or
    one of another kind or size. A warning, given once, names what is not read and what keeps its initial values.

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
    tensors, faults, notes = _match_tensors(model, outputs, list_tensors(files, table.prefix), classes)
    if faults:
        raise UserError(f"'{config.parent}' does not fit this network: {listed(faults, MAX_LISTED)}")
    if notes:
        warn_once(f"checkpoint '{config.parent}': {'; '.join(notes)}")
    return {path: tensor.read(transposed) for path, (tensor, transposed) in tensors.items()}


def list_tensors(files: Iterable[Path], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of files by their present names, without the trunk's prefix; gamma and beta are old names."""
    found: dict[str, Tensor] = {}
    for path, file in open_files(files):
        for name in file.keys():  # noqa: SIM118  (an open file, no dict)
            key = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix(prefix)))
            if key in found:
                raise UserError(f"'{path.parent}' has '{key}' twice, as '{found[key].name}' and '{name}'")
            part = file.get_slice(name)
            found[key] = Tensor(file, name, tuple(part.get_shape()), part.get_dtype())
    return found


Matched = dict[str, tuple[Tensor, bool]]  # by our path: the tensor, and whether its axes are transposed


def _match_tensors(
    model: NetworkModel, outputs: int | None, found: Mapping[str, Tensor], classes: Iterable[str]
) -> tuple[Matched, list[str], list[str]]:
    """Return the tensors of a model's parameters, a sentence for all that does not fit, and notes on what is left out.

    ``classes``: those of Hugging Face that wrote the tensors.
    """
    table, head = ARCHITECTURES[model.architecture], model.head_name
    known = set(classes) & {name for own in table.heads.values() for name in own.classes}
    same_head = known & set(table.heads[head].classes)
    aliases = {theirs: ours for cls in same_head for theirs, ours in table.aliases.get(cls, {}).items()}
    parts = {name: name.rpartition(".") for name in found}
    found = {aliases.get(m, m) + dot + leaf: found[name] for name, (m, dot, leaf) in parts.items()}
    shapes = param_shapes(model, outputs or fixed_outputs(model) or 2)

    def ours(names: TensorNames) -> TensorNames:
        return {name: entry for name, entry in names.items() if entry[0] in shapes}

    names, notes = ours(tensor_names(table.trunk, table.block_names(model.sizes))), []
    with_head = outputs is not None or head in TIED
    for part, modules in (("pooler", table.pooler), ("head", table.heads[head].modules if with_head else ())):
        own, reason = ours(tensor_names(modules)), ""
        if part == "head" and known and not same_head:
            reason = f"the file's is that of {listed(sorted(known))}"
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
    faults += [
        f"{found[copy].name} differs from {found[original].name}, to which the head is tied"
        for copy, original in table.tied.items()
        if head in TIED and copy in found and original in found
        if not np.array_equal(found[copy].read(), found[original].read())
    ]
    return {path: (found[name], axes) for name, (path, axes) in names.items() if name in found}, faults, notes


def misfits(names: TensorNames, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return a sentence for each of these tensors that has another shape or type than its parameter."""
    wrong = (misfit(found[name], axes, shapes[path]) for name, (path, axes) in names.items() if name in found)
    return [words for words in wrong if words]
