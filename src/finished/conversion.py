"""Finished jobs as checkpoints of Hugging Face and as adapters of PEFT, and PEFT's adapters as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ..checkpoints import huggingface, peft
from ..checkpoints.adapters import fingerprint, load_adapter, save_adapter
from ..checkpoints.architectures import ARCHITECTURES, TEXT_ARCHITECTURES, NetworkModel
from ..checkpoints.huggingface import build_model, folder_of, read_checkpoint
from ..checkpoints.huggingface_export import TOKENIZER, export, padding_id
from ..checkpoints.peft import TASK_TYPES, PeftAdapter, check_files, extract_peft, merge_peft, read_peft, write_peft
from ..checkpoints.tensor_files import MAX_LISTED, check_new_folder, read_json
from ..errors import UserError, listed
from ..models.base import same_bits
from ..models.transformer import Transformer
from .jobs import FinishedJob, read_job

STRATEGIES = ("lora", "dora")


def export_job(folder: Path, out: Path, tokenizer: Path | None = None, pad_token_id: int | None = None) -> str:
    """Write a finished job's network as a checkpoint of Hugging Face, LoRA merged; return the class that loads it.

    The defaults of ``tokenizer``, a folder, and of ``pad_token_id`` are the job's and the tokenizer's.

    Raises:
        UserError: no finished job, a network that no class of Hugging Face computes, or a folder that is not empty.
    """
    job = read_job(folder)
    if not isinstance(job.model, NetworkModel):
        raise UserError(f"'{folder}' has model={job.config.model.name}; allowed: {listed(ARCHITECTURES)}")
    return export(job.model, job.merged_params(), out, *_tokenizer_of(job, tokenizer, pad_token_id))


def _tokenizer_of(job: FinishedJob, tokenizer: Path | None, pad_token_id: int | None) -> tuple[Path | None, int | None]:
    """Return the folder of the tokenizer, by default the job's, and the id of padding, by default the tokenizer's."""
    name = OmegaConf.select(job.config, "data.tokenizer")
    if tokenizer is None and name and (Path(name) / TOKENIZER).is_file():
        tokenizer = Path(name)
    return tokenizer, padding_id(tokenizer) if pad_token_id is None else pad_token_id


def job_to_peft(folder: Path, out: Path, base_out: Path | None = None, pad_token_id: int | None = None) -> str:
    """Write what a finished job learned as an adapter of PEFT; return the name of its base.

    The base is written to ``base_out`` as a checkpoint of Hugging Face, with this id of padding. Without ``base_out``
    it is the checkpoint that the job started from, and must still equal it.

    Raises:
        UserError: no finished job of LoRA or DoRA on a model of text, or a base that PEFT could not load.
    """
    job = read_job(folder)
    model, strategy = job.model, job.config.strategy
    if not isinstance(model, Transformer):
        raise UserError(f"'{folder}' has model={job.config.model.name}; allowed: {listed(TEXT_ARCHITECTURES)}")
    if strategy.name not in STRATEGIES:
        raise UserError(f"'{folder}' has strategy={strategy.name}; allowed: {listed(STRATEGIES)}")
    stabilised = bool(strategy.get("rank_stabilised", False))
    adapter, base = extract_peft(job.read_params(), model, float(strategy.alpha), stabilised)
    if base_out is None:
        adapter, base_name = rebase_on_checkpoint(adapter, base, model), str(model.checkpoint)
    else:
        check_new_folder(base_out)
        base_name = str(base_out)
    write_peft(out, adapter, model, base, base_name, dropout=float(strategy.get("dropout") or 0.0))
    if base_out is not None:
        export(model, base, base_out, *_tokenizer_of(job, None, pad_token_id))
    return base_name


def rebase_on_checkpoint(adapter: PeftAdapter, base: Mapping[str, Any], model: Transformer) -> PeftAdapter:
    """Return an adapter of ``model.checkpoint`` that gives the same network: what the files lack is saved in full."""
    hint = "allowed with --base-out, which writes the base too"
    if model.checkpoint is None:
        raise UserError(f"the job started from no checkpoint, so PEFT could load no base; {hint}")
    files, lora = read_checkpoint(model), adapter.lora
    rest = {path: leaf for path, leaf in base.items() if path not in lora.head_paths}
    known = {path: np.asarray(files[path]).astype(leaf.dtype) for path, leaf in rest.items() if path in files}
    if changed := [path for path, leaf in known.items() if not same_bits(leaf, rest[path])]:
        raise UserError(
            f"the job's base is not its checkpoint '{model.checkpoint}': pre-training changed "
            f"{listed(changed, MAX_LISTED)}; {hint}"
        )
    head = {**lora.head, **{path: np.asarray(leaf) for path, leaf in rest.items() if path not in files}}
    paths = tuple(sorted(head))
    return adapter._replace(lora=replace(lora, head=head, head_paths=paths, base=fingerprint(base, paths)))


def checkpoint_model(checkpoint: str, head: str | None) -> Transformer:
    """Return the text model of a checkpoint with a head; ``None``: the checkpoint's own."""
    path = folder_of(checkpoint) / huggingface.CONFIG
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in TEXT_ARCHITECTURES:
        raise UserError(f"'{path}' describes a model of type '{kind}'; allowed: {listed(TEXT_ARCHITECTURES)}")
    heads = TEXT_ARCHITECTURES[kind].heads
    given = set(config.get("architectures") or [])
    head = head or next((name for name, own in heads.items() if given & set(own.classes)), None)
    if head not in heads:
        what = f"--head is '{head}'" if head else "--head is missing"
        raise UserError(f"{what}, and '{checkpoint}' is a {kind}; allowed: {listed(heads)}")
    return build_model(OmegaConf.create({"name": kind, "checkpoint": checkpoint, "head": head}))


def convert_from_peft(folder: Path, checkpoint: str, out: Path, head: str | None = None) -> None:
    """Write PEFT's adapter as a file of ours (``.safetensors``), or as a checkpoint with the change merged in.

    The base is ``checkpoint``, with a head: by default that of the folder's task, or of the checkpoint's class.

    Raises:
        UserError: the folder cannot be read or does not fit, or DoRA is to become a file of ours.
    """
    check_files(folder)
    task = read_json(folder / peft.CONFIG).get("task_type")
    model = checkpoint_model(checkpoint, head or next((name for name, own in TASK_TYPES.items() if own == task), None))
    base = read_checkpoint(model)
    adapter = read_peft(folder, model, base)
    if out.suffix == ".safetensors":
        save_adapter(adapter.adapter, out)
    else:
        export(model, merge_peft(adapter, base), out, folder_of(checkpoint))


def convert_to_peft(file: Path, checkpoint: str, out: Path, head: str | None = None) -> None:
    """Write an adapter's file, a weighted sum for instance, as an adapter of PEFT; refuse another base."""
    model, adapter = checkpoint_model(checkpoint, head), load_adapter(file)
    write_peft(out, adapter, model, read_checkpoint(model), checkpoint)
