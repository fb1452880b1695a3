"""The reference function of the recipe, on the same engine as everything else."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..data.base import Transfer
from ..training.calls import Steps, execute
from ..types import Split, ignore
from .evaluate import evaluate_target
from .finetune import finetune
from .pretrain import pretrain
from .resolve import resolve
from .spec import Recipe


def pretrain_then_finetune(
    seed: float,
    x_pre: Float[ArrayLike, "Np D"],
    y_pre: Float[ArrayLike, " Np"],
    x_fine: Float[ArrayLike, "Nf D"],
    y_fine: Float[ArrayLike, " Nf"],
    lr_pre: float,
    lr_fine: float,
    finetune_steps: float,
) -> Float[Array, " 1"]:
    """Pre-train ``Dense(8) -> relu -> Dense(1)`` for 3 SGD steps, then fine-tune it with ``Dense_0`` frozen.

    The loss is the mean squared error over ``(N,)`` predictions; initial values come from ``PRNGKey(int(seed))``.

    Args:
        seed: cast to int.
        x_pre: source features.
        y_pre: source targets.
        x_fine: target features.
        y_fine: target targets.
        lr_pre: learning rate of pre-training.
        lr_fine: learning rate of fine-tuning.
        finetune_steps: number of fine-tuning updates, cast to int; 0 evaluates the pre-trained network.

    Returns:
        The loss on ``(x_fine, y_fine)`` after the last update, shape (1,).
    """
    recipe = Recipe(
        seed=int(seed),
        lr_pre=float(lr_pre),
        lr_fine=float(lr_fine),
        pretrain_steps=3,
        finetune_steps=int(finetune_steps),
        log_every=100,
    )

    def part(x: ArrayLike, y: ArrayLike) -> Split:
        return Split(np.asarray(x, np.float32), np.asarray(y, np.float32))

    source, target = {"train": part(x_pre, y_pre)}, {"train": part(x_fine, y_fine)}
    run = resolve(recipe, Transfer("regression", source, target, 1, 1, new_head=False))

    def steps() -> Steps[dict[str, float]]:
        pretrained = yield from pretrain(run, ignore)
        fine = yield from finetune(run, pretrained.params, ignore)
        return (yield from evaluate_target(run, fine))

    return jnp.array([execute(steps())["train_loss"]], jnp.float32)
