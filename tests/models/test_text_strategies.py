"""Every strategy on BERT and on GPT-2: two updates on random tokens, and features kept at any depth."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from src.data.base import Transfer
from src.models import bert, gpt2
from src.models.base import ApplyOptions
from src.models.bert import Bert
from src.models.gpt2 import Gpt2
from src.objectives.base import Objective
from src.objectives.supervised import Classification
from src.optim.optimizers import Adam, Sgd
from src.optim.schedules import Constant
from src.recipe.spec import Recipe
from src.retention.ewc import Ewc
from src.strategies.adapter import Adapter, AdapterKind
from src.strategies.chain_thaw import ChainThaw
from src.strategies.freeze_bottom import FreezeBottom
from src.strategies.freeze_middle import FreezeMiddle
from src.strategies.frozen import Frozen
from src.strategies.gradual import Gradual
from src.strategies.ia3 import Ia3
from src.strategies.lora import Lora
from src.strategies.top_k import TopK
from src.training.feature_cache import cache_features, num_frozen_groups, upper_params
from src.training.loop import train
from src.training.stage import Stage, added, frozen_paths, param_labels
from src.training.step import eval_params, start, update
from src.training.trainer import TrainerConfig
from src.training.vectorize import RunAxis
from src.types import Split, ignore
from tests.models.texts import MODELS, SMALL, WORDS, examples, outputs_of, parameters, row
from tests.runs import resolve_trainable, run_finetuning, start_untrained
from tests.strategies.test_runs import ALL

OWN = ALL | {
    "gradual": Gradual(every=1),
    "chain_thaw": ChainThaw(every=1),
    "lora": Lora(rank=2, targets=("block_\\d+/attention/(query|value|qkv)",)),
    "ia3": Ia3(targets=(".*/attention/(key|value|qkv)",), feedforward=(".*/down",)),
    "adapter": Adapter(kind=AdapterKind.houlsby, size=3, train_norm=True),
    "freeze_bottom": FreezeBottom(blocks=1),
    "freeze_middle": FreezeMiddle(bottom=1, top=0),
}
# Scores change by the same for every key where the keys' bias does, so their softmax and the loss do not.
INDIFFERENT = "attention/key/bias"


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)

    def part(rows):
        x = np.stack([row(examples([n], seed=i)) for i, n in enumerate(rng.integers(2, 12, rows))])
        return Split(x, rng.integers(0, 3, rows).astype(np.int32))

    parts = {"train": part(8), "val": part(4), "test": part(4)}
    return Transfer("classification", parts, parts, 3, 3, new_head=False)


NETWORKS = {"bert": Bert(**SMALL), "gpt2": Gpt2(**SMALL, head=gpt2.Gpt2Head.classify)}
QUICK = {
    ("bert", "lora"),
    ("bert", "top_k"),
    ("bert", "adapter"),
    ("gpt2", "bitfit"),
    ("gpt2", "lora"),
}


def pairs():
    for network, model in NETWORKS.items():
        for name in OWN:
            marks = [] if (network, name) in QUICK else [pytest.mark.slow]
            yield pytest.param(model, name, marks=marks, id=f"{network}-{name}")


@pytest.mark.parametrize(("model", "name"), list(pairs()))
def test_two_updates_of_every_phase(texts, name, model):
    """What is to move moves, what is to rest is no part of the state. Not compiled: each phase is another program."""
    strategy, rows = OWN[name], texts.target["train"]
    stage = Stage(model, 3, Classification(), strategy, Adam(), Constant(), lr=0.01, steps=2, seed=0)
    params = {path: jnp.asarray(leaf) for path, leaf in parameters(model).items()}
    tables = strategy.tables(model.groups())
    assert len(tables) == {"gradual": len(model.groups()), "chain_thaw": len(model.groups()) + 1, "lp_ft": 2}.get(
        name, 1
    )
    for phase in range(len(tables)):
        stage = replace(stage, phase=phase)
        params |= added(stage, params)
        moving = set(param_labels(stage, params).trainable)
        state = start(stage, params)
        frozen = {path: params[path] for path in frozen_paths(stage, params)}
        for number in range(2):
            state, losses = update(stage, state, frozen, rows, number)
            assert np.isfinite(losses.loss)
        changed = {path for path, leaf in state.params.items() if not np.array_equal(leaf, params[path])}
        assert {path for path in moving ^ changed if not path.endswith(INDIFFERENT)} == set()
        params |= eval_params(state)


def test_lora_finds_its_targets_by_pattern(texts):
    moving = resolve_trainable(Recipe(model=Bert(**SMALL), strategy=OWN["lora"]), texts).paths
    sides = {path for path in moving if path.endswith("lora_a")}
    assert sides == {f"block_{i}/attention/{name}/lora_a" for i in (0, 1) for name in ("query", "value")}


@dataclass(frozen=True)
class Words(Objective):
    """Cross-entropy at every place: enough of language modelling for a test."""

    def loss(self, outputs, targets, smoothing=None):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))

    def metrics(self, outputs, targets):
        return {"loss": self.loss(outputs, targets)}


TIED = {"masked": MODELS["bert-masked"], "causal": MODELS["gpt2-causal"]}
DEPTHS = {"frozen": Frozen(), "top 1": TopK(blocks=1), "top 2": TopK(blocks=2)}
QUICK_DEPTHS = {("classify", "frozen"), ("masked", "top 1")}


def depths():
    for name in [*TIED, "classify", "tokens"]:
        for depth, strategy in DEPTHS.items():
            marks = [] if (name, depth) in QUICK_DEPTHS else [pytest.mark.slow]
            yield pytest.param(name, strategy, marks=marks, id=f"{name}-{depth}")


@pytest.mark.parametrize(("name", "strategy"), list(depths()))
def test_kept_features_change_no_number(texts, name, strategy):
    """Cut below the head, below the top block and above the embeddings; the tied head keeps the words.

    With plain gradient descent: Adam would make a step of the rounding where a gradient is 0, as of the keys' bias.
    """
    model = TIED[name] if name in TIED else MODELS[f"bert-{name}"]
    outputs, rows = outputs_of(model), texts.target["train"].x
    y = rows[:, 0] if name in TIED else rows[:, 1] if name == "tokens" else texts.target["train"].y
    data = Split(rows, y)
    stage = Stage(model, outputs, Words(), strategy, Sgd(), Constant(), lr=0.1, steps=3, seed=0, log_every=1)
    params = parameters(model)
    expected = train(stage, params, data, {"val": data}, ignore).params
    ((cut, own),), task = cache_features([stage], [params], {"train": data})
    assert cut.bottom == num_frozen_groups(stage, params) > 0
    assert ("embeddings/word/embedding" in own) == (name in TIED)
    assert "embeddings/position/embedding" not in own
    assert task.splits["train"].x.dtype == np.float32
    found = train(cut, own, task.splits["train"], {"val": task.splits["train"]}, ignore).params
    for path in found:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-6, err_msg=path)
    moved = [path for path in found if not np.array_equal(found[path], params[path])]
    assert moved
    assert "embeddings/word/embedding" not in moved


def test_what_is_shared_is_no_part_of_the_state(texts):
    """A tied head reads the words; under a frozen trunk they have no gradient and no moments."""
    model = TIED["masked"]
    stage = Stage(model, WORDS, Words(), TopK(blocks=0), Adam(), Constant(), lr=0.01, steps=3, seed=0)
    stage = replace(stage, bottom=3)
    own = upper_params(stage, parameters(model))
    assert set(own) - set(start(stage, own).params) == {"embeddings/word/embedding"}


def test_lanes_keep_features_of_their_own(texts):
    """Two seeds with parameters of their own: as one at a time."""
    model = TIED["causal"]
    data = Split(texts.target["train"].x, texts.target["train"].x[:, 0])
    stages = [
        Stage(model, WORDS, Words(), TopK(blocks=1), Adam(), Constant(), lr=0.01, steps=2, seed=s) for s in (0, 1)
    ]
    params = [parameters(model, seed) for seed in (0, 1)]
    upper, task = cache_features(stages, params, {"train": data}, RunAxis.map)
    for lane in (0, 1):
        (single,), alone = cache_features([stages[lane]], [params[lane]], {"train": data})
        np.testing.assert_allclose(task.splits["train"].x[lane], alone.splits["train"].x, atol=1e-6)
        assert set(upper[lane].params) == set(single.params)


def test_bfloat16_keeps_the_examples_apart(texts):
    """The number of an example travels as one more hidden value; whole numbers up to 256 are exact in it."""
    model = replace(MODELS["bert-tokens"], examples=12)
    x = jnp.asarray(row([part[:, :1] for part in examples([2] * 12)])[None])
    params = {path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in parameters(model).items()}
    middle = model.apply(params, x, 3, ApplyOptions(stop=1))
    assert middle.dtype == jnp.bfloat16
    np.testing.assert_array_equal(middle[0, :, -1].astype(np.int32), x[0, 2])


@pytest.mark.slow
def test_precision_accumulation_and_retention_go_with_it(texts):
    """The whole recipe once: dropout, accumulated gradients, EWC's exact Fisher information, and what it reports."""
    recipe = Recipe(
        model=Bert(**SMALL, dropout=0.1, head=bert.BertHead.classify),
        strategy=TopK(blocks=1),
        retention=Ewc(),
        trainer=TrainerConfig(accumulate=2),
        optimizer=Adam(),
        finetune_steps=2,
        lr_fine=0.01,
    )
    (pre,) = start_untrained([recipe], texts)
    (outcome,) = run_finetuning([recipe], texts, [pre], [ignore])
    assert np.isfinite(outcome.objective)
    assert outcome.moved is not None
    assert outcome.moved.frozen_changed == ()
    assert [path for path in outcome.moved.unchanged if not path.endswith(INDIFFERENT)] == []
