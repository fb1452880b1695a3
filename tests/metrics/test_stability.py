"""Warnings on planted histories: each where it belongs, none where nothing is wrong."""

import math
import re

import numpy as np
import pytest

from src.metrics.embeddings import rankme, spread
from src.metrics.stability import stability_facts, stability_warnings
from src.pretraining.contrastive import nt_xent, similarities

DIM, PAIRS, EPOCH = 64, 128, 40
NEGATIVES = 2 * PAIRS - 2


def healthy(**change):
    """Return a run of 400 updates in which nothing is wrong; ``change`` replaces columns by functions of the step."""
    columns = {
        "loss": lambda step: 5.5 * math.exp(-step / 200) + 0.6,
        "grad_norm": lambda step: 8 * math.exp(-step / 100) + 1,
        "temperature": lambda step: max(0.5 - 0.43 * step / 40, 0.07),
        "neg_similarity": lambda step: 0.9 * math.exp(-step / 50) + 0.02,
        "spread": lambda step: 0.9 / math.sqrt(DIM),
        "rankme": lambda step: 20.0 + step / 100,
    } | change
    steps = range(10, 401, 10)
    return [{"stage": "pretrain", "step": step, **{name: of(step) for name, of in columns.items()}} for step in steps]


def warnings_of(rows):
    return stability_warnings(rows, EPOCH, NEGATIVES, DIM)


def test_a_healthy_run_has_none():
    assert warnings_of(healthy()) == []
    assert warnings_of([]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"grad_norm": lambda step: 250.0 if step == 30 else 5.0},
            "reached 250 at step 30 at temperature 0.177, ",
        ),
        ({"temperature": lambda step: 1.0}, "The temperature ends at 1: from 1 on"),
        ({"loss": lambda step: math.log(255) - 0.01}, "The loss ends at 5.531, and embeddings that are all equal"),
        ({"loss": lambda step: math.log(255) + 1}, r"have log\(255\) = 5.541: nothing has been learned"),
        ({"neg_similarity": lambda step: 0.999}, "end at a cosine similarity of 0.999, above 0.95"),
        ({"spread": lambda step: 0.001}, "ends at 0.001, below 0.2 of the 0.125 of 64 dimensions"),
        ({"rankme": lambda step: 1.2}, "rank of the embeddings ends at 1.2, below 2"),
        ({"loss": lambda step: math.nan if step > 200 else 1.0}, "loss stopped being finite at step 210"),
        ({"grad_norm": lambda step: math.inf if step > 300 else 5.0}, "grad_norm stopped being finite at step 310"),
    ],
)
def test_one_thing_wrong_is_one_sentence(change, words):
    (sentence,) = warnings_of(healthy(**change))
    assert re.search(words, sentence)
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_spikes_count_in_the_first_epoch_only():
    late = healthy(grad_norm=lambda step: 250.0 if step > EPOCH else 5.0)
    assert warnings_of(late) == []
    (sentence,) = stability_warnings(late, 400, NEGATIVES, DIM)
    assert "reached 250" in sentence
    assert warnings_of(healthy(grad_norm=lambda step: 100.0)) == []
    assert len(warnings_of(healthy(grad_norm=lambda step: 100.1))) == 1


def test_a_run_may_begin_collapsed_and_one_odd_batch_is_no_end():
    begins = {"loss": math.log(255), "neg_similarity": 0.999, "spread": 0.001, "rankme": 1.1}
    later = {"loss": 1.0, "neg_similarity": 0.05, "spread": 0.1, "rankme": 20.0}

    def column(name):
        return lambda step: begins[name] if step <= 100 or step == 400 else later[name]

    assert warnings_of(healthy(**{name: column(name) for name in begins})) == []
    assert len(warnings_of(healthy(**{name: lambda step, name=name: begins[name] for name in begins}))) == 4


def test_what_is_not_there_is_not_judged():
    bad = healthy(loss=lambda step: 9.0, spread=lambda step: 0.0)
    assert stability_warnings(bad, EPOCH) == []
    assert len(stability_warnings(bad, EPOCH, negatives=NEGATIVES)) == 1
    assert stability_warnings([{"step": 0, "val_loss": 3.0}, {"step": 10}], EPOCH, NEGATIVES, DIM) == []
    other = [row | {"stage": "finetune"} for row in bad]
    assert stability_warnings(other, EPOCH, NEGATIVES, DIM) == []


@pytest.mark.parametrize(("collapse", "expected"), [(False, 0), (True, 4)])
def test_embeddings_that_collapse_and_embeddings_that_do_not(collapse, expected):
    """With the numbers that a monitor computes of real clouds of points."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((PAIRS, DIM))
    a, b = (samples + 0.3 * rng.standard_normal((PAIRS, DIM)) for _ in range(2))
    if collapse:
        a, b = (np.ones(DIM) + 1e-3 * view for view in (a, b))
    a, b = a.astype(np.float32), b.astype(np.float32)
    row = {"loss": nt_xent(a, b, 0.5), "spread": spread(a), "rankme": rankme(a), **similarities(a, b)}
    rows = [{"step": step, **{name: float(value) for name, value in row.items()}} for step in (10, 20)]
    assert len(warnings_of(rows)) == expected


def test_a_spike_between_two_rows_of_a_short_epoch_is_seen():
    """An epoch of 4 updates ends before the first row, whose own update was calm again."""
    rows = healthy(grad_norm_max=lambda step: 320.0 if step == 10 else 9.0)
    (sentence,) = stability_warnings(rows, 4, NEGATIVES, DIM)
    assert "reached 320 before step 10" in sentence
    assert stability_warnings(healthy(grad_norm_max=lambda step: 320.0 if step == 20 else 9.0), 4, NEGATIVES, DIM) == []
    assert stability_facts(rows, 4)["first_epoch_grad_norm"] == 320.0


def test_the_facts_are_what_the_sentences_compare():
    found = stability_facts(healthy(), EPOCH, NEGATIVES, DIM)
    assert found["first_epoch_grad_norm"] == pytest.approx(8 * math.exp(-0.1) + 1)
    assert found["equal_loss"] == pytest.approx(math.log(2 * PAIRS - 1))
    assert found["even_spread"] == 0.125
    assert found["collapsed"] == 0.0
    for change in ({"neg_similarity": 0.999}, {"spread": 0.001}, {"rankme": 1.2}):
        ((name, value),) = change.items()
        assert stability_facts(healthy(**{name: lambda step, value=value: value}), EPOCH, NEGATIVES, DIM)["collapsed"]
    assert stability_facts([], EPOCH) == {"collapsed": 0.0}
