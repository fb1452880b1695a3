"""Fine-tuning strategies: which parameters are trained, and at which learning rate."""

from .discriminative import layer_scales

__all__ = ["layer_scales"]
