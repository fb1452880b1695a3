"""Pairs of sentences through the real command line, on the words that every installation has."""

import pytest

from tests.commands import command, summary, train

SMALL = (
    *("model=bert", "model.width=16", "model.layers=1", "model.heads=2", "model.vocab_size=600"),
    *("data=docstrings", "data.max_seq_len=16", "data.train_rows=64", "data.source_test_fraction=0.02"),
    *("batch_size=8", "pretrain_steps=2", "finetune_steps=2", "log_every=2", "cache=off"),
)


@pytest.mark.slow
def test_what_follows_what_is_learned_before_and_after(tmp_path):
    folder, cache = tmp_path / "job", f"data.tokenizer_cache={tmp_path / 'kept'}"
    asked = (f"hydra.run.dir={folder}", "tracker=disk", *SMALL, cache, "data.task=follows", "pretrain=mlm_sop")
    done = command(*asked, timeout=500)
    assert done.returncode == 0, done.stderr
    found = summary(folder)
    assert found["data"]["labels"] == ["follows", "other"]
    metrics = found["metrics"]
    assert metrics["source_test_loss"] > metrics["source_test_masked_loss"] > 0
    assert {"source_test_pair_accuracy", "source_test_masked_accuracy", "test_accuracy"} <= metrics.keys()
    assert "pairs of sentences" in done.stdout + done.stderr


def test_another_pairing_is_refused(tmp_path):
    wrong = train(tmp_path / "wrong", *SMALL, "data.pairs=nxt")
    assert wrong.returncode != 0
    assert "data.pairs" in wrong.stderr
    assert "next" in wrong.stderr
    assert "Traceback" not in wrong.stderr
