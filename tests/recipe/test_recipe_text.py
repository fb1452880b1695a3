"""The recipe where the source task is of another kind than the target, or is a checkpoint only."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from src.checkpoints.huggingface import load_config, read_checkpoint
from src.data.base import Transfer
from src.errors import UserError
from src.models.base import head_paths, same_bits
from src.models.bert import Bert, BertHead, BertPooling
from src.models.mlp import Mlp
from src.objectives.kinds import for_kind
from src.objectives.text import MaskedLm
from src.optim.optimizers import Adam, Sgd
from src.optim.schedules import Constant
from src.pretraining.supervised import Supervised
from src.recipe.resolve import resolve
from src.recipe.spec import Recipe
from src.retention.ewc import Ewc
from src.retention.l2_sp import L2Sp
from src.strategies.full import Full
from src.strategies.linear_probe import LinearProbe
from src.strategies.lora import Lora
from src.strategies.scratch import Scratch
from src.types import Split
from tests.runs import pretrain_once, pretraining_stage, resolve_trainable, run

WORDS, LENGTH = 40, 8
SMALL = Bert(vocab_size=WORDS, width=16, layers=2, heads=2, positions=LENGTH, pooling=BertPooling.pooler)
FIXTURE = Path(__file__).parents[1] / "checkpoints" / "fixtures" / "huggingface" / "bert_classify"
RNG = np.random.default_rng(0)


class Words(Transfer):
    """A corpus with words missing, then labels."""

    def objective(self, kind):
        found = for_kind(kind)
        return replace(found, mask_id=1, vocab_size=WORDS) if isinstance(found, MaskedLm) else found


def rows(count, words=WORDS, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, words, (count, LENGTH)).astype(np.int32)
    lengths = rng.integers(3, LENGTH + 1, count)
    real = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return np.stack([ids * real, np.zeros_like(ids), real], axis=1)


def corpus(count, seed):
    x = rows(count, seed=seed)
    return Split(x, np.where(x[:, 2] > 0, x[:, 0], -1).astype(np.int32))


def paired(count, seed):
    x, y = corpus(count, seed)
    return Split(x, np.concatenate([(x[:, :1, 0] % 2).astype(np.int32), y], axis=1))


def labelled(count, seed, words=WORDS):
    x = rows(count, words, seed)
    return Split(x, (x[:, 0, 0] % 3).astype(np.int32))


def data(source=True, words=WORDS):
    parts = {"train": 24, "val": 10, "test": 10}
    target = {name: labelled(count, 7 + i, words) for i, (name, count) in enumerate(parts.items())}
    before = {"train": corpus(30, 1), "test": corpus(20, 2)} if source else {}
    if source:
        return Words("classification", before, target, WORDS, 3, new_head=True, source_kind="masked")
    return Words("classification", before, target, 5, 5, new_head=True)  # the checkpoint's head has 3 outputs


def recipe(**changes):
    settings = {"model": SMALL, "strategy": Full(), "lr_pre": 0.1, "lr_fine": 0.1, "log_every": 5, "batch_size": 8}
    steps = {"pretrain_steps": 5, "finetune_steps": 5}
    return Recipe(**(settings | steps | {"pretrain": Supervised(Sgd(), Constant())} | changes))


def test_words_first_labels_then():
    rows_seen = []
    outcome = run(recipe(), data(), lambda stage, row: rows_seen.append((stage, row)))
    assert outcome.status == "completed"
    stage = pretraining_stage(recipe(), data())
    assert isinstance(stage.model, Bert)
    assert stage.model.head is BertHead.masked
    assert outcome.metrics["source_test_perplexity"] == pytest.approx(
        np.exp(outcome.metrics["source_test_loss"]), rel=1e-5
    )
    assert outcome.metrics["source_after_loss"] != outcome.metrics["source_test_loss"]
    assert {path.partition("/")[0] for path in outcome.params} >= {"pooler", "classifier", "block_1"}
    assert "vocabulary/bias" not in outcome.params  # the source's head is measured with, and left behind


@pytest.mark.slow
def test_words_and_pairs_first_labels_then():
    before = {"train": paired(30, 1), "test": paired(20, 2)}
    task = replace(data(), source=before, source_kind="pretraining")
    mine = recipe(strategy=LinearProbe(), finetune_steps=2)
    stage = pretraining_stage(mine, task)
    assert isinstance(stage.model, Bert)
    assert stage.model.head is BertHead.pretraining
    assert {"pooler/kernel", "classifier/kernel", "vocabulary/bias"} <= head_paths(stage.model, stage_paths(stage))
    outcome = run(mine, task, lambda *_: None)
    words = outcome.metrics["source_test_masked_loss"]
    assert 0 < words < outcome.metrics["source_test_loss"]
    assert outcome.metrics["source_test_perplexity"] == pytest.approx(np.exp(words), rel=1e-5)
    assert 0 <= outcome.metrics["source_test_pair_accuracy"] <= 1
    assert outcome.metrics["source_after_loss"] == pytest.approx(outcome.metrics["source_test_loss"], rel=1e-6)
    (start,) = pretrain_once([mine], task, None)
    assert same_bits(outcome.params["pooler/kernel"], start.params["pooler/kernel"])  # pre-trained, kept, and frozen
    assert outcome.params["classifier/kernel"].shape == (16, 3)


def stage_paths(stage):
    return stage.model.init(jax.random.PRNGKey(0), (3, LENGTH), stage.outputs)


@pytest.mark.parametrize("strategy", [LinearProbe(), pytest.param(Lora(targets=("trunk",)), marks=pytest.mark.slow)])
def test_what_rests_is_still_known(strategy):
    """Under a probe the source's own head says what it said; a LoRA that stays changes it."""
    metrics = run(recipe(strategy=strategy, optimizer=Adam(), finetune_steps=20), data(), lambda *_: None).metrics
    same = metrics["source_after_loss"] == pytest.approx(metrics["source_test_loss"], rel=1e-6)
    assert same == isinstance(strategy, LinearProbe)


def test_a_validation_masks_the_same_words_each_time():
    seen = [run(recipe(pretrain_steps=n), data(), lambda *_: None).metrics["source_test_loss"] for n in (0, 0)]
    assert seen[0] == seen[1]


def test_the_fisher_information_of_missing_words_has_no_likelihood():
    with pytest.raises(UserError, match="needs a likelihood of one label or number a row, and this pre-training"):
        run(recipe(retention=Ewc()), data(), lambda *_: None)


CHECKPOINT = load_config(Bert(checkpoint=str(FIXTURE)))


def test_a_checkpoint_is_what_was_pre_trained():
    task = data(source=False, words=90)
    mine = recipe(model=CHECKPOINT, strategy=LinearProbe(), retention=L2Sp())
    files = read_checkpoint(CHECKPOINT, 5)
    (before,) = pretrain_once([mine], task, None)
    assert before.metrics == {}
    outcome = run(mine, task, lambda *_: None)
    assert not any(name.startswith("source") for name in outcome.metrics)
    head = head_paths(CHECKPOINT, outcome.params)
    trunk = [path for path in outcome.params if path not in head]
    assert len(trunk) > 30
    assert all(same_bits(outcome.params[path], files[path]) for path in trunk)
    assert any(not same_bits(outcome.params[path], before.params[path]) for path in head)


def test_seeds_share_a_checkpoint_and_not_a_new_head():
    task = data(source=False, words=90)
    first, second = (
        pretrain_once([recipe(model=CHECKPOINT, seed=0)], task, None),
        pretrain_once([recipe(model=CHECKPOINT, seed=1)], task, None),
    )
    a, b = first[0].params, second[0].params
    assert a["block_0/up/kernel"] is b["block_0/up/kernel"]
    assert not same_bits(a["classifier/kernel"], b["classifier/kernel"])


def test_from_scratch_a_checkpoint_is_only_its_sizes():
    task = data(source=False, words=90)
    (before,) = pretrain_once([recipe(model=CHECKPOINT, strategy=Scratch())], task, None)
    assert not same_bits(before.params["block_0/up/kernel"], read_checkpoint(CHECKPOINT)["block_0/up/kernel"])


def test_nothing_to_start_from_is_refused():
    with pytest.raises(UserError, match=r"no source task and the model no checkpoint.*strategy=scratch"):
        resolve(recipe(), data(source=False))
    resolve_trainable(recipe(strategy=Scratch()), data(source=False))


def test_a_method_that_needs_the_source_names_those_that_do_not():
    mine = recipe(model=CHECKPOINT, retention=Ewc())
    with pytest.raises(UserError, match="there is a checkpoint only; allowed without them: distill, isolate, l2_sp"):
        resolve(mine, data(source=False, words=90))


def test_texts_and_numbers_are_not_taken_for_each_other():
    with pytest.raises(UserError, match="model=mlp takes numbers, and the data is texts; allowed: model=bert, gpt2"):
        resolve_trainable(recipe(model=Mlp()), data())
    numbers = Split(np.zeros((4, 3), np.float32), np.zeros(4, np.int32))
    plain = Transfer("classification", {"train": numbers}, {"train": numbers}, 2, 2, new_head=False)
    with pytest.raises(UserError, match="model=bert takes texts, and the data is numbers; allowed: model=cnn, mlp"):
        resolve(recipe(), plain)
