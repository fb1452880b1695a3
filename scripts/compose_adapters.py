"""Add LoRA adapters with weights: exactly, truncated to a lower rank, or with the best weights of a grid.

python scripts/compose_adapters.py outputs/runs/a:0.7 outputs/runs/b:0.3 --out both.safetensors
python scripts/compose_adapters.py outputs/runs/a b.safetensors:-1 --rank 4 --head 0 --out a_without_b.safetensors
python scripts/compose_adapters.py outputs/runs/a outputs/runs/b --search --grid=-0.5,0,0.5,1 --out best.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import _root  # noqa: F401
import pandas as pd

from src.checkpoints.adapters import LoraAdapter, load_adapter, save_adapter
from src.config.schema import build
from src.errors import UserError, listed, run_script
from src.finished.jobs import FinishedJob, read_job
from src.finished.weighted_adapters import add_weighted_adapter, search_weights, truncate, weight_grid

MAX_ROWS = 10  # of the search's table


class WeightedPart(NamedTuple):
    """One adapter as the command line names it."""

    adapter: LoraAdapter
    weight: float | None  # None: not given
    job: FinishedJob | None  # None: the adapter is a file


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A weighted sum of LoRA adapters of one base.")
    parser.add_argument("parts", nargs="+", metavar="JOB_OR_ADAPTER[:WEIGHT]", help="job's folder or file; weight 1")
    parser.add_argument("--out", required=True, type=Path, help="the adapter that is written (.safetensors)")
    parser.add_argument("--rank", type=int, help="truncate the sum to this rank (default: the exact sum)")
    parser.add_argument("--head", type=int, metavar="INDEX", help="whose head is taken, from 0, where heads differ")
    parser.add_argument("--search", action="store_true", help="use the weights with the lowest validation loss")
    parser.add_argument("--grid", default="0,0.25,0.5,0.75,1", help="weights to try (default: %(default)s)")
    return parser.parse_args()


def read_part(text: str) -> WeightedPart:
    """Read ``PATH`` or ``PATH:WEIGHT``."""
    name, colon, after = text.rpartition(":")
    weight = None
    if colon and not Path(text).exists():
        weight, text = number(after, f"the weight of '{name}'"), name
    path = Path(text)
    if not path.exists():
        raise UserError(f"there is no '{path}'; allowed: a job's folder or an adapter's file, with :WEIGHT or without")
    job = read_job(path) if path.is_dir() else None
    return WeightedPart(job.adapter if job else load_adapter(path), weight, job)


def number(text: str, key: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{key} is '{text}'; allowed: a number") from error


def search(parts: Sequence[WeightedPart], grid: Sequence[float], head: int | None) -> pd.DataFrame:
    """Evaluate every combination of weights on the validation rows of the job whose head is taken."""
    from src.objectives.kinds import for_kind
    from src.training.compiled import prepare_jax

    if any(part.weight is not None for part in parts):
        raise UserError("--search chooses the weights; leave ':WEIGHT' out")
    job = next((part.job for part in parts if part.job), None) if head is None else parts[head].job
    if job is None:
        raise UserError("--search needs the model and data of the job whose head is taken; give that job's folder")
    source = build("data", job.config.data)
    if source.is_sequence:
        raise UserError("--search needs one target task, and the job has a sequence; allowed: a job of recipe=transfer")
    prepare_jax()
    data = source.load()
    return search_weights(
        model=job.model,
        base=job.base,
        adapters=[part.adapter for part in parts],
        data=data.target["val"],
        objective=for_kind(data.kind),
        outputs=data.outputs,
        grid=weight_grid(len(parts), grid),
        head=head,
    )


def by_module(values: Mapping[str, float]) -> str:
    """Return a value for each module, ``Dense_0 4, Dense_1 8``."""
    words = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values.values())
    return listed(map(" ".join, zip(values, words, strict=True)), 40)


def main() -> None:
    """Add, print and write."""
    arguments = read_arguments()
    parts = [read_part(text) for text in arguments.parts]
    if arguments.head is not None and not 0 <= arguments.head < len(parts):
        raise UserError(f"--head is {arguments.head}; allowed: the index of an adapter, 0 to {len(parts) - 1}")
    if arguments.rank is not None and arguments.rank < 1:
        raise UserError(f"--rank is {arguments.rank}; allowed: a whole number >= 1")
    weights = [1.0 if part.weight is None else part.weight for part in parts]
    if arguments.search:
        table = search(parts, [number(value, "--grid") for value in arguments.grid.split(",")], arguments.head)
        print(table.head(MAX_ROWS).to_string(index=False))
        weights = table.iloc[0].tolist()[: len(parts)]
    weighted = [(part.adapter, weight) for part, weight in zip(parts, weights, strict=True)]
    total = add_weighted_adapter(weighted, arguments.head)
    for text, weight in zip(arguments.parts, weights, strict=True):
        print(f"{weight:+g} x {text}")
    print(f"ranks: {by_module(total.ranks)}")
    if arguments.rank is not None:
        total, error, errors = truncate(total, arguments.rank)
        print(f"ranks after truncation: {by_module(total.ranks)}")
        print(f"relative error of the changes (Frobenius): {error:.3g} ({by_module(errors)})")
    save_adapter(total, arguments.out)
    print(f"wrote {arguments.out} (base {total.base})")


if __name__ == "__main__":
    run_script(main)
