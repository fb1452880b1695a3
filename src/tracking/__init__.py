"""What a run leaves behind: the record on disk, its view on W&B, and what the terminal shows."""
