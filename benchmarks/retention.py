"""What keeping the source task costs: the Fisher information, an update under a penalty, a sweep over its strength.

python benchmarks/retention.py

The diagonal of the Fisher information is measured against gradients of single rows that are written down; an update
with a penalty against one without, by turns; and lanes of one program against the same runs one by one.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from _runs import finetune, first_phase, pretrain, retention_state, runner, start_untrained
from _timing import machine, seconds, table

from src.data.base import Transfer
from src.data.digits import Digits
from src.models.mlp import Mlp
from src.optim.optimizers import Adam
from src.optim.schedules import Constant
from src.pretraining.base import Supervised
from src.recipe.spec import Recipe
from src.retention.base import NoRetention
from src.retention.ewc import Ewc
from src.retention.fisher import Estimator, fisher_diagonal
from src.retention.l2_sp import L2Sp
from src.strategies.full import Full
from src.training.compiled import prepare_jax
from src.training.cost import update_cost
from src.training.vectorize import RunAxis, _programs
from src.types import Split

ROWS, FEATURES, CLASSES = 2000, 784, 10
MODEL = Mlp((256, 256))
BATCH, UPDATES, TURNS = 128, 100, 25
STRENGTHS = [float(strength) for strength in np.logspace(-3, 3, 16)]


def log_prob(params, x):
    return jax.nn.log_softmax(MODEL.apply(params, x[None], CLASSES)[0])


@jax.jit
def row_by_row(params, x):
    """The exact one as it is defined: each row's Jacobian, squared and weighted, one row after the other."""

    def add(total, row):
        log_p, jacobian = log_prob(params, row), jax.jacrev(log_prob)(params, row)
        weigh = functools.partial(jnp.tensordot, jnp.exp(log_p), axes=1)
        return {path: total[path] + weigh(jnp.square(jacobian[path])) for path in total}, None

    return jax.lax.scan(add, {path: jnp.zeros_like(leaf) for path, leaf in params.items()}, x)[0]


def by_turns(runs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return each one's seconds, a turn each: what else the machine does hits all of a turn alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return times


def updates() -> None:
    """Time an update of everything with and without a penalty: the engine's program, 100 updates a call."""
    rng = np.random.default_rng(0)

    def part(rows: int) -> Split:
        return Split(rng.standard_normal((rows, FEATURES), np.float32), rng.integers(0, CLASSES, rows, np.int32))

    data = Transfer("classification", {"train": part(ROWS)}, {"train": part(4096)}, CLASSES, CLASSES, new_head=False)
    base = Recipe(
        model=MODEL, strategy=Full(), optimizer=Adam(), lr_fine=0.0001, batch_size=BATCH, finetune_steps=UPDATES,
        log_every=UPDATES,
    )  # fmt: skip
    start = start_untrained(base, data)
    drivers, costs = {}, {}
    for method in (NoRetention(), L2Sp(strength=0.01), Ewc(strength=1.0, samples=100)):
        name, recipe = type(method).__name__, replace(base, retention=method)
        stage = first_phase(recipe, data)
        kept = retention_state(recipe, data, start.params)
        drivers[name] = runner(stage, start.params, data.target["train"], kept)
        costs[name] = update_cost(stage, start.params, data.target["train"], kept)
    times = by_turns(
        {name: lambda run=run: jax.block_until_ready(run.advance(0, UPDATES)) for name, run in drivers.items()}, TURNS
    )
    plain = times["NoRetention"]
    table(
        (f"an update, {FEATURES}-256-256-{CLASSES}, batch {BATCH}, Adam", "ms, best", "ms, median", "best to best",
         "median ratio of a turn", "MFLOP"),
        [
            (
                name, f"{min(own) / UPDATES * 1e3:.3f}", f"{statistics.median(own) / UPDATES * 1e3:.3f}",
                f"{min(own) / min(plain):.3f}",
                f"{statistics.median(one / other for one, other in zip(own, plain, strict=True)):.3f}",
                f"{costs[name].flops / 1e6:.1f}",
            )
            for name, own in times.items()
        ],
    )  # fmt: skip


def strengths() -> None:
    """Time a sweep over the strength as lanes, and the same runs one by one: 200 updates of digits, 64-32.

    The Fisher information and the evaluations are included, imports are not.
    """
    data = Digits(source_val_fraction=0.2).load()
    base = Recipe(
        model=Mlp((64, 32)), pretrain=Supervised(Adam(), Constant()), strategy=Full(), optimizer=Adam(), lr_pre=0.003,
        lr_fine=0.003, pretrain_steps=300, finetune_steps=200, batch_size=32, log_every=50,
    )  # fmt: skip
    pre = pretrain(base, data)
    recipes = [replace(base, retention=Ewc(strength=strength)) for strength in STRENGTHS]

    def alone() -> None:
        for recipe in recipes:
            finetune([recipe], data, pre)

    def lanes(how: RunAxis) -> None:
        finetune(recipes, data, pre, how)

    def each_anew() -> None:
        for recipe in recipes:
            compile_anew()
            finetune([recipe], data, pre)

    def anew(run: Callable[[], None]) -> None:
        compile_anew()
        run()

    ways = {"one by one": alone, "map": lambda: lanes(RunAxis.map), "vmap": lambda: lanes(RunAxis.vmap)}
    first = {name: functools.partial(anew, run) for name, run in ways.items()}
    print()
    compare("programs at hand", by_turns(ways, 9))
    print()
    compare("programs traced, and read from disk", by_turns({**first, "one by one, a process each": each_anew}, 2))


def compare(what: str, times: Mapping[str, list[float]]) -> None:
    """Print how much faster than one by one each way was."""
    alone = times["one by one"]
    table(
        (f"{len(STRENGTHS)} strengths of EWC, {what}", "s, best", "s, median", "times faster", "median of the turns"),
        [
            (
                name, f"{min(own):.3f}", f"{statistics.median(own):.3f}", f"{min(alone) / min(own):.1f}",
                f"{statistics.median(one / mine for one, mine in zip(alone, own, strict=True)):.1f}",
            )
            for name, own in times.items()
        ],
    )  # fmt: skip


def compile_anew() -> None:
    """Forget the compiled programs, as a process that begins has none; those on disk stay."""
    _programs.cache_clear()
    jax.clear_caches()


def fisher() -> None:
    """Time the four estimates."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((ROWS, FEATURES), np.float32))
    y = jnp.asarray(rng.integers(0, CLASSES, ROWS))
    params = MODEL.init(jax.random.PRNGKey(0), (FEATURES,), CLASSES)
    measured = {}
    for estimator in Estimator:
        estimate = functools.partial(fisher_diagonal, log_prob, estimator=estimator, key=jax.random.PRNGKey(0))
        compiled = jax.jit(lambda params, x, y, estimate=estimate: estimate(params, x, targets=y))
        measured[estimator.name] = seconds(lambda run=compiled: jax.block_until_ready(run(params, x, y)))
    few = ROWS // 20
    measured["exact, row by row (of 100 rows, times 20)"] = 20 * seconds(
        lambda: jax.block_until_ready(row_by_row(params, x[:few])), repeats=3
    )
    floor = measured["exact"]
    table(
        (f"Fisher diagonal, {ROWS:,} rows, {FEATURES}-256-256-{CLASSES}", "s", "ratio to exact"),
        [(name, f"{value:.3f}", f"{value / floor:.1f}") for name, value in measured.items()],
    )


def main() -> None:
    prepare_jax()
    print(machine())
    fisher()
    print()
    updates()
    strengths()


if __name__ == "__main__":
    main()
