"""Makes a sweep's folder as docs/architecture.md describes it, with numbers that have a known shape."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

STRATEGIES = {
    "frozen": (0.62, 0.1, 9),
    "full": (0.50, 0.01, 97),
    "discriminative": (0.505, 0.03, 97),
    "lora": (0.54, 0.03, 33),
}
RATES = (0.001, 0.01, 0.1, 1.0)


def plain(value: Any) -> Any:
    """Replace floats that are not finite by the record's strings, at any depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_job(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]] | None = None, **summary: Any) -> Path:
    """Write one job's folder; ``status=None`` leaves it without summary.json."""
    (folder / ".hydra").mkdir(parents=True)
    # Every JSON document is a YAML document.
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(plain(row)) + "\n" for row in rows))
    record = {
        "status": "completed",
        "job_id": folder.name.ljust(16, "0"),
        "overrides": [],
        "config": config,
        "objective": 0.5,
        "metrics": {},
        "error": None,
        "last_finite_step": 100,
        "parameters": {"trainable": 9, "total": 97},
        "flops_per_step": 32896.0,
        "seconds": 0.41,
        "data": {"fingerprint": "9f8e7d6c", "train": 124},
        "versions": {"thaw": "0.1.0", "jax": "0.10.2"},
        "git": {"commit": "0123abcd", "dirty": False},
        "started": "2026-11-21T20:51:00+00:00",
    } | summary
    if record["status"] is not None:
        (folder / "summary.json").write_text(json.dumps(plain(record)))
    return folder


def losses(strategy: str, rate: float, seed: int) -> tuple[float, float]:
    """Validation and test loss: a parabola in log(rate) around the strategy's best, and a seed's shift."""
    floor, best, _ = STRATEGIES[strategy]
    noise = np.random.default_rng([seed, len(strategy), int(1e4 * rate)]).normal(0, 0.006, 2)
    bowl = floor + 0.05 * (math.log10(rate) - math.log10(best)) ** 2 + 0.02 * seed
    return bowl + noise[0], bowl + 0.03 + noise[1]


def history(strategy: str, rate: float, seed: int, val: float, steps: int = 100) -> list[dict[str, Any]]:
    """Both stages' rows, every tenth step; the pre-training depends on the seed alone."""
    noise = np.random.default_rng(seed).normal(0, 0.01, 2 * steps)
    rows = []
    for stage, end in (("pretrain", 0.3 + 0.02 * seed), ("finetune", val)):
        for step in range(0, steps + 1, 10):
            value = end + 1.2 * math.exp(-step / 20) + noise[step] * (0 < step < steps)
            rows.append(
                {
                    "stage": stage,
                    "step": step,
                    "loss": 0.9 * value,
                    "lr": rate,
                    "val_loss": value,
                    "val_r2": 1 - value,
                }
            )
            if step == 0:
                del rows[-1]["loss"]
    return rows


def make_sweep(
    folder: Path,
    strategies: tuple[str, ...] = tuple(STRATEGIES),
    rates: tuple[float, ...] = RATES,
    seeds: int = 3,
) -> Path:
    """Write strategies x rates x seeds; full fine-tuning diverges at 1.0 (every seed) and at 0.1 (seed 1)."""
    number = 0
    for strategy in strategies:
        for rate in rates:
            for seed in range(seeds):
                config = {
                    "seed": seed,
                    "lr_fine": rate,
                    "strategy": {"name": strategy, "decay": 0.9 if strategy == "discriminative" else None},
                    "model": {"name": "mlp", "widths": [64, 64]},
                    "pretrain": {"name": "supervised", "seed": seed},
                }
                val, test = losses(strategy, rate, seed)
                rows = history(strategy, rate, seed, val)
                metrics = {"train_loss": 0.9 * val, "val_loss": val, "test_loss": test, "test_r2": 1 - test}
                extra: dict[str, Any] = {"objective": val, "metrics": metrics}
                if strategy == "full" and (rate >= 1 or (rate >= 0.1 and seed == 1)):
                    rows = [row for row in rows if row["stage"] == "pretrain" or row["step"] <= 40]
                    extra = {"status": "diverged", "objective": math.inf, "last_finite_step": 40}
                    extra["metrics"] = dict.fromkeys(metrics, math.nan)
                extra["parameters"] = {"trainable": STRATEGIES[strategy][2], "total": 97}
                extra["flops_per_step"] = 320.0 * STRATEGIES[strategy][2]
                write_job(folder / str(number), config, rows, **extra)
                number += 1
    return folder
