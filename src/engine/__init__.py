"""How parameters move: partition, optimizer, the training loop. Knows flat dicts, never a model class."""
