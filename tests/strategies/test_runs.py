"""Every strategy through the whole recipe: what rests, what it costs, what is refused, where it converges."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from src.data.diabetes import Diabetes
from src.data.digits import Digits
from src.errors import UserError
from src.models.base import ApplyOptions
from src.models.cnn import Cnn
from src.models.mlp import Mlp
from src.optim.optimizers import Adam, Momentum
from src.recipe.resolve import resolve
from src.recipe.spec import Recipe
from src.strategies.adapter import Adapter, AdapterKind
from src.strategies.bitfit import Bitfit
from src.strategies.chain_thaw import ChainThaw
from src.strategies.discriminative import Discriminative
from src.strategies.dora import Dora
from src.strategies.freeze_bottom import FreezeBottom
from src.strategies.freeze_middle import FreezeMiddle
from src.strategies.frozen import Frozen
from src.strategies.full import Full
from src.strategies.gradual import Gradual
from src.strategies.ia3 import Ia3
from src.strategies.linear_probe import LinearProbe
from src.strategies.lora import Lora
from src.strategies.lp_ft import LpFt
from src.strategies.masked import Masked
from src.strategies.scratch import Scratch
from src.strategies.top_k import TopK
from src.training.cost import update_cost
from src.training.stage import frozen_paths, initial, with_added
from src.training.step import start
from src.training.trainer import TrainerConfig
from src.types import ignore
from tests.runs import finetune, phases, pretrain_once, resolve_trainable, run_finetuning, start_untrained

ALL = {
    "full": Full(),
    "frozen": Frozen(),
    "masked": Masked(),
    "freeze_bottom": FreezeBottom(blocks=2),
    "freeze_middle": FreezeMiddle(bottom=1, top=1),
    "top_k": TopK(blocks=1),
    "linear_probe": LinearProbe(),
    "lp_ft": LpFt(),
    "discriminative": Discriminative(),
    "gradual": Gradual(every=2),
    "chain_thaw": ChainThaw(every=2),
    "bitfit": Bitfit(),
    "lora": Lora(rank=2),
    "dora": Dora(rank=2),
    "ia3": Ia3(),
    "adapter": Adapter(size=3),
    "scratch": Scratch(),
}
RESTING = {  # groups of which not one bit may change
    "full": (), "discriminative": (), "scratch": (), "lp_ft": (), "gradual": (), "chain_thaw": (), "bitfit": (),
    "frozen": (0, 1, 2), "masked": (0, 1, 2), "linear_probe": (0, 1, 2), "freeze_bottom": (0, 1),
    "freeze_middle": (1,), "top_k": (0, 1), "lora": (0, 1, 2), "dora": (0, 1, 2), "ia3": (0, 1, 2),
    "adapter": (0, 1, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def diabetes():
    return Diabetes().load()


@pytest.mark.parametrize("name", ALL)
def test_what_rests_keeps_its_bits_and_what_moves_moves(diabetes, name):
    recipe = Recipe(
        model=Mlp((6, 5, 4)), strategy=ALL[name], optimizer=Adam(), pretrain_steps=10, finetune_steps=10, lr_fine=0.01
    )
    (pre,) = pretrain_once([recipe], diabetes, None)
    (outcome,) = run_finetuning([recipe], diabetes, [pre], [ignore])
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()
    assert outcome.moved.unchanged == ()
    for path, leaf in pre.params.items():
        rests = int(path[6]) in RESTING[name] or (name == "bitfit" and path.endswith("kernel") and path[6] != "3")
        assert np.array_equal(leaf, outcome.params[path]) == rests, path
    assert np.isfinite(outcome.objective)


@pytest.mark.parametrize(
    "strategy",
    [
        FreezeBottom(blocks=1),
        LinearProbe(),
        pytest.param(Lora(rank=2), marks=pytest.mark.slow),
        pytest.param(Full(), marks=pytest.mark.slow),
        pytest.param(Adapter(kind=AdapterKind.houlsby, size=4), marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__,
)
def test_batch_statistics_rest_with_their_block(strategy):
    """Also on the way: a block at rest is run as in inference, so its statistics cannot even be looked at."""
    data = Digits().load()
    data = replace(data, target={name: type(part)(part.x[:64], part.y[:64]) for name, part in data.target.items()})
    recipe = Recipe(
        model=Cnn((4, 6)),
        strategy=strategy,
        optimizer=Adam(),
        finetune_steps=4,
        log_every=2,
        batch_size=16,
        lr_fine=0.01,
    )
    (pre,) = start_untrained([recipe], data)
    rows = []
    (outcome,) = run_finetuning([recipe], data, [pre], [rows.append])
    moving = resolve(recipe, data).trainable.paths
    statistics = [path for path in pre.params if path.rsplit("/")[-1] in ("mean", "var")]
    assert len(statistics) == 8
    for path in statistics:
        moved = not np.array_equal(pre.params[path], outcome.params[path])
        assert moved == (path in moving), path
    resting = {"FreezeBottom": 4, "Full": 0}.get(type(strategy).__name__, 8)
    assert sum(path not in moving for path in statistics) == resting
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()


# --- free where it should be free ------------------------------------------------------------------------------------

SHARES = {  # of full fine-tuning's FLOPs, on six blocks of 512
    "frozen": (Frozen(), 0.32, 0.36),
    "masked": (Masked(), 0.32, 0.36),
    "linear_probe": (LinearProbe(), 0.32, 0.36),
    "bitfit": (Bitfit(), 0.60, 0.65),
    "lora": (Lora(rank=8), 0.63, 0.70),
    "ia3": (Ia3(), 0.60, 0.65),
    "top_k": (TopK(blocks=2), 0.48, 0.56),
    "discriminative": (Discriminative(), 0.98, 1.02),
}


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(0)
    data = Digits().load()
    part = type(data.target["train"])
    rows = part(rng.normal(size=(256, 512)).astype(np.float32), rng.integers(0, 5, 256).astype(np.int32))
    data = replace(data, source={"train": rows}, target={"train": rows, "val": rows}, new_head=False)
    recipe = Recipe(
        model=Mlp((512,) * 6), optimizer=Adam(clip_norm=1.0), batch_size=128, trainer=TrainerConfig(feature_cache=0.0)
    )
    return recipe, data, start_untrained([recipe], data)[0].params


def cost(recipe, data, params):
    ((stage,),) = phases([recipe], data)
    return update_cost(stage, params, data.target["train"])


@pytest.mark.parametrize("name", SHARES)
def test_flops_and_state_are_those_of_what_moves(wide, name):
    recipe, data, params = wide
    strategy, low, high = SHARES[name]
    full, own = cost(replace(recipe, strategy=Full()), data, params), cost(
        replace(recipe, strategy=strategy), data, params
    )  # fmt: skip
    assert low < own.flops / full.flops < high
    ((stage,),) = phases([replace(recipe, strategy=strategy)], data)
    frozen = set(frozen_paths(stage, with_added(stage, params)))
    state = start(stage, params)
    sizes = sum(leaf.size for path, leaf in {**params, **state.params}.items() if path not in frozen)
    assert own.optimizer_bytes <= 4 * (2 * sizes + 10)  # two moments of what moves, and counts


def test_kept_features_cost_a_head(wide):
    recipe, data, params = wide
    kept = finetune(
        [replace(recipe, strategy=LinearProbe(), trainer=TrainerConfig(), finetune_steps=1)], data, [params], [ignore]
    )
    assert kept.cost.flops < 0.01 * cost(replace(recipe, strategy=Full()), data, params).flops


# --- the converged probe ---------------------------------------------------------------------------------------------


def test_the_converged_probe_is_scikit_learn_s_logistic_regression():
    """Same optimum of one convex problem: cross-entropy over the features plus L2 on the weights, not the biases."""
    data = Digits().load()
    decay = 0.01
    recipe = Recipe(
        model=Mlp((16,)), strategy=LinearProbe(), pretrain_steps=50, finetune_steps=4000, log_every=1000, lr_fine=0.5,
        optimizer=Momentum(momentum=0.9, weight_decay=decay, decay_bias_and_norm=False),
    )  # fmt: skip
    (pre,) = pretrain_once([recipe], data, None)
    end = finetune([recipe], data, [pre.params], [ignore]).fits[0].params
    model = recipe.model
    features = {
        name: np.asarray(model.apply(end, part.x, data.outputs, ApplyOptions(stop=1)), np.float64)
        for name, part in data.target.items()
    }
    rows = data.target["train"]
    # Decoupled decay on momentum's step: w -= lr (m + decay w) with m -> g / (1 - momentum) at rest.
    strength = decay * (1 - 0.9)
    oracle = LogisticRegression(C=1 / (strength * len(rows.x)), tol=1e-10, max_iter=10_000)
    oracle.fit(features["train"], rows.y)
    logits = features["test"] @ np.asarray(end["Dense_1/kernel"], np.float64) + np.asarray(end["Dense_1/bias"])
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(1, keepdims=True), oracle.predict_proba(features["test"]), atol=2e-3)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Lora(rank=9), r"rank 9 is above the .* allowed: at most"),
        (Lora(rank=2, targets=("Dense_7/.*",)), r"Dense_7"),
        (Lora(rank=2, targets=("Dense_0/bias",)), r"Dense_0/bias"),
        (FreezeBottom(blocks=4), r"strategy.blocks is 4"),
        (TopK(blocks=4), r"strategy.blocks is 4"),
        (Gradual(every=40), r"unfreezing 4 groups needs at least 121 updates, finetune_steps is 100"),
        (ChainThaw(every=40), r"updates, finetune_steps is 100"),
        (Masked(("nothing",)), r"the pattern 'nothing' matches no parameter"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_before_any_training(diabetes, strategy, message):
    with pytest.raises(UserError, match=message):
        resolve_trainable(Recipe(model=Mlp((6, 5, 4)), strategy=strategy), diabetes)


def test_scratch_starts_where_pre_training_would_have(diabetes):
    recipe = Recipe(strategy=Scratch())
    (pre,) = pretrain_once([recipe], diabetes, None)
    ((stage,),) = phases([recipe], diabetes)
    for path, leaf in initial(stage, diabetes.features, 0).items():
        np.testing.assert_array_equal(leaf, pre.params[path])
    assert pre.rows == []
    assert pre.metrics == {}
