"""Job ids, which name the jobs' folders: a hash of everything in a configuration that can change a job's numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .schema import StudyConfig

VOLATILE = frozenset({"hydra", "tracker", *StudyConfig.__dataclass_fields__})  # keys that change no number
MAX_SLUG_LENGTH = 100  # characters; file systems allow names of 255


def job_id(config: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a plain, resolved task configuration."""
    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a copy of a configuration without Hydra's own node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, with interpolations resolved and without Hydra's own node."""
    masked = without_hydra(cfg)
    masked._set_parent(cfg._get_parent())
    plain = OmegaConf.to_container(masked, resolve=True, enum_to_str=True)
    return {str(key): value for key, value in dict(plain).items()}  # type: ignore[call-overload]


def job_folder_name(overrides: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return a folder's name: the job's overrides in characters that need no quoting, and its id."""
    left_out = ("experiment=", "debug=", *(f"{key}{mark}" for key in VOLATILE for mark in "=."))
    kept = [line for line in sorted(line.lstrip("+~") for line in overrides) if not line.startswith(left_out)]
    slug = re.sub(r"[^A-Za-z0-9.+-]+", "_", "_".join(kept)).strip("_.")
    return f"{slug[:MAX_SLUG_LENGTH]}_{job_id(config)[:10]}".lstrip("_")


def job_folder(cfg: DictConfig) -> str:
    """Return the folder's name for a configuration that Hydra has composed."""
    return job_folder_name(cfg.hydra.overrides.task, resolved(cfg))


def register_resolvers() -> None:
    """Register the resolvers of ``conf/``; ``${updates:rows,batch_size}`` is the number of updates of one epoch."""
    OmegaConf.register_new_resolver("job_folder", lambda *, _root_: job_folder(_root_), replace=True)
    OmegaConf.register_new_resolver("study_folder", lambda name, time: time if name is None else name, replace=True)
    OmegaConf.register_new_resolver("updates", lambda rows, batch: -(-int(rows) // int(batch)), replace=True)
