"""What fine-tuning leaves behind, as files that can be kept, swapped and combined."""
