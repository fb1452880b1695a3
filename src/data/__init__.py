"""Data sources: each file reads one kind of data and returns the source and the target task."""
