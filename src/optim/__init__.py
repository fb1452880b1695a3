"""Optimizers, schedules, and which parameters they act on."""
