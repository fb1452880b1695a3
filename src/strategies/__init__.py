"""Which parameters move in fine-tuning, and how fast: one small file a strategy."""

from .layers import layer_scales

__all__ = ["layer_scales"]
