"""What protects the source task while the target task is learned: one small file each."""

from .fisher import fisher_diagonal

__all__ = ["fisher_diagonal"]
