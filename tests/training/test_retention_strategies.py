"""Every way of keeping the source task under every strategy: it trains to finite numbers, or says why it cannot."""

import math
from dataclasses import replace

import numpy as np
import pytest

from src.config.schema import option_class, option_names
from src.data.base import Transfer
from src.errors import UserError
from src.models.base import same_bits
from src.models.mlp import Mlp
from src.recipe.resolve import resolve
from src.recipe.spec import Recipe
from src.types import Split, ignore
from tests.runs import pretrain, run_finetuning, start_untrained

RNG = np.random.default_rng(0)
# Defaults are wider than the network below.
SETTINGS = {"lora": {"rank": 2}, "dora": {"rank": 2}, "adapter": {"size": 2}}
ISOLATED = {"adapter", "dora", "frozen", "ia3", "linear_probe", "lora", "masked"}  # what moves is the head, or added
QUICK = {
    ("full", "ewc"), ("discriminative", "l2_sp"), ("lora", "isolate"), ("lp_ft", "replay"), ("adapter", "distill"),
    ("freeze_bottom", "online_ewc"), ("scratch", "none"),
}  # fmt: skip
STRATEGIES, RETENTIONS = option_names("strategy"), option_names("retention")


def rows(classes):
    x = RNG.normal(size=(12, 4)).astype(np.float32)
    return Split(x, (np.arange(12) % classes).astype(np.int32))


def transfer(new_head):
    """A source of three classes; a target of the same three or, with a new head, of two."""
    classes = 2 if new_head else 3
    source, target = ({name: rows(k) for name in ("train", "val", "test")} for k in (3, classes))
    return Transfer("classification", source, target, 3, classes, new_head=new_head)


@pytest.fixture(scope="module")
def tasks():
    """Both kinds of target, with the pre-training that all methods share."""
    recipe = Recipe(model=Mlp((4, 4, 4)), pretrain_steps=2, finetune_steps=6, log_every=3, lr_fine=0.01)
    return {new_head: (recipe, data := transfer(new_head), pretrain([recipe], data)[0]) for new_head in (False, True)}


def refusal(strategy, retention):
    """Return what is said where the two do not go together."""
    if retention == "isolate" and strategy not in ISOLATED:
        return "'isolate', and the strategy moves .*; allowed: strategies that move only the head or what they add"
    if strategy == "scratch" and retention != "none":
        return f"'{retention}', and the strategy starts without pre-training.*; allowed with it: none"
    return None


def cases():
    """Yield every pair; quick are those that are refused, and one of each retention. The others compile for minutes."""
    for i, strategy in enumerate(STRATEGIES):
        for j, retention in enumerate(RETENTIONS):
            slow = [] if refusal(strategy, retention) or (strategy, retention) in QUICK else [pytest.mark.slow]
            yield pytest.param(strategy, retention, (i + j) % 2 == 0, marks=slow, id=f"{strategy}-{retention}")


@pytest.mark.parametrize(("strategy", "retention", "new_head"), list(cases()))
def test_they_go_together_or_say_why_not(tasks, strategy, retention, new_head):
    recipe, data, pre = tasks[new_head]
    method = option_class("retention", retention)()
    recipe = replace(
        recipe, retention=method, strategy=option_class("strategy", strategy)(**SETTINGS.get(strategy, {}))
    )
    if words := refusal(strategy, retention):
        with pytest.raises(UserError, match=words):
            resolve(recipe, data)
        return
    moving = resolve(recipe, data).trainable.paths
    start = pre if recipe.strategy.pretrained else start_untrained([recipe], data)[0]
    (outcome,) = run_finetuning([recipe], data, [start], [ignore])
    assert outcome.status == "completed"
    assert all(map(math.isfinite, outcome.metrics.values()))
    assert all(np.isfinite(leaf).all() for leaf in outcome.params.values())
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()
    if method.isolates:
        assert outcome.metrics["source_after_loss"] == outcome.metrics["source_test_loss"]
    if recipe.strategy.pretrained:
        head = {path for path in start.params if path.startswith("Dense_3/")}
        still = {path for path in start.params if path not in moving and not (new_head and path in head)}
        assert all(same_bits(outcome.params[path], start.params[path]) for path in still)
