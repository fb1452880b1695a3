"""Between PEFT's folders and what Thaw has: finished jobs, adapters' files, and checkpoints to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ..checkpoints import huggingface, peft
from ..checkpoints.adapter_files import load, read_tensors
from ..checkpoints.adapter_files import save as save_adapter
from ..checkpoints.adapters import fingerprint
from ..checkpoints.huggingface import SHOWN, TEXTS, folder_of, read_checkpoint, read_json
from ..checkpoints.huggingface_export import check_empty, export, network_of, padding_id, tokenizer_of
from ..checkpoints.peft import TASKS, Tuning, merged, read_peft, split, weights_of, write_peft
from ..config.schema import build
from ..errors import UserError, listed
from ..models.base import same_bits
from ..models.transformer import Transformer
from ..tracking.record import CHECKPOINT

STRATEGIES = ("lora", "dora")


def job_to_peft(job: Path, out: Path, base_out: Path | None = None, pad_token_id: int | None = None) -> str:
    """Write what a finished job learned as a folder of PEFT's; return the base that it stands on.

    Args:
        job: its folder.
        out: the new folder.
        base_out: a new folder for the base as a checkpoint of Hugging Face. ``None``: the base is the checkpoint that
            the job began with, and must still be that.
        pad_token_id: of the base that is written; ``None``: the tokenizer's, or the checkpoint's.

    Raises:
        UserError: no finished job of LoRA or DoRA on a model of text, or a base that PEFT would not find.
    """
    config, model = network_of(job)
    if not isinstance(model, Transformer):
        raise UserError(f"'{job}' has model={config.model.name}; allowed: {listed(TEXTS)}")
    strategy = config.strategy
    if strategy.name not in STRATEGIES:
        raise UserError(f"'{job}' has strategy={strategy.name}; allowed: {listed(STRATEGIES)}")
    params = read_tensors(job / CHECKPOINT)[0]
    tuning, base = split(params, model, float(strategy.alpha), bool(strategy.get("rank_stabilised", False)))
    name = str(base_out)
    if base_out is None:
        tuning, name = on_checkpoint(tuning, base, model), str(model.checkpoint)
    else:
        check_empty(base_out)
    dropout = float(strategy.get("dropout") or 0.0)
    write_peft(out, tuning, model, base, name, dropout)
    if base_out is not None:
        tokenizer = tokenizer_of(config)
        export(model, base, base_out, tokenizer, padding_id(tokenizer) if pad_token_id is None else pad_token_id)
    return name


def on_checkpoint(tuning: Tuning, base: Mapping[str, Any], model: Transformer) -> Tuning:
    """Return a tuning that, put on ``model.checkpoint``, gives the same network: what that lacks is saved in full.

    Raises:
        UserError: there is no checkpoint, or the base is no longer that.
    """
    hint = "allowed with --base-out, which writes the base too"
    if model.checkpoint is None:
        raise UserError(f"the job began with no checkpoint, so PEFT would find no base; {hint}")
    given, lora = read_checkpoint(model), tuning.lora
    rest = {path: leaf for path, leaf in base.items() if path not in lora.head_paths}
    kept = {path: np.asarray(given[path]).astype(leaf.dtype) for path, leaf in rest.items() if path in given}
    if moved := [path for path, leaf in kept.items() if not same_bits(leaf, rest[path])]:
        raise UserError(
            f"the job's base is not its checkpoint '{model.checkpoint}', pre-training moved {listed(moved, SHOWN)}; "
            f"{hint}"
        )
    head = {**lora.head, **{path: np.asarray(leaf) for path, leaf in rest.items() if path not in given}}
    paths = tuple(sorted(head))
    return tuning._replace(lora=replace(lora, head=head, head_paths=paths, base=fingerprint(base, paths)))


def network_on(checkpoint: str, head: str | None) -> Transformer:
    """Return the network of a checkpoint with a head; ``None``: the checkpoint's own.

    Raises:
        UserError: another architecture, a head that it cannot have, or nothing that says which.
    """
    path = folder_of(checkpoint) / huggingface.CONFIG
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in TEXTS:
        raise UserError(f"'{path}' describes a model of type '{kind}'; allowed: {listed(TEXTS)}")
    table = TEXTS[kind]
    given = set(config.get("architectures") or [])
    head = head or next((name for name, classes in table.classes.items() if given & set(classes)), None)
    if head not in table.classes:
        said = f"is to have the head '{head}'" if head else "has a head that nothing names; --head does"
        raise UserError(f"'{checkpoint}', a {kind}, {said}; allowed: {listed(table.classes)}")
    return build("model", OmegaConf.create({"name": kind, "checkpoint": checkpoint, "head": head}))


def head_of(folder: Path) -> str | None:
    """Return the head that a folder of PEFT's is for, by its task; ``None``: it does not say."""
    task = read_json(folder / peft.CONFIG).get("task_type")
    return next((head for head, name in TASKS.items() if task is not None and name == task), None)


def peft_to_thaw(folder: Path, checkpoint: str, out: Path, head: str | None = None) -> None:
    """Write a folder of PEFT's as an adapter's file (``.safetensors``), or as a checkpoint with the change merged in.

    Args:
        folder: PEFT's.
        checkpoint: the base that it stands on, a folder or a name on the Hugging Face Hub.
        out: the file or the new folder.
        head: what the network's head is; ``None``: as the folder's task says, or the checkpoint's class.

    Raises:
        UserError: what cannot be read or does not fit; DoRA as a file, since an adapter's file holds sums only.
    """
    weights_of(folder)
    model = network_on(checkpoint, head or head_of(folder))
    base = read_checkpoint(model)
    tuning = read_peft(folder, model, base)
    if out.suffix == ".safetensors":
        save_adapter(tuning.adapter, out)
    else:
        params = merged(tuning, base)
        export(model, params, out, folder_of(checkpoint))


def adapter_to_peft(file: Path, checkpoint: str, out: Path, head: str | None = None) -> None:
    """Write an adapter's file, a sum of several for instance, as a folder of PEFT's.

    Raises:
        UserError: what cannot be read, or another base than the adapter's.
    """
    model, adapter = network_on(checkpoint, head), load(file)
    write_peft(out, adapter, model, read_checkpoint(model), checkpoint)
