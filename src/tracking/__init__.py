"""The record of a job on disk, Weights & Biases, the console."""
