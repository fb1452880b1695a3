"""Put LoRA adapters together: their exact weighted sum, of a lower rank where asked for, or with weights searched for.

python scripts/compose_adapters.py outputs/runs/a:0.7 outputs/runs/b:0.3 --out both.safetensors
python scripts/compose_adapters.py outputs/runs/a b.safetensors:-1 --rank 4 --head 0 --out a_without_b.safetensors
python scripts/compose_adapters.py outputs/runs/a outputs/runs/b --search --grid=-0.5,0,0.5,1 --out best.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import _root  # noqa: F401
import pandas as pd

from src.checkpoints.adapter_files import FinishedJob, load, read_job, save
from src.checkpoints.adapters import Adapter
from src.config.schema import build
from src.errors import UserError, listed, run_script
from src.finished.composing import compose, search_weights, truncate, weight_grid

SHOWN = 10  # rows of the search's table


class Part(NamedTuple):
    """One adapter as the command line names it."""

    adapter: Adapter
    weight: float | None  # None: not said
    job: FinishedJob | None  # where it came from; None: from an adapter's file


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A weighted sum of LoRA adapters of one base.")
    parser.add_argument("parts", nargs="+", metavar="JOB_OR_ADAPTER[:WEIGHT]", help="job's folder or file; weight 1")
    parser.add_argument("--out", required=True, type=Path, help="the adapter that is written (.safetensors)")
    parser.add_argument("--rank", type=int, help="cut the sum down to this rank (default: the exact sum)")
    parser.add_argument("--head", type=int, metavar="PLACE", help="whose head is taken, from 0, where heads differ")
    parser.add_argument("--search", action="store_true", help="take the weights with the lowest validation loss")
    parser.add_argument(
        "--grid", default="0,0.25,0.5,0.75,1", help="of --search: weights to try (default: %(default)s)"
    )
    return parser.parse_args()


def read_part(text: str) -> Part:
    """Read ``PATH`` or ``PATH:WEIGHT``."""
    name, colon, after = text.rpartition(":")
    weight = None
    if colon and not Path(text).exists():
        weight, text = number(after, f"the weight of '{name}'"), name
    path = Path(text)
    if not path.exists():
        raise UserError(f"there is no '{path}'; allowed: a job's folder or an adapter's file, with :WEIGHT or without")
    job = read_job(path) if path.is_dir() else None
    return Part(job.adapter if job else load(path), weight, job)


def number(text: str, key: str) -> float:
    """Return the number that a text says."""
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{key} is '{text}'; allowed: a number") from error


def search(parts: Sequence[Part], grid: Sequence[float], head: int | None) -> pd.DataFrame:
    """Measure every combination of weights on the validation rows of the job whose head is taken."""
    from src.objectives.kinds import for_kind
    from src.training.compiled import prepare_jax

    if any(part.weight is not None for part in parts):
        raise UserError("--search chooses the weights; leave ':WEIGHT' out")
    jobs = [part.job for part in parts if part.job] if head is None else [parts[head].job]
    if not jobs or jobs[0] is None:
        raise UserError("--search needs the model and data of the job whose head is taken; give that job's folder")
    source = build("data", jobs[0].config.data)
    if source.is_sequence:
        raise UserError(
            "--search is for one target task, and the job learned a sequence; allowed: a job of recipe=transfer"
        )
    prepare_jax()
    model, data = build("model", jobs[0].config.model), source.load()
    return search_weights(
        model=model,
        base=jobs[0].base,
        adapters=[part.adapter for part in parts],
        data=data.target["val"],
        objective=for_kind(data.kind),
        outputs=data.outputs,
        grid=weight_grid(len(parts), grid),
        head=head,
    )


def describe(adapter: Adapter) -> str:
    """Say a rank for each module, ``Dense_0 4, Dense_1 8``."""
    return listed((f"{module} {rank}" for module, rank in adapter.ranks.items()), 40)


def main() -> None:
    """Read, compose, write."""
    arguments = read_arguments()
    parts = [read_part(text) for text in arguments.parts]
    if arguments.head is not None and not 0 <= arguments.head < len(parts):
        raise UserError(f"--head is {arguments.head}; allowed: the place of an adapter, 0 to {len(parts) - 1}")
    if arguments.rank is not None and arguments.rank < 1:
        raise UserError(f"--rank is {arguments.rank}; allowed: a whole number >= 1")
    weights = [1.0 if part.weight is None else part.weight for part in parts]
    if arguments.search:
        table = search(parts, [number(value, "--grid") for value in arguments.grid.split(",")], arguments.head)
        print(table.head(SHOWN).to_string(index=False))
        weights = table.iloc[0].tolist()[: len(parts)]
    composed = compose([(part.adapter, weight) for part, weight in zip(parts, weights, strict=True)], arguments.head)
    for text, weight in zip(arguments.parts, weights, strict=True):
        print(f"{weight:+g} x {text}")
    print(f"ranks: {describe(composed)}")
    if arguments.rank is not None:
        composed, error, errors = truncate(composed, arguments.rank)
        print(f"ranks after truncation: {describe(composed)}")
        of_modules = listed((f"{module} {value:.3g}" for module, value in errors.items()), 40)
        print(f"relative error of the deltas (Frobenius): {error:.3g} ({of_modules})")
    save(composed, arguments.out)
    print(f"wrote {arguments.out} (base {composed.base})")


if __name__ == "__main__":
    run_script(main)
