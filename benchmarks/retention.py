"""How long the diagonal of the Fisher information takes, against gradients of single rows that are written down.

python benchmarks/retention.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, seconds, table

from src.engine.compiled import prepare_jax
from src.models.mlp import Mlp
from src.retention.fisher import Estimator, fisher_diagonal

ROWS, FEATURES, CLASSES = 2000, 784, 10
MODEL = Mlp((256, 256))


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


def main() -> None:
    prepare_jax()
    print(machine())
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


if __name__ == "__main__":
    main()
