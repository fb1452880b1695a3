"""One run: resolve, pre-train, fine-tune, evaluate.

``from src.recipe import pretrain_then_finetune`` gives the reference function.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import the reference function when it is asked for: the configuration is checked without JAX."""
    if name == "pretrain_then_finetune":
        from .reference import pretrain_then_finetune

        return pretrain_then_finetune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
