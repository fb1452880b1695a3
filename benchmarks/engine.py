"""What the engine's loop saves against the loop one writes first, and a frozen trunk against full fine-tuning.

python benchmarks/engine.py
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
from _runs import first_phase
from _timing import machine, seconds, table

from src.config.hparams import bind, static_part
from src.data.diabetes import Diabetes
from src.models.mlp import Mlp
from src.objectives.kinds import for_kind
from src.optim.optimizers import Adamw
from src.optim.schedules import Constant
from src.recipe.spec import Recipe
from src.strategies.frozen import Frozen
from src.strategies.full import Full
from src.training.compiled import Compiled, prepare_jax
from src.training.loop import train
from src.training.stage import Stage, frozen_paths, traced
from src.training.step import start, update
from src.types import Split, ignore

STEPS = 1000


def loops() -> None:
    """Time 1,000 updates of the diabetes recipe."""
    data = Diabetes().load()
    stage = first_phase(Recipe(finetune_steps=STEPS, strategy=Full(), log_every=100), data)
    params = stage.model.init(jax.random.PRNGKey(0), data.features, stage.outputs)
    x, y = data.target["train"]
    optimizer = optax.sgd(0.05)

    @jax.jit
    def step(params, state):
        def loss_of(p):
            return ((stage.model.apply(p, x, 1)[:, 0] - y) ** 2).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def plain(synchronise: bool) -> None:
        p, state = params, optimizer.init(params)
        for _ in range(STEPS):
            p, state, loss = step(p, state)
            if synchronise:
                float(loss)
        jax.block_until_ready(p)

    measured = {
        "Thaw, a row logged every 100": seconds(lambda: train(stage, params, data.target["train"], {}, ignore)),
        "Thaw, a row logged every update": seconds(
            lambda: train(dataclasses.replace(stage, log_every=1), params, data.target["train"], {}, ignore)
        ),
        "a jitted step in a Python loop": seconds(lambda: plain(False)),
        "the same, reading each loss": seconds(lambda: plain(True)),
    }
    floor = measured["Thaw, a row logged every 100"]
    table(
        ("1,000 updates of the diabetes recipe", "us an update", "ratio"),
        [(name, f"{value / STEPS * 1e6:.1f}", f"{value / floor:.1f}") for name, value in measured.items()],
    )


def one_update(stage, hyper, state, frozen, batch):
    return update(bind(stage, hyper), state, frozen, batch, 0)


def frozen_and_full() -> None:
    """Time one update of a wide perceptron, trunk frozen and not."""
    rng = np.random.default_rng(0)
    batch = Split(rng.standard_normal((64, 256), np.float32), rng.standard_normal(64, np.float32))
    found = {}
    for strategy in (Full(), Frozen()):
        stage = Stage(
            Mlp(widths=(256,) * 6),
            1,
            for_kind("regression"),
            strategy,
            Adamw(clip_norm=1.0),
            Constant(),
            0.01,
            100,
            0,
        )
        params = stage.model.init(jax.random.PRNGKey(0), (256,), 1)
        frozen = {path: params[path] for path in frozen_paths(stage, params)}
        arguments = (traced(stage), start(stage, params), frozen, batch)
        step = Compiled(functools.partial(one_update, static_part(stage)))

        def run(step: Compiled = step, arguments: tuple = arguments) -> None:
            jax.block_until_ready([step(*arguments) for _ in range(20)])

        found[type(strategy).__name__.lower()] = (step.cost(*arguments).flops, seconds(run, repeats=9) / 20)
    full = found["full"]
    table(
        ("an update, 6 x 256, batch 64, AdamW", "MFLOP", "ratio to full", "ms", "ratio to full"),
        [
            (name, f"{f / 1e6:.1f}", f"{f / full[0]:.2f}", f"{t * 1e3:.2f}", f"{t / full[1]:.2f}")
            for name, (f, t) in found.items()
        ],
    )


def main() -> None:
    prepare_jax()
    print(machine())
    loops()
    print()
    frozen_and_full()


if __name__ == "__main__":
    main()
