"""Methods that protect the source task during fine-tuning, one file each."""

from .fisher import fisher_diagonal

__all__ = ["fisher_diagonal"]
