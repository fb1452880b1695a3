"""Sweeps: who computes which job, job folders, resume."""
