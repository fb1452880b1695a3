"""Objectives of text, against float64 NumPy and scikit-learn, and against the objectives of whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from src.models.base import ApplyOptions
from src.models.bert import Bert, BertHead
from src.objectives.supervised import Classification, Regression
from src.objectives.text import Causal, MaskedLm, Spans, TokenClassification
from tests.metrics.test_classification import expected_calibration_error

RNG = np.random.default_rng(0)


def log_softmax(x, axis=-1):
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def planted(rows=6, length=5, classes=4, missing=0.4):
    outputs = RNG.standard_normal((rows, length, classes)).astype(np.float32) * 2
    targets = RNG.integers(0, classes, (rows, length)).astype(np.int32)
    targets[RNG.random((rows, length)) < missing] = -1
    return outputs, targets


def test_labels_that_are_not_there_count_for_nothing():
    outputs, targets = planted()
    real = targets >= 0
    own = -np.take_along_axis(log_softmax(outputs)[real], targets[real][:, None], axis=-1)
    assert float(TokenClassification().loss(outputs, targets)) == pytest.approx(own.mean(), rel=1e-5)
    assert float(TokenClassification().count(targets)) == real.sum()
    smooth = (1 - 0.1) * own.mean() - 0.1 * log_softmax(outputs)[real].mean()
    assert float(TokenClassification().loss(outputs, targets, 0.1)) == pytest.approx(smooth, rel=1e-5)
    changed = np.where(real[..., None], outputs, 1e3)
    assert float(TokenClassification().loss(changed, targets)) == pytest.approx(own.mean(), rel=1e-5)
    grads = jax.grad(lambda o: TokenClassification().loss(o, targets))(jnp.asarray(outputs))
    assert not np.asarray(grads)[~real].any()


def test_the_report_of_labels_is_that_of_the_same_rows_unpacked():
    outputs, targets = planted(40)
    real = targets >= 0
    packed, alone = (
        TokenClassification().report(outputs, targets),
        Classification().report(outputs[real], targets[real]),
    )
    assert packed.keys() == alone.keys()
    for name, value in alone.items():
        assert float(packed[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    said = outputs[real].argmax(-1)
    assert float(packed["macro_f1"]) == pytest.approx(f1_score(targets[real], said, average="macro"), rel=1e-6)
    assert float(packed["matthews"]) == pytest.approx(matthews_corrcoef(targets[real], said), rel=1e-5)
    probabilities = np.exp(log_softmax(outputs[real]))
    expected = expected_calibration_error(probabilities.max(-1), said == targets[real])
    assert float(packed["ece"]) == pytest.approx(expected, rel=1e-4)


def test_no_label_at_all_is_a_loss_of_nothing():
    outputs, targets = planted()
    assert float(TokenClassification().loss(outputs, np.full_like(targets, -1))) == 0.0


@pytest.mark.parametrize("said", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_a_correlation_that_is_not_defined_is_none(said):
    outputs = jax.nn.one_hot(jnp.array(said), 2)
    found = Classification().report(outputs, np.array([0, 0, 0, 0], np.int32))
    assert float(found["matthews"]) == 0.0


def test_pearson_is_that_of_numpy():
    said, true = RNG.standard_normal((2, 50)).astype(np.float32)
    found = Regression().report(said[:, None], true + said)
    assert float(found["pearson"]) == pytest.approx(np.corrcoef(said, true + said)[0, 1], rel=1e-5)
    assert float(Regression().report(np.ones((5, 1), np.float32), true[:5])["pearson"]) == 0.0


def test_spans_are_two_choices_of_a_token():
    outputs = RNG.standard_normal((3, 7, 2)).astype(np.float32)
    targets = np.array([[1, 4], [2, 2], [-1, -1]], np.int32)
    logs = log_softmax(outputs, axis=1)
    own = [-logs[i, targets[i, end], end] for i in (0, 1) for end in (0, 1)]
    assert float(Spans().loss(outputs, targets)) == pytest.approx(np.mean(own), rel=1e-5)
    right = np.zeros((3, 7, 2), np.float32)
    right[0, 1, 0] = right[0, 4, 1] = right[1, 2, 0] = 9.0
    right[1, 3, 1] = 9.0  # the second answer's end is wrong
    assert float(Spans().metrics(right, targets)["accuracy"]) == 0.5


def test_perplexity_is_of_tokens_not_of_rows():
    outputs, targets = planted(4, 6, 9)
    targets[0, 1:] = -1  # a short row weighs less
    digest = Causal().reduce_outputs(outputs, targets)
    found = Causal().report(digest, targets)
    real = targets >= 0
    own = -np.take_along_axis(log_softmax(outputs)[real], targets[real][:, None], axis=-1)
    assert float(found["perplexity"]) == pytest.approx(np.exp(own.mean()), rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx((outputs.argmax(-1) == targets)[real].mean(), rel=1e-6)
    assert float(Causal().loss(outputs, targets)) == pytest.approx(own.mean(), rel=1e-5)


def test_masking_hides_the_shares_of_the_paper_and_nothing_special():
    """Over a million tokens: 15 % chosen, of which 80 % masked, 10 % random, 10 % kept."""
    words, rows, length = 1000, 1000, 1000
    ids = RNG.integers(5, words, (rows, length)).astype(np.int32)
    special = RNG.random((rows, length)) < 0.1
    targets = np.where(special, -1, ids)
    x = np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1)
    objective = MaskedLm(mask_id=3, vocab_size=words)
    seen, wanted = (np.asarray(part) for part in objective.corrupt(jax.random.PRNGKey(0), x, targets))
    chosen = wanted >= 0
    assert not (chosen & special).any()
    assert (wanted[chosen] == ids[chosen]).all()
    assert (seen[:, 0][~chosen] == ids[~chosen]).all()
    assert (seen[:, 1:] == x[:, 1:]).all()
    share = chosen.sum() / (~special).sum()
    assert share == pytest.approx(0.15, abs=5 * np.sqrt(0.15 * 0.85 / (~special).sum()))
    hidden, now = seen[:, 0][chosen], ids[chosen]
    noise = 5 * np.sqrt(0.25 / chosen.sum())
    assert (hidden == 3).mean() == pytest.approx(0.8 + 0.1 / words, abs=noise)
    assert (hidden == now).mean() == pytest.approx(0.1 + 0.1 / words, abs=noise)
    random = hidden[(hidden != 3) & (hidden != now)]
    assert random.min() < 5  # from the whole vocabulary
    assert len(random) / chosen.sum() == pytest.approx(0.1 * (words - 2) / words, abs=noise)


def test_another_key_masks_other_words():
    ids = np.full((8, 50), 7, np.int32)
    x = np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1)
    first, second = (
        np.asarray(MaskedLm(mask_id=1, vocab_size=9).corrupt(jax.random.PRNGKey(k), x, ids)[1]) for k in (0, 1)
    )
    assert (first != second).any()


def test_the_missing_words_are_asked_for_and_no_others():
    """A network asked at some places says there what it says everywhere, so the loss is the same."""
    words, rows, length = 50, 6, 40
    ids = RNG.integers(5, words, (rows, length)).astype(np.int32)
    targets = np.where(RNG.random(ids.shape) < 0.2, -1, ids)
    x = np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1)
    objective = MaskedLm(mask_id=3, vocab_size=words)
    seen, wanted = objective.corrupt(jax.random.PRNGKey(1), x, targets)
    places = np.asarray(objective.loss_positions(wanted))
    missing = np.flatnonzero(np.asarray(wanted) >= 0)
    assert (places[: len(missing)] == missing).all()
    assert (places[len(missing) :] == wanted.size).all()
    assert len(missing) < len(places) < wanted.size / 2
    model = Bert(vocab_size=words, width=16, layers=1, heads=2, intermediate=32, positions=length, head=BertHead.masked)
    params = model.init(jax.random.PRNGKey(0), x.shape[1:], words)
    few = model.apply(params, seen, words, ApplyOptions(positions=places))
    every = model.apply(params, seen, words).reshape(-1, words)
    assert few.shape == (len(places), words)
    np.testing.assert_allclose(few[: len(missing)], every[missing], atol=1e-6)
    asked = np.where(places < wanted.size, np.append(wanted, -1)[np.minimum(places, wanted.size)], -1)
    assert float(objective.loss(few, asked)) == pytest.approx(
        float(objective.loss(every, wanted.reshape(-1))), rel=1e-6
    )


def test_a_batch_of_which_every_word_is_missing_asks_for_as_many_as_there_is_room_for():
    every = jnp.full((4, 10), 7)
    assert np.asarray(MaskedLm(mask_prob=0.15).loss_positions(every)).tolist() == list(
        range(18)
    )  # 6 expected, 5 deviations of 2.26
    assert np.asarray(MaskedLm(mask_prob=0.9).loss_positions(every)).tolist() == list(range(40))
