"""Runs jobs and sweeps: launchers, job folders, resuming."""
