"""Which parameters move in fine-tuning, and how fast: one small file a strategy."""
