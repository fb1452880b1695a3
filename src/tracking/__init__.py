"""Records jobs on disk and in Weights & Biases; prints to the console."""
