"""Losses and metrics by kind of task."""
