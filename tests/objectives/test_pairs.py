"""Missing words and pairs at once, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models.transformer import FAR
from src.objectives.kinds import OBJECTIVES
from src.objectives.pairs import MaskedPairs
from src.objectives.text import Masked
from tests.objectives.test_text import log_softmax

RNG = np.random.default_rng(0)
ROWS, LENGTH, WORDS = 6, 5, 9


def planted():
    """Return outputs with a row of two logits in front, and targets with a label in front."""
    outputs = 2 * RNG.standard_normal((ROWS, 1 + LENGTH, WORDS)).astype(np.float32)
    outputs[:, 0, 2:] = FAR
    targets = RNG.integers(0, WORDS, (ROWS, 1 + LENGTH)).astype(np.int32)
    targets[RNG.random(targets.shape) < 0.5] = -1
    targets[:, 0] = [0, 1, 1, 0, 1, 0]
    return outputs, targets


def own(outputs, targets):
    """Return each word's loss, and each pair's as one of two."""
    words, real = outputs[:, 1:], targets[:, 1:] >= 0
    of_words = -np.take_along_axis(log_softmax(words)[real], targets[:, 1:][real][:, None], axis=-1)
    of_pairs = -np.take_along_axis(log_softmax(outputs[:, 0, :2]), targets[:, :1], axis=-1)
    return of_words, of_pairs


def test_the_loss_is_the_sum_of_two_means():
    outputs, targets = planted()
    words, pairs = own(outputs, targets)
    assert float(MaskedPairs().loss(outputs, targets)) == pytest.approx(words.mean() + pairs.mean(), rel=1e-6)
    real = targets[:, 1:] >= 0
    smooth = 0.9 * words.mean() - 0.1 * log_softmax(outputs[:, 1:])[real].mean() + pairs.mean()
    assert float(MaskedPairs().loss(outputs, targets, 0.1)) == pytest.approx(smooth, rel=1e-6)
    assert float(MaskedPairs().count(targets)) == ROWS


def test_what_is_reported():
    outputs, targets = planted()
    words, pairs = own(outputs, targets)
    objective = MaskedPairs()
    found = objective.report(objective.digest(outputs, targets), targets)
    real = targets[:, 1:] >= 0
    expected = {
        "loss": words.mean() + pairs.mean(),
        "masked_loss": words.mean(),
        "masked_accuracy": (outputs[:, 1:].argmax(-1) == targets[:, 1:])[real].mean(),
        "pair_accuracy": (outputs[:, 0, :2].argmax(-1) == targets[:, 0]).mean(),
        "perplexity": np.exp(words.mean()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("missing", ["words", "labels", "both"])
def test_nothing_to_say_is_a_loss_of_nothing(missing):
    outputs, targets = planted()
    words, pairs = (part.mean() for part in own(outputs, targets))
    if missing != "labels":
        targets[:, 1:], words = -1, 0.0
    if missing != "words":
        targets[:, 0], pairs = -1, 0.0
    loss, slope = jax.value_and_grad(lambda o: MaskedPairs().loss(o, targets))(jnp.asarray(outputs))
    assert float(loss) == pytest.approx(words + pairs, rel=1e-6)
    assert np.isfinite(np.asarray(slope)).all()
    found = MaskedPairs().metrics(MaskedPairs().digest(outputs, targets), targets)
    assert all(np.isfinite(float(value)) for value in found.values())


def test_what_is_no_logit_has_no_gradient():
    outputs, targets = planted()
    slope = np.asarray(jax.grad(lambda o: MaskedPairs().loss(o, targets))(jnp.asarray(outputs)))
    assert not slope[:, 0, 2:].any()
    expected = np.exp(log_softmax(outputs[:, 0, :2])) - np.eye(2)[targets[:, 0]]
    np.testing.assert_allclose(slope[:, 0, :2], expected / ROWS, atol=1e-6)


def test_words_are_missing_as_without_pairs_and_labels_stay():
    ids = RNG.integers(0, WORDS, (50, 30)).astype(np.int32)
    x = np.stack([ids, np.zeros_like(ids), np.ones_like(ids)], axis=1)
    labels = RNG.integers(0, 2, (50, 1)).astype(np.int32)
    key, settings = jax.random.PRNGKey(0), {"mask_id": 3, "words": WORDS}
    seen, wanted = MaskedPairs(**settings).corrupt(key, x, np.concatenate([labels, ids], axis=1))
    alone = Masked(**settings).corrupt(key, x, ids)
    np.testing.assert_array_equal(seen, alone[0])
    np.testing.assert_array_equal(wanted, np.concatenate([labels, alone[1]], axis=1))
    assert OBJECTIVES["pretraining"] == MaskedPairs()
    assert MaskedPairs.corrupts
