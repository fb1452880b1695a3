"""Jobs' folders, made without training, that LoRA and DoRA left: every leaf is random, so none is at its start."""

import jax
import numpy as np
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from src.checkpoints.huggingface import build_model
from src.config.schema import build
from src.models.base import ApplyOptions
from tests.checkpoints.exported import CASES, batch

RANK, ALPHA = 2, 6.0
LORA = {"name": "lora", "rank": RANK, "alpha": ALPHA}
DORA = {"name": "dora", "rank": RANK, "alpha": ALPHA}
MIXED = LORA | {
    "rank_stabilised": True,
    "rank_pattern": ["block_0/.*:3", "block_1/(up|down):1"],
    "targets": ["block_.*/.*", "head"],
    "dropout": 0.1,
}
JOBS = {  # name -> case of exported.py, strategy
    "bert classify lora": ("bert classify", LORA),
    "bert classify dora": ("bert classify", DORA),
    "bert classify mixed": ("bert classify", MIXED),
    "bert tokens lora": ("bert tokens", LORA),
    "bert spans mixed": ("bert spans", MIXED),
    "bert masked lora": ("bert masked", LORA),
    "gpt2 classify dora": ("gpt2 classify", DORA),
    "gpt2 causal lora": ("gpt2 causal", LORA),
}


def make_tuned(folder, node, outputs, strategy, base=None):
    """Write a job's folder; return its model, its strategy and its parameters."""
    config = OmegaConf.create({"model": node, "strategy": strategy, "data": {"name": "text"}})
    model, kind = build_model(config.model), build("strategy", config.strategy)
    rng = np.random.default_rng(0)

    def noisy(leaves):
        return {p: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for p, leaf in leaves.items()}

    params = {**noisy(model.init(jax.random.PRNGKey(0), (3, 1), outputs)), **(base or {})}
    params |= noisy(kind.prepare(jax.random.PRNGKey(1), params, model))
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    save_file(params, folder / "model.safetensors")
    return model, kind, params


def make_named(folder, name):
    """Write one of :data:`JOBS`; return also its number of outputs."""
    case, strategy = JOBS[name]
    return *make_tuned(folder, *CASES[case], strategy), CASES[case][1]


def logits(model, strategy, params, outputs, x=None):
    """The network's outputs as training runs it, with what the strategy puts beside modules; no dropout."""
    how = ApplyOptions(adapter_params=frozenset(strategy.adapter_params), wrap_call=strategy.wrap_call)
    return np.asarray(model.apply(params, batch() if x is None else x, outputs, how))
