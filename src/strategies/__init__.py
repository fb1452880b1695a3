"""Fine-tuning strategies: which parameters are trained, and at which learning rate. One file each."""

from .discriminative import layer_scales

__all__ = ["layer_scales"]
