"""Pure functions of predictions, labels and embeddings."""
