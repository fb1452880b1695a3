"""How long an update of a BERT of MiniLM's size takes, against PyTorch with transformers and peft, by turns.

python benchmarks/text.py                       # makes the other environment first: some minutes, once
python benchmarks/text.py --reference PYTHON    # one that has torch, transformers and peft

6 layers of 384, 12 heads, 22.7 million parameters; 32 rows of 64 tokens, none of them padding; float32, dropout 0.1,
AdamW, gradients clipped to norm 1. Both sides start from random values and random tokens: neither changes the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from _runs import finetune, first_phase, runner, start_untrained
from _timing import machine, table

from src.data.base import Transfer
from src.models.bert import Bert
from src.optim.optimizers import Adamw
from src.recipe.spec import Recipe
from src.strategies.base import Strategy
from src.strategies.frozen import LinearProbe
from src.strategies.full import Full
from src.strategies.lora import Lora
from src.training.compiled import prepare_jax
from src.training.cost import update_cost
from src.training.loop import PhaseRunner
from src.types import Split

ROWS, LENGTH, WORDS, TURNS, UPDATES = 32, 64, 30522, 5, 2
EPOCHS, SET = 5, 512  # of the frozen trunk whose features are kept, and the rows of its training set
PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0")
OTHER = Path(__file__).with_name("_text_torch.py")
TARGETS = (r"block_\d+/attention/(query|value)",)
CASES = {"full": Full(), "frozen, not kept": LinearProbe(), "LoRA, rank 8": Lora(targets=TARGETS)}
AIMS = {"full": 1.0, "frozen, not kept": 1.5, "LoRA, rank 8": 1.3}


def reference_python(python: str | None) -> str:
    """Return the Python of the other side; ``None``: of an environment that is made first where it is not there."""
    if python is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thaw" / "torch"
        python = str(folder / "bin" / "python")
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def reference(python: str) -> subprocess.Popen[str]:
    """Start the other side: it answers each case's name with the seconds of an update."""
    return subprocess.Popen([python, str(OTHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(other: subprocess.Popen[str], case: str) -> dict[str, float]:
    """Return what the other side measures of a case."""
    assert other.stdin is not None and other.stdout is not None  # noqa: PT018
    print(case, file=other.stdin, flush=True)
    return json.loads(other.stdout.readline())


def tokens(rows: int, seed: int) -> Split:
    """Return rows without padding, and labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, WORDS, (rows, LENGTH), np.int32)
    return Split(np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1), rng.integers(0, 2, rows, np.int32))


def recipe(strategy: Strategy, dropout: float | None, steps: int) -> Recipe:
    """Return what is timed."""
    model = Bert(
        vocab_size=WORDS, width=384, layers=6, heads=12, intermediate=1536, positions=512, types=2, dropout=dropout,
        head_dropout=dropout,
    )  # fmt: skip
    optimizer = Adamw(weight_decay=0.01, clip_norm=1.0)
    return Recipe(
        model=model, strategy=strategy, optimizer=optimizer, lr_fine=1e-5, batch_size=ROWS, finetune_steps=steps,
        log_every=steps,
    )  # fmt: skip


def own_updates(cases: Iterable[str]) -> tuple[dict[str, Callable[[], float]], dict[str, int]]:
    """Return what makes some updates of each case with the engine's program, and the bytes that it needs."""
    data = Transfer("classification", {}, {"train": tokens(4 * ROWS, 0)}, 2, 2, new_head=False)
    runs, memory = {}, {}
    for name in cases:
        own = recipe(CASES[name], 0.1, UPDATES)
        start = start_untrained(own, data)
        stage = first_phase(own, data)
        run = runner(stage, start.params, data.target["train"])
        memory[name] = update_cost(stage, start.params, data.target["train"]).peak_bytes

        def updates(run: PhaseRunner = run) -> float:
            start = time.perf_counter()
            jax.block_until_ready(run.advance(0, UPDATES))
            return (time.perf_counter() - start) / UPDATES

        runs[name] = updates
    return runs, memory


def alone(case: str) -> None:
    """Print the bytes that this process grows by at most when it makes some updates, compiling included."""
    before = peak()
    runs, _ = own_updates([case])
    runs[case]()
    print(peak() - before)


def peak() -> int:
    """Return the most memory that the process had so far, in bytes; getrusage's would be the parent's at first."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def growth(python: str, script: Path, *arguments: str) -> float:
    """Return the megabytes that a process of its own grows by at most, for one case."""
    run = subprocess.run([python, str(script), *arguments], check=True, capture_output=True, text=True)
    return int(run.stdout.split()[-1]) / 1e6


def own_epochs() -> float:
    """Return the seconds of some epochs over kept features: everything that fine-tuning does, compiling excepted."""
    task = tokens(SET, 1)
    data = Transfer("classification", {}, {"train": task}, 2, 2, new_head=False)
    own = recipe(LinearProbe(), None, EPOCHS * SET // ROWS)
    start = start_untrained(own, data)
    finetune([own], data, start)  # compiles
    begin = time.perf_counter()
    finetune([replace(own, seed=1)], data, start)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", metavar="PYTHON", help="a Python with torch, transformers and peft")
    parser.add_argument("--alone", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare_jax()
    if arguments.alone:
        alone(arguments.alone)
    else:
        compare(reference_python(arguments.reference))


def compare(python: str) -> None:
    """Print what both sides need, by turns."""
    print(machine())
    other = reference(python)
    print(f"against {ask(other, 'versions')['versions']}")
    runs, memory = own_updates(CASES)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            pair = ask(other, name)["seconds"], run()
            if turn:  # the first one warms up
                times[name].append(pair)
    other.terminate()
    rows = []
    for name, own in times.items():
        ratio = statistics.median(theirs / mine for theirs, mine in own)
        theirs, mine = (statistics.median(side) * 1e3 for side in zip(*own, strict=True))
        rows.append((name, f"{theirs:.0f}", f"{mine:.0f}", f"{ratio:.2f}", f"{AIMS[name]:.1f}"))
    table(("an update, 32 x 64 tokens", "PyTorch, ms", "Thaw, ms", "PyTorch / Thaw", "wanted"), rows)
    print()
    kept = own_epochs()
    theirs = statistics.median(theirs for theirs, _ in times["frozen, not kept"]) * EPOCHS * SET / ROWS
    header = (f"frozen trunk, {EPOCHS} epochs of {SET} rows", "PyTorch, s", "Thaw, features kept, s", "ratio", "wanted")
    table(header, [("all updates", f"{theirs:.1f}", f"{kept:.1f}", f"{theirs / kept:.1f}", "4.0")])
    print()
    sizes = []
    for name in CASES:
        grown = growth(python, OTHER, name), growth(sys.executable, Path(__file__), "--alone", name), memory[name] / 1e6
        sizes.append((name, *(f"{mb:.0f}" for mb in grown)))
    table(("memory, a process each", "PyTorch, MB", "Thaw, compiling included, MB", "Thaw's program alone, MB"), sizes)


if __name__ == "__main__":
    main()
