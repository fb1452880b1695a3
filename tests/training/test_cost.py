"""Frozen means free: the compiled program of a frozen trunk has no backward pass through it, in every form."""

import jax
import numpy as np
import pytest

from src.config.hparams import bind, static_part
from src.models.mlp import Mlp
from src.objectives.kinds import for_kind
from src.optim.optimizers import Adamw
from src.optim.schedules import Constant
from src.strategies.frozen import Masked
from src.strategies.full import Full
from src.training.cost import update_cost
from src.training.stage import Stage, frozen_paths, traced
from src.training.step import start, update
from src.types import Split
from tests.training.test_forms import Frozen, SplitFrozen

BATCH = Split(np.zeros((64, 256), np.float32), np.zeros(64, np.float32))


def stage(strategy):
    return Stage(
        model=Mlp(widths=(256,) * 5),
        outputs=1,
        objective=for_kind("regression"),
        strategy=strategy,
        optimizer=Adamw(clip_norm=1.0),
        schedule=Constant(),
        lr=0.1,
        steps=10,
        seed=0,
    )


def frozen_half(stage, params):
    return {path: params[path] for path in frozen_paths(stage, params)}


def step_flops(strategy):
    """Return XLA's count for one update, everything that is logged included."""
    one = stage(strategy)
    params = one.model.init(jax.random.PRNGKey(0), (256,), 1)

    def step(hyper, state, frozen):
        return update(bind(static_part(one), hyper), state, frozen, BATCH, 0)

    cost = jax.jit(step).lower(traced(one), start(one, params), frozen_half(one, params)).compile().cost_analysis()
    return cost["flops"]


@pytest.mark.parametrize("strategy", [Frozen(), Masked(), SplitFrozen()], ids=["multi_transform", "masked", "split"])
def test_frozen_trunk_costs_under_two_fifths_of_full(strategy):
    assert step_flops(strategy) < 0.4 * step_flops(Full())


@pytest.mark.parametrize("strategy", [Full(), Frozen()])
def test_what_a_run_reports_is_the_cost_of_one_update(strategy):
    one = stage(strategy)
    params = one.model.init(jax.random.PRNGKey(0), (256,), 1)
    np.testing.assert_allclose(update_cost(one, params, BATCH).flops, step_flops(strategy), rtol=0.02)


def test_frozen_leaves_have_no_optimizer_state():
    one = stage(SplitFrozen())
    params = one.model.init(jax.random.PRNGKey(0), (256,), 1)
    state, frozen = start(one, params), frozen_half(one, params)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.optimizer)]
    assert max(sizes) == 256  # Adam's moments of the head's kernel, nothing of the trunk's 256 x 256
    assert all(path.startswith("Dense_5/") for path in state.params)
    assert len(frozen) == 10
