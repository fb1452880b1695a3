"""How long an update of SimCLR takes against PyTorch, by turns, what of it is augmentation, and an update of MoCo.

python benchmarks/simclr.py                                   # makes the other environment first: some minutes, once
python benchmarks/simclr.py --reference PYTHON --batch 64     # one that has torch

ResNet-18 with the stem for small images, random uint8 images of 32 x 32 in memory, float32, batch normalisation in
training mode, NT-Xent over 2 x ``--batch`` views, momentum with weight decay. ``--width`` is that of the first stage.
On a busy machine processor seconds say more than the clock: both are printed.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _runs import runner
from _timing import Times, machine, table, timed
from text import reference_python

from src.data.base import Transfer
from src.models.resnet import Resnet
from src.optim.optimizers import Momentum
from src.optim.schedules import Constant
from src.pretraining.augmentation import Augmentation, to_float
from src.pretraining.contrastive import nt_xent
from src.pretraining.moco import Moco
from src.pretraining.simclr import Simclr
from src.recipe.resolve import resolve
from src.recipe.spec import Recipe
from src.training.compiled import Compiled, prepare_jax
from src.training.cost import update_cost
from src.training.stage import Stage
from src.types import Split

ROWS, SIDE, OUTPUTS, UPDATES = 2048, 32, 128, 2
EMBEDDINGS, CHUNK = 8192, 256
CASES = ["SimCLR", "MoCo", "SimCLR, views ready"]  # the first is what all others are compared with
OTHER = Path(__file__).with_name("_simclr_torch.py")
AIM, AIM_VIEWS, AIM_BYTES = 1.3, 0.15, 2 * 2**30


class Ready(Augmentation):
    """Views that are there already: the images themselves."""

    @functools.partial(jax.jit, static_argnums=0)
    def two_views(self, key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return each image twice."""
        return to_float(images), to_float(images)


def stages(batch: int, width: int) -> dict[str, Stage]:
    """Return what is timed."""
    head = {"proj_hidden_dim": 8 * width, "proj_output_dim": OUTPUTS}
    own = {"optimizer": Momentum(weight_decay=1e-4), "schedule": Constant(), **head}
    found = {}
    for name, option in (("SimCLR", Simclr(**own)), ("MoCo", Moco(**own, queue_size=4096))):
        recipe = Recipe(
            model=Resnet(depth=18, width=width), pretrain=option, lr_pre=1e-3, pretrain_steps=10**6, batch_size=batch,
            log_every=UPDATES,
        )  # fmt: skip
        found[name] = resolve(recipe, images()).pretrain_stage
    simclr = found["SimCLR"]
    found["SimCLR, views ready"] = replace(simclr, objective=replace(simclr.objective, augmentation=Ready()))
    return found


def images() -> Transfer:
    """Return random pictures."""
    rng = np.random.default_rng(0)
    part = Split(rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8), rng.integers(0, 10, ROWS, np.int32))
    return Transfer("classification", {"train": part}, {"train": part}, 10, 10, new_head=True)


def updates(stage: Stage) -> tuple[Callable[[], Times], tuple[float, float, float]]:
    """Return what makes some updates with the engine's program; seconds of compiling, MFLOP and MB of one."""
    data = images()
    params = stage.model.init(jax.random.PRNGKey(stage.seed), data.features, stage.outputs)
    run = runner(stage, params, data.source["train"])
    start = time.perf_counter()
    cost = update_cost(stage, params, data.source["train"])
    compiling = time.perf_counter() - start
    return lambda: timed(lambda: run.advance(0, UPDATES), UPDATES), (compiling, cost.flops / 1e6, cost.peak_bytes / 1e6)


def parts(batch: int) -> dict[str, Callable[[], Times]]:
    """Return the parts of an update that are timed by themselves: the gathering of rows, and both views."""
    rows = jax.device_put(images().source["train"].x)
    order = jax.random.permutation(jax.random.PRNGKey(0), ROWS)[:batch]
    gather, views = Compiled(lambda x, order: x[order]), Compiled(Augmentation().two_views)
    batch_rows = gather(rows, order)
    key = jax.random.PRNGKey(1)
    return {
        "rows gathered": lambda: timed(lambda: gather(rows, order), 1),
        "both views": lambda: timed(lambda: views(key, batch_rows), 1),
    }


def asked(other: subprocess.Popen[str], case: str, times: int) -> dict[str, float]:
    """Return what the other side measures."""
    assert other.stdin is not None and other.stdout is not None  # noqa: PT018
    print(case, times, file=other.stdin, flush=True)
    return json.loads(other.stdout.readline())


def ratio(over: list[Times], under: list[Times], clock: str) -> float:
    """Return the median of the turns' ratios."""
    return statistics.median(a[clock] / b[clock] for a, b in zip(over, under, strict=True))


def middle(times: list[Times], clock: str) -> str:
    """Return the median in milliseconds."""
    return f"{statistics.median(one[clock] for one in times) * 1e3:.1f}"


def compare(python: str, batch: int, width: int, turns: int, cases: list[str]) -> None:
    """Print what both sides need, by turns."""
    other = subprocess.Popen(
        [python, str(OTHER), str(width), str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    print(f"against {asked(other, 'versions', 1)['versions']}\n")
    runs, facts = {}, {}
    for name, stage in stages(batch, width).items():
        if name in cases:
            runs[name], facts[name] = updates(stage)
            print(f"{name}, compiled: {facts[name]}", file=sys.stderr)
    runs |= parts(batch)
    runs["PyTorch"] = lambda: asked(other, "update", UPDATES)
    runs["PyTorch, both views"] = lambda: asked(other, "views", 1)
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            found = run()
            print(f"turn {turn}, {name}: {found}", file=sys.stderr)
            if turn:  # the first one warms up
                times[name].append(found)
    other.terminate()
    title = f"ResNet-18 x {width / 64:g}, {2 * batch} views"
    report(title, times, facts)


def report(title: str, times: Mapping[str, list[Times]], facts: Mapping[str, tuple[float, float, float]]) -> None:
    """Print the tables."""
    own = times["SimCLR"]
    rows = []
    for name, found in times.items():
        shares = [f"{ratio(found, own, clock):.3f}" for clock in ("wall", "processor")]
        rows.append((name, middle(found, "wall"), middle(found, "processor"), *shares))
    table((title, "ms", "processor ms", "of SimCLR's update", "by processor"), rows)
    print()
    torch, views = ("PyTorch / Thaw", times["PyTorch"], own), ("views of an update", times["both views"], own)
    rows = [
        (name, *(f"{ratio(over, under, clock):.3g}" for clock in ("wall", "processor")), wanted)
        for (name, over, under), wanted in ((torch, f">= {AIM}"), (views, f"<= {AIM_VIEWS}"))
    ]
    table((title, "median ratio", "by processor", "wanted"), rows)
    print()
    header = ("an update's program", "compiled or read in, s", "GFLOP", "peak MB")
    table(header, [(name, f"{s:.1f}", f"{flop / 1e3:.1f}", f"{mb:.0f}") for name, (s, flop, mb) in facts.items()])
    print()


def loss_memory() -> None:
    """Print what NT-Xent and its gradient need, with all similarities at once and by chunks."""
    half = jax.ShapeDtypeStruct((EMBEDDINGS // 2, OUTPUTS), jnp.float32)
    rows = []
    for chunk in (None, CHUNK):
        slope = Compiled(jax.value_and_grad(lambda a, b, chunk=chunk: nt_xent(a, b, 0.5, chunk=chunk), argnums=(0, 1)))
        rows.append((str(chunk), f"{slope.cost(half, half).peak_bytes / 2**20:.0f}", f"{AIM_BYTES / 2**20:.0f}"))
    table((f"NT-Xent and gradient, {EMBEDDINGS} x {OUTPUTS}: rows at once", "peak MiB", "wanted, at most"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", metavar="PYTHON", help="a Python with torch")
    parser.add_argument("--batch", type=int, default=256, help="images an update (256)")
    parser.add_argument("--width", type=int, default=64, help="features of the first stage (64)")
    parser.add_argument("--turns", type=int, default=3, help="turns that count (3)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what is compiled, all by default")
    arguments = parser.parse_args()
    prepare_jax()
    print(machine())
    loss_memory()
    compare(reference_python(arguments.reference), arguments.batch, arguments.width, arguments.turns, arguments.cases)


if __name__ == "__main__":
    main()
