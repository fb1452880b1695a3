"""Convert LoRA and DoRA to and from PEFT's format: adapter_config.json and adapter_model.safetensors.

python scripts/convert_peft.py outputs/runs/a --out peft/a
python scripts/convert_peft.py outputs/runs/a --out peft/a --base-out peft/base
python scripts/convert_peft.py peft/a --base bert-base-uncased --out a.safetensors
python scripts/convert_peft.py peft/a --base bert-base-uncased --out start/a
python scripts/convert_peft.py both.safetensors --base bert-base-uncased --head classify --out peft/both
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _root  # noqa: F401

from src.errors import UserError, run_script

OUT = "PEFT's folder; from PEFT: an adapter's file (.safetensors), or the folder of a merged checkpoint"


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="LoRA and DoRA of BERT and GPT-2, to and from PEFT's format.")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a finished job, PEFT's folder, an adapter's file")
    parser.add_argument("--out", type=Path, required=True, help=OUT)
    parser.add_argument("--base", help="unless of a job: the adapter's base, a checkpoint's folder or Hub name")
    parser.add_argument("--head", help="unless of a job: classify, tokens ... (default: that of SOURCE or the base)")
    parser.add_argument("--base-out", type=Path, help="of a job: write the base too, where it is no checkpoint's")
    parser.add_argument("--pad-token-id", type=int, help="of --base-out: the id of padding (default: the tokenizer's)")
    return parser.parse_args()


def main() -> None:
    """Convert and write."""
    arguments = read_arguments()
    source: Path = arguments.source
    from src.finished.conversion import convert_from_peft, convert_to_peft, job_to_peft

    is_job = (source / ".hydra").is_dir()
    for key in ("base", "head") if is_job else ("base_out", "pad_token_id"):
        if getattr(arguments, key) is not None:
            what = "a job, which defines it" if is_job else "no job"
            raise UserError(f"--{key.replace('_', '-')} is given, and '{source}' is {what}; allowed: without it")
    if is_job:
        base = job_to_peft(source, arguments.out, arguments.base_out, arguments.pad_token_id)
        print(f"wrote {arguments.out}: peft.PeftModel.from_pretrained(model, '{arguments.out}') on {base}")
        return
    if arguments.base is None:
        raise UserError(f"--base is missing, and '{source}' is no job; allowed: the checkpoint of the adapter's base")
    convert = convert_to_peft if source.is_file() else convert_from_peft
    convert(source, arguments.base, arguments.out, arguments.head)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    run_script(main)
