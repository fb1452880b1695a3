"""Missing words and pairs at once, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models.base import PLAIN
from src.models.bert import Bert, BertHead
from src.models.transformer import MASK_VALUE
from src.objectives.base import NetworkFns, StepContext
from src.objectives.kinds import for_kind
from src.objectives.pairs import MaskedPairs, PairLabels
from src.objectives.text import MaskedLm
from tests.objectives.test_text import log_softmax

RNG = np.random.default_rng(0)
ROWS, LENGTH, WORDS = 6, 5, 9


def planted():
    """Return outputs with a row of two logits in front, and targets with a label in front."""
    outputs = 2 * RNG.standard_normal((ROWS, 1 + LENGTH, WORDS)).astype(np.float32)
    outputs[:, 0, 2:] = MASK_VALUE
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
    found = objective.report(objective.reduce_outputs(outputs, targets), targets)
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
    found = MaskedPairs().metrics(MaskedPairs().reduce_outputs(outputs, targets), targets)
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
    key, settings = jax.random.PRNGKey(0), {"mask_id": 3, "vocab_size": WORDS}
    seen, wanted = MaskedPairs(**settings).corrupt(key, x, np.concatenate([labels, ids], axis=1))
    alone = MaskedLm(**settings).corrupt(key, x, ids)
    np.testing.assert_array_equal(seen, alone[0])
    np.testing.assert_array_equal(wanted, np.concatenate([labels, alone[1]], axis=1))
    assert for_kind("pretraining") == MaskedPairs()
    assert MaskedPairs.corrupts


# --- an update, on a network ----------------------------------------------------------------------------------------

MODEL = Bert(vocab_size=WORDS, width=8, layers=1, heads=2, positions=LENGTH, head=BertHead.pretraining)


def paired_rows():
    """Return rows of which the second half of the tokens are of type 1, the first token is special."""
    rng = np.random.default_rng(3)
    ids = rng.integers(4, WORDS, (ROWS, LENGTH)).astype(np.int32)
    x = np.stack([ids, np.tile(np.arange(LENGTH) > LENGTH // 2, (ROWS, 1)), np.ones_like(ids)], axis=1).astype(np.int32)
    targets = np.concatenate([rng.integers(0, 2, (ROWS, 1)), np.where(np.arange(LENGTH) > 0, ids, -1)], axis=1)
    return x, targets.astype(np.int32)


def network(params):
    def run(x, places=None):
        return MODEL.forward(params, x, WORDS, PLAIN._replace(positions=places))

    return NetworkFns(run, params, lambda x: run(x)[1])  # no test asks for features


def parameters():
    return {
        path: 0.5 * jax.random.normal(jax.random.PRNGKey(i), leaf.shape)
        for i, (path, leaf) in enumerate(MODEL.init(jax.random.PRNGKey(0), (3, LENGTH), WORDS).items())
    }


@pytest.mark.parametrize("exact", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_loss_of_an_update_is_that_of_all_outputs(exact):
    """An update asks for the missing words' outputs alone; here all are computed, and the loss again in float64."""
    x, targets = paired_rows()
    params, key = parameters(), jax.random.PRNGKey(5)
    objective = MaskedPairs(mask_id=3, vocab_size=WORDS, mask_prob=0.4, fixed_count=exact)
    loss, learned = objective.loss_and_aux(network(params), (x, targets), StepContext(key, 0, 1), {})
    seen, wanted = (np.asarray(part) for part in objective.corrupt(key, x, targets))
    outputs = np.asarray(MODEL.apply(params, jnp.asarray(seen), WORDS), np.float64)
    assert outputs.shape == (ROWS, 1 + LENGTH, WORDS)
    words, pairs = own(outputs, wanted)
    assert (seen[:, 0] != x[:, 0]).any()
    assert float(loss) == pytest.approx(words.mean() + pairs.mean(), rel=1e-5)
    assert learned.signals == {}
    if exact:
        assert (wanted[:, 1:] >= 0).sum(axis=1).tolist() == [2] * ROWS  # round(0.4 * 5)


def test_pairs_alone_are_a_classification_of_whole_rows():
    x, targets = paired_rows()
    params, objective = parameters(), PairLabels()
    loss, _ = objective.loss_and_aux(network(params), (x, targets), StepContext(None, 0, 1), {})
    outputs = np.asarray(MODEL.apply(params, jnp.asarray(x), WORDS))
    _, pairs = own(outputs.astype(np.float64), targets)
    found = objective.report(objective.reduce_outputs(outputs, targets), targets)
    assert float(loss) == pytest.approx(pairs.mean(), rel=1e-5)
    assert float(found["loss"]) == pytest.approx(pairs.mean(), rel=1e-5)
    assert float(found["pair_accuracy"]) == pytest.approx((outputs[:, 0, :2].argmax(-1) == targets[:, 0]).mean())
    assert found.keys() == {"loss", "pair_accuracy"}
    smooth = 0.8 * pairs.mean() - 0.2 * log_softmax(outputs[:, 0, :2].astype(np.float64)).mean()
    assert float(objective.loss(outputs, targets, 0.2)) == pytest.approx(smooth, rel=1e-5)
    assert not objective.corrupts


@pytest.mark.slow
def test_pairs_alone_move_no_word_of_the_head():
    """The gradient is none of the vocabulary's: only the pooler's and the classifier's part of the head learns."""
    batch, params = paired_rows(), parameters()
    slopes = jax.grad(lambda p: PairLabels().loss_and_aux(network(p), batch, StepContext(None, 0, 1), {})[0])(params)
    moved = {path.partition("/")[0] for path, slope in slopes.items() if np.asarray(slope).any()}
    assert {"pooler", "classifier", "embeddings", "block_0"} <= moved
    assert not {"transform", "transform_norm", "vocabulary"} & moved


def test_a_row_without_a_word_to_miss_is_learned_from_its_label():
    x, targets = paired_rows()
    targets[:, 1:] = -1
    params = parameters()
    loss, _ = MaskedPairs(mask_id=3, vocab_size=WORDS, fixed_count=True).loss_and_aux(
        network(params), (x, targets), StepContext(jax.random.PRNGKey(0), 0, 1), {}
    )
    _, pairs = own(np.asarray(MODEL.apply(params, jnp.asarray(x), WORDS), np.float64), targets)
    assert float(loss) == pytest.approx(pairs.mean(), rel=1e-5)
