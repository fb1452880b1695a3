"""Finished jobs: their weights averaged, composed, exported and used for predictions."""
