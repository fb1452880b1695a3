"""Options of ``pretrain``: ways to learn the source task."""
