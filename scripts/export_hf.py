"""Write a finished job's network as a checkpoint that transformers loads, with LoRA merged and the head.

python scripts/export_hf.py outputs/runs/a --out exported/a
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _root  # noqa: F401

from src.errors import run_script


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A finished job of model=bert, gpt2, resnet or vit for transformers.")
    parser.add_argument("job", type=Path, metavar="JOB", help="a completed job's folder")
    parser.add_argument("--out", type=Path, required=True, help="the new or empty folder that is written")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json to copy (default: the job's own)")
    parser.add_argument("--pad-token-id", type=int, help="the id of padding (default: the tokenizer's)")
    return parser.parse_args()


def main() -> None:
    """Export and print how to load it."""
    arguments = read_arguments()
    from src.finished.conversion import export_job

    name = export_job(arguments.job, arguments.out, arguments.tokenizer, arguments.pad_token_id)
    print(f"wrote {arguments.out}: transformers.{name}.from_pretrained('{arguments.out}')")


if __name__ == "__main__":
    run_script(main)
