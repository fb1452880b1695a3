"""Edits of a checkpoint's files."""

import json

from safetensors.numpy import load_file, save_file


def change(folder, edit, file="model.safetensors"):
    """Write a folder's tensors again after an edit of the dictionary."""
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file)


def configure(folder, file="config.json", **values):
    """Set keys of a folder's JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
