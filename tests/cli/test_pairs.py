"""Pairs of sentences through the real command line, on the words that every installation has."""

import pytest

from tests.commands import summary, train

SMALL = (
    "model=bert",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "model.vocab_size=600",
    "data=docstrings",
    "data.length=24",
    "batch_size=8",
    "pretrain_steps=3",
    "finetune_steps=3",
)


@pytest.mark.slow
def test_what_follows_what_is_learned_before_and_after(tmp_path):
    folder, cache = tmp_path / "job", f"data.tokenizer_cache={tmp_path / 'kept'}"
    done = train(folder, *SMALL, cache, "data.task=follows", "data.pairs=order")
    assert done.returncode == 0, done.stderr
    found = summary(folder)
    assert found["data"]["labels"] == ["follows", "other"]
    metrics = found["metrics"]
    assert metrics["source_test_loss"] > metrics["source_test_masked_loss"] > 0
    assert {"source_test_pair_accuracy", "source_test_masked_accuracy", "test_accuracy"} <= metrics.keys()
    assert "pairs of sentences" in done.stdout + done.stderr
    wrong = train(tmp_path / "wrong", *SMALL, cache, "data.pairs=nxt")
    assert wrong.returncode != 0
    assert "data.pairs" in wrong.stderr
    packed = train(tmp_path / "packed", *SMALL, cache, "data.pairs=next", "data.examples=4", "model.head=pretraining")
    assert packed.returncode != 0
    assert "model.examples is 4; allowed with model.head=pretraining: 1" in packed.stderr
