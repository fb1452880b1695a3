"""Jobs' folders, made without training, whose networks are exported."""

import jax
import numpy as np
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from src.checkpoints.adapters import LORA_OPTIONS
from src.config.schema import build
from src.strategies.lora import Lora

SIZES = {"vocab_size": 50, "width": 16, "layers": 2, "heads": 2, "intermediate": 24, "positions": 16}
CASES = {  # name -> model node, outputs
    "bert classify": ({"name": "bert", **SIZES}, 3),
    "bert regression": ({"name": "bert", **SIZES, "types": 0}, 1),
    "bert tokens": ({"name": "bert", **SIZES, "head": "tokens"}, 5),
    "bert spans": ({"name": "bert", **SIZES, "head": "spans"}, 2),
    "bert masked": ({"name": "bert", **SIZES, "head": "masked"}, 50),
    "bert pretraining": ({"name": "bert", **SIZES, "head": "pretraining"}, 50),
    "gpt2 classify": ({"name": "gpt2", **SIZES, "head": "classify"}, 3),
    "gpt2 tokens": ({"name": "gpt2", **SIZES, "head": "tokens"}, 4),
    "gpt2 spans": ({"name": "gpt2", **SIZES, "head": "spans"}, 2),
    "gpt2 causal": ({"name": "gpt2", **SIZES}, 50),
}
ALPHA, RANK = 6.0, 2


def make_job(folder, node, outputs, lora=True, **data):
    """Write a job's folder; return its model and its parameters, LoRA's side paths among them."""
    config = OmegaConf.create(
        {"model": node, "strategy": {"name": "lora", "alpha": ALPHA, "rank": RANK}, "data": {"name": "text", **data}}
    )
    model = build("model", config.model)
    rng = np.random.default_rng(0)
    initial = model.init(jax.random.PRNGKey(0), (3, 1), outputs)
    params = {p: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for p, leaf in initial.items()}
    if lora:
        added = Lora(rank=RANK, alpha=ALPHA).prepare(jax.random.PRNGKey(1), params, model)
        params |= {p: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for p, leaf in added.items()}
    else:
        config.strategy = {"name": "full"}
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    save_file(params, folder / "model.safetensors")
    return model, params


def batch():
    """Three rows of different lengths; no token is padding's, 0, but padding."""
    rng = np.random.default_rng(1)
    mask = (np.arange(10) < np.array([[10], [6], [3]])).astype(np.int32)
    return np.stack([rng.integers(1, 50, (3, 10)) * mask, np.arange(10) // 5 * mask, mask], axis=1).astype(np.int32)


def logits(model, params, outputs):
    """The network's outputs, side paths and all."""
    pairs = {p: ALPHA / RANK * leaf if p.endswith("lora_b") else leaf for p, leaf in params.items()}
    return np.asarray(model.apply(pairs, batch(), outputs, LORA_OPTIONS))
