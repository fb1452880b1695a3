"""Three ways to keep the trunk still give the same bits; the naive fourth does gradient ascent."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from src.data.diabetes import Diabetes
from src.optim.optimizers import Adam, Adamw, FreezeImpl, Momentum, Sgd
from src.recipe.spec import Recipe
from src.strategies.frozen import Frozen, Masked
from src.training.trainer import TrainerConfig
from tests.runs import finetuned, pretrained


@dataclass(frozen=True)
class SplitFrozen(Frozen):
    """The frozen trunk in the engine's own form."""

    freeze_impl: ClassVar[FreezeImpl] = FreezeImpl.split


@pytest.fixture(scope="module")
def task():
    data = Diabetes().load()
    return data, pretrained(Recipe(pretrain_steps=20), data)


OPTIMIZERS = [
    Sgd(),
    Sgd(weight_decay=0.1, clip_norm=0.05),
    Momentum(nesterov=True),
    Adam(clip_norm=0.5),
    Adamw(weight_decay=0.1),
]


@pytest.mark.parametrize(
    ("optimizer", "batch_size"),
    [
        *((optimizer, None) for optimizer in OPTIMIZERS),
        (Adamw(weight_decay=0.1), 16),
        *(pytest.param(optimizer, 16, marks=pytest.mark.slow) for optimizer in OPTIMIZERS[:4]),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'clip_norm', value)}",
)
def test_same_bits(task, optimizer, batch_size):
    data, params = task
    seen, ends = [], []
    for strategy in (SplitFrozen(), Frozen(), Masked()):
        rows = []
        whole = TrainerConfig(feature_cache=0.0)  # with kept features the trunk would not be there to be kept still
        recipe = Recipe(
            strategy=strategy,
            optimizer=optimizer,
            batch_size=batch_size,
            finetune_steps=60,
            lr_fine=0.03,
            trainer=whole,
        )
        ends.append(finetuned(recipe, data, params, rows.append).params)
        seen.append(rows)
    assert seen[0] == seen[1] == seen[2]
    for end in ends:
        for path, value in end.items():
            np.testing.assert_array_equal(value, ends[0][path])
            moved = not np.array_equal(value, params[path])
            assert moved == path.startswith("Dense_1/"), f"{path} {'moved' if moved else 'did not move'}"


def test_naive_masked_is_gradient_ascent():
    """What the recipe's text claims of ``optax.masked``, and what it does: a frozen leaf has the raw gradient added."""
    params = {"trunk": jnp.ones(3), "head": jnp.ones(3)}
    grads = {"trunk": jnp.full(3, 3.0), "head": jnp.full(3, 3.0)}

    def moved(transformation):
        updates, _ = transformation.update(grads, transformation.init(params), params)
        return jax.tree.map(lambda a, b: np.asarray(a - b), optax.apply_updates(params, updates), params)

    naive = moved(optax.masked(optax.sgd(0.1), {"trunk": False, "head": True}))
    np.testing.assert_allclose(naive["trunk"], 3.0)  # up the gradient, without a learning rate
    np.testing.assert_allclose(naive["head"], -0.3, rtol=1e-6)

    from src.optim.optimizers import transformation
    from src.optim.partition import FROZEN

    right = moved(transformation(Sgd(), lambda _: 0.1, {"trunk": FROZEN, "head": 1.0}, FreezeImpl.masked))
    np.testing.assert_array_equal(right["trunk"], 0.0)
    np.testing.assert_allclose(right["head"], -0.3, rtol=1e-6)
