"""The compiled training step, the loop that runs it, caches."""
