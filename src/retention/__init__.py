"""Methods that protect the source task during fine-tuning."""

from .fisher import fisher_diagonal

__all__ = ["fisher_diagonal"]
