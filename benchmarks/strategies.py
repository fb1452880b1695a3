"""What each strategy costs on a network of six blocks, as ratios to full fine-tuning; and what kept features save.

python benchmarks/strategies.py
"""

from dataclasses import replace

import jax
import numpy as np
from _runs import finetune, first_phase, runner, start_untrained
from _timing import machine, seconds, table

from src.data.base import Transfer
from src.models.mlp import Mlp
from src.optim.optimizers import Adamw
from src.recipe.spec import Recipe
from src.strategies.adapter import Adapter, Ia3
from src.strategies.blocks import FreezeBottom, FreezeMiddle, TopK
from src.strategies.discriminative import Discriminative
from src.strategies.frozen import Bitfit, Frozen, LinearProbe, Masked
from src.strategies.full import Full
from src.strategies.lora import Dora, Lora
from src.training.compiled import prepare_jax
from src.training.cost import update_cost
from src.training.loop import PhaseRunner
from src.training.stage import frozen_paths, with_added
from src.training.trainer import TrainerConfig
from src.training.vectorize import RunAxis
from src.types import Split

WIDTH, BATCH, ROWS, EPOCHS = 512, 128, 4096, 10
STRATEGIES = {
    "full": Full(),
    "discriminative": Discriminative(),
    "frozen (multi_transform)": Frozen(),
    "masked (optax.masked)": Masked(),
    "linear_probe": LinearProbe(),
    "top_k, 2 blocks": TopK(blocks=2),
    "freeze_bottom, 3 blocks": FreezeBottom(blocks=3),
    "freeze_middle": FreezeMiddle(),
    "bitfit": Bitfit(),
    "lora, rank 8": Lora(rank=8),
    "dora, rank 8": Dora(rank=8),
    "ia3": Ia3(),
    "adapter, 64": Adapter(size=64),
}


def task() -> Transfer:
    """Return random rows of ten classes."""
    rng = np.random.default_rng(0)

    def part(rows: int) -> Split:
        return Split(rng.normal(size=(rows, WIDTH)).astype(np.float32), rng.integers(0, 10, rows).astype(np.int32))

    return Transfer("classification", {"train": part(256)}, {"train": part(ROWS), "val": part(256)}, 10, 10, False)


def recipe(**changes: object) -> Recipe:
    """Return the recipe that all are measured on; features are not kept."""
    base = Recipe(
        model=Mlp((WIDTH,) * 6), optimizer=Adamw(clip_norm=1.0), batch_size=BATCH, finetune_steps=ROWS // BATCH,
        log_every=ROWS // BATCH, trainer=TrainerConfig(feature_cache=0.0),
    )  # fmt: skip
    return replace(base, **changes)


def costs(data: Transfer) -> None:
    """Measure one update under each strategy."""
    found = {}
    start = start_untrained(recipe(), data)
    for name, strategy in STRATEGIES.items():
        stage = first_phase(recipe(strategy=strategy), data)
        cost = update_cost(stage, start.params, data.target["train"])
        run = runner(stage, start.params, data.target["train"])
        steps = stage.steps

        def epoch(run: PhaseRunner = run, steps: int = steps) -> None:
            jax.block_until_ready(run.advance(0, steps))

        moving = sum(np.size(leaf) for leaf in jax.tree.leaves(run.state.params))
        still = set(frozen_paths(stage, with_added(stage, start.params)))
        held = sum(still & set(part) != set() for part in _dicts(run.state.optimizer))
        found[name] = (cost, seconds(epoch, repeats=5) / steps, moving, held)
    full = found["full"]
    table(
        ("strategy", "MFLOP", "of full", "ms", "of full", "optimizer MB", "peak MB", "of full", "frozen in state"),
        [
            (
                name,
                f"{cost.flops / 1e6:.0f}", f"{cost.flops / full[0].flops:.2f}",
                f"{time * 1e3:.2f}", f"{time / full[1]:.2f}",
                f"{cost.optimizer_bytes / 1e6:.2f}", f"{cost.peak_bytes / 1e6:.1f}",
                f"{cost.peak_bytes / full[0].peak_bytes:.2f}", str(held),
            )
            for name, (cost, time, _, held) in found.items()
        ],
    )  # fmt: skip


def _dicts(tree: object) -> list[dict]:
    """Return the dictionaries of arrays in an optimizer's state: each holds one value a parameter."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, dict))
    nodes = [node for node in leaves if isinstance(node, dict)]
    return [{path: leaf for path, leaf in node.items() if hasattr(leaf, "shape")} for node in nodes]


def kept_features(data: Transfer) -> None:
    """Time ten epochs of a probe, whole and on kept features, against full fine-tuning; then 64 rates at once."""
    steps = EPOCHS * ROWS // BATCH
    start = start_untrained(recipe(), data)
    one = recipe(finetune_steps=steps, strategy=LinearProbe())
    cached = replace(one, trainer=TrainerConfig())
    many = [replace(cached, lr_fine=float(rate)) for rate in np.logspace(-4, -1, 64)]

    def single(chosen: Recipe) -> None:
        finetune([chosen], data, start)

    def sweep() -> None:
        finetune(many, data, start, RunAxis.vmap)

    times = {
        "full": seconds(lambda: single(replace(one, strategy=Full())), repeats=3),
        "probe, whole network in every update": seconds(lambda: single(one), repeats=3),
        "probe on kept features": seconds(lambda: single(cached), repeats=5),
        "64 rates of the probe on kept features (vmap)": seconds(sweep, repeats=3),
    }
    full, point = times["full"], times["probe on kept features"]
    table(
        (f"{EPOCHS} epochs of {ROWS} rows", "s", "full is ... times slower", "of one cached point"),
        [(name, f"{time:.3f}", f"{full / time:.1f}", f"{time / point:.2f}") for name, time in times.items()],
    )


if __name__ == "__main__":
    prepare_jax()
    print(machine(), end="\n\n")
    data = task()
    costs(data)
    print()
    kept_features(data)
