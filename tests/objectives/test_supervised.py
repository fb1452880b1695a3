"""Losses and reports against float64 NumPy, Optax's smoothed labels and scikit-learn's scores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import brier_score_loss, f1_score, log_loss, matthews_corrcoef

from src.metrics.classification import calibration_error
from src.objectives.supervised import Classification, Regression
from tests.metrics.test_classification import expected_calibration_error

ROWS, CLASSES = 300, 5


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return (3 * rng.normal(size=(ROWS, CLASSES))).astype(np.float32), rng.integers(0, CLASSES, ROWS)


def softmax(outputs):
    e = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# --- label smoothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_smoothed_loss_in_float64(batch, smoothing):
    outputs, labels = batch
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    expected = -(targets * np.log(softmax(outputs))).sum(axis=1).mean()
    found = Classification().loss(outputs, labels, smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    smoothed = optax.softmax_cross_entropy(outputs, optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), smoothing))
    assert float(found) == pytest.approx(float(smoothed.mean()), rel=1e-6)


def test_smoothing_is_traced(batch):
    loss = jax.jit(Classification().loss)
    values = [float(loss(*batch, np.float32(s))) for s in (0.0, 0.2, 0.4)]
    assert loss._cache_size() == 1
    assert values[1] - values[0] == pytest.approx(values[2] - values[1], rel=1e-4)  # linear in the smoothing
    assert values[0] != values[1]


def test_smoothing_moves_the_optimum(batch):
    """At outputs of log((1 - s) * onehot + s / K) the gradient is 0: nothing is gained beyond."""
    labels = batch[1]
    optimum = jnp.log(0.9 * jax.nn.one_hot(labels, CLASSES) + 0.1 / CLASSES)
    np.testing.assert_allclose(jax.grad(Classification().loss)(optimum, labels, 0.1), 0.0, atol=1e-8)
    assert np.abs(jax.grad(Classification().loss)(optimum, labels)).max() > 1e-5


def test_without_smoothing_the_bits_are_optax_s(batch):
    outputs, labels = batch
    plain = jax.jit(lambda o, y: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(o, y)))
    found = jax.jit(jax.value_and_grad(Classification().loss))(outputs, labels)
    for mine, reference in zip(found, jax.jit(jax.value_and_grad(plain))(outputs, labels), strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_regression_has_no_labels_to_smooth():
    outputs, targets = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0.0, 2.0, 2.0])
    assert float(Regression().loss(outputs, targets)) == pytest.approx(5 / 3)
    assert float(Regression().loss(outputs, targets, 0.5)) == pytest.approx(5 / 3)


# --- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Classification(), Regression()], ids=["classification", "regression"])
def test_losses_add_up_by_their_counts(batch, objective):
    """The mean of unequal parts, weighted with their counts, is the loss of all rows, and so is its gradient."""
    outputs, targets = batch
    if isinstance(objective, Regression):
        outputs, targets = outputs[:, :1], targets.astype(np.float32)
    parts = [slice(0, 7), slice(7, 200), slice(200, ROWS)]
    counts = [objective.count(targets[part]) for part in parts]
    assert [float(count) for count in counts] == [7, 193, 100]
    assert all(count.dtype == jnp.float32 and count.shape == () for count in counts)
    total = sum(count * objective.loss(outputs[part], targets[part]) for count, part in zip(counts, parts, strict=True))
    assert float(total) / ROWS == pytest.approx(float(objective.loss(outputs, targets)), rel=1e-6)
    assert float(jax.vmap(objective.count)(targets[:6].reshape(2, 3))[0]) == 3


# --- the report ----------------------------------------------------------------------------------------------------


def test_the_report_matches_scikit_learn_and_the_definitions(batch):
    outputs, labels = batch
    report = {name: float(value) for name, value in jax.jit(Classification().report)(outputs, labels).items()}
    p = softmax(outputs)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    assert report == pytest.approx(
        {
            "loss": log_loss(labels, p, labels=range(p.shape[1])),
            "nll": log_loss(labels, p, labels=range(p.shape[1])),
            "accuracy": correct.mean(),
            "brier": brier_score_loss(labels, p, labels=range(p.shape[1]), scale_by_half=False),
            "confidence": confidence.mean(),
            "ece": expected_calibration_error(confidence, correct),
            "confident_wrong": np.mean(~correct & (confidence > 0.9)),
            "macro_f1": f1_score(labels, p.argmax(axis=1), average="macro"),
            "matthews": matthews_corrcoef(labels, p.argmax(axis=1)),
        },
        abs=1e-6,
    )
    assert 0 < report["confident_wrong"] < 1


def test_a_class_that_is_nowhere_has_no_f1():
    """scikit-learn leaves a class out that neither occurs nor is said; one that is only said counts as 0."""
    outputs, labels = np.eye(5, dtype=np.float32)[[0, 1, 1, 3, 0]], np.array([0, 1, 0, 1, 0])
    report = Classification().report(jnp.asarray(outputs), jnp.asarray(labels))
    assert float(report["macro_f1"]) == pytest.approx(f1_score(labels, [0, 1, 1, 3, 0], average="macro"), abs=1e-6)


def test_confident_wrong_by_hand():
    """Of four rows: wrong at .95, right at .95, wrong at .85, wrong at .99."""
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.85, 0.15], [0.01, 0.99]], np.float32)
    report = Classification().report(jnp.log(p), jnp.array([1, 0, 1, 0]))
    assert float(report["confident_wrong"]) == 0.5
    assert float(report["confidence"]) == pytest.approx((0.95 + 0.95 + 0.85 + 0.99) / 4)


@pytest.mark.parametrize("bins", [1, 10, 15, 20])
def test_calibration_error_on_the_edges(bins):
    """Every edge, its neighbours on both sides, 0 and 1: the device puts each into the bin where the host does."""
    edges = (np.arange(bins + 1) / bins).astype(np.float32)
    values = np.concatenate([edges, np.nextafter(edges[:-1], np.float32(2)), np.nextafter(edges[1:], np.float32(-1))])
    for row, value in enumerate(values):
        # Another row in the middle of a bin, with the opposite error: the two cancel in one bin and add up in two.
        for other in edges[:-1] + np.float32(0.5 / bins):
            pair, hits = np.array([value, other], np.float32), np.array([False, True])
            expected = expected_calibration_error(pair, hits, bins)
            assert float(calibration_error(pair, hits, bins)) == pytest.approx(expected, abs=1e-6), (row, value)


def test_calibration_error_of_many_rows():
    rng = np.random.default_rng(1)
    confidence = np.round(rng.uniform(size=20_000), 2).astype(np.float32)
    hits = rng.uniform(size=confidence.size) < 0.5
    found = jax.jit(calibration_error)(confidence, hits)
    assert float(found) == pytest.approx(expected_calibration_error(confidence, hits), abs=1e-6)


def test_lanes_of_reports(batch):
    """Under vmap each lane has the report that it would have alone."""
    outputs, labels = batch
    lanes = np.stack([outputs, -outputs, 0.1 * outputs])
    together = jax.jit(jax.vmap(Classification().report, (0, None)))(lanes, labels)
    for i, lane in enumerate(lanes):
        for name, value in Classification().report(lane, labels).items():
            assert float(together[name][i]) == pytest.approx(float(value), abs=1e-6), name


def test_the_report_of_a_regression_is_its_metrics_and_a_correlation():
    outputs, targets = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0.0, 2.0, 2.0])
    metrics = Regression().metrics(outputs, targets)
    pearson = pytest.approx(np.corrcoef([1, 2, 4], [0, 2, 2])[0, 1], rel=1e-6)
    assert Regression().report(outputs, targets) == metrics | {"pearson": pearson}
    assert set(metrics) == {"loss", "r2"}


def test_a_diverged_network_is_reported_as_such():
    report = Classification().report(jnp.full((4, 3), jnp.nan), jnp.zeros(4, jnp.int32))
    assert np.isnan([float(report[name]) for name in ("loss", "nll", "brier", "confidence", "ece")]).all()


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_bfloat16_outputs_lose_nothing_in_the_loss(batch, smoothing):
    outputs, labels = jnp.asarray(batch[0], jnp.bfloat16), batch[1]
    loss = Classification().loss(outputs, labels, smoothing)
    assert loss.dtype == jnp.float32
    assert loss == Classification().loss(outputs.astype(jnp.float32), labels, smoothing)
    if smoothing is None:
        p = softmax(np.asarray(outputs, np.float64))
        assert float(loss) == pytest.approx(log_loss(labels, p, labels=range(p.shape[1])), rel=1e-6)
    report = Classification().report(outputs, labels)
    assert {value.dtype for value in report.values()} == {jnp.dtype(jnp.float32)}


def test_bfloat16_predictions_lose_nothing_in_the_squared_error(batch):
    outputs = jnp.asarray(batch[0][:, :1], jnp.bfloat16)
    targets = batch[0][:, 1].astype(jnp.bfloat16)
    loss = Regression().loss(outputs, targets)
    assert loss.dtype == jnp.float32
    expected = np.square(np.asarray(outputs, np.float64)[:, 0] - targets.astype(np.float64)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-6)
