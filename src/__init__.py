"""Thaw: pre-train once, fine-tune every way, know which way is best."""

__version__ = "0.1.0"
