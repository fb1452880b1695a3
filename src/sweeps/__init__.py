"""Sweeps: which job is which."""
