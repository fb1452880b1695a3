"""The converged probe against scikit-learn's logistic regression, which has the same minimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from src.metrics.linear_probe import PENALTIES, fit_probe, linear_probe, scores


def planted(rows=300, dim=6, classes=4, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dim))
    y = rng.integers(0, classes, rows)
    return (centres[y] + noise * rng.standard_normal((rows, dim))).astype(np.float32), y


def oracle(x, y, penalty):
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=10_000)
    return model.fit(np.asarray(x, np.float64), y)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_the_minimum_is_scikit_learn_s(penalty):
    x, y = planted()
    found, expected = fit_probe(np.asarray(x, np.float64), y, 4, penalty), oracle(x, y, penalty)
    assert found.converged
    np.testing.assert_allclose(found.kernel, expected.coef_.T, atol=1e-4)
    logits = found.logits(x)
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(1, keepdims=True), expected.predict_proba(x), atol=1e-5)
    log_p = np.log(expected.predict_proba(x))[np.arange(len(y)), y]
    assert scores(found, x, y) == pytest.approx({"accuracy": expected.score(x, y), "loss": -log_p.mean()}, rel=1e-5)


def test_two_classes():
    """Of two columns that differ by w, the smallest have the squared length w**2 / 2: half the penalty on w."""
    x, y = planted(classes=2)
    found, expected = fit_probe(np.asarray(x, np.float64), y, 2, 0.02), oracle(x, y, 0.01)
    np.testing.assert_allclose(found.kernel[:, 1] - found.kernel[:, 0], expected.coef_[0], atol=1e-4)
    assert found.bias[1] - found.bias[0] == pytest.approx(expected.intercept_[0], abs=1e-4)


def test_it_does_not_matter_where_it_begins():
    x, y = planted()
    x = np.asarray(x, np.float64)
    first = fit_probe(x, y, 4, 1.0)
    np.testing.assert_allclose(fit_probe(x, y, 4, 1e-3, first).kernel, fit_probe(x, y, 4, 1e-3).kernel, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_validation_chooses_and_test_reports(seed):
    """Few rows of many dimensions, so that the penalty matters."""
    x, y = planted(160, 30, 3, seed, noise=2.0)
    train, val, test = slice(0, 40), slice(40, 100), slice(100, 160)
    found = linear_probe(x[train], y[train], x[val], y[val], x[test], y[test], 3, PENALTIES)
    models = {penalty: oracle(x[train], y[train], penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: (models[penalty].score(x[val], y[val]), penalty))
    assert found["penalty"] == best
    assert found["val_accuracy"] == pytest.approx(models[best].score(x[val], y[val]))
    assert found["test_accuracy"] == pytest.approx(models[best].score(x[test], y[test]))
    assert found["train_accuracy"] == pytest.approx(models[best].score(x[train], y[train]))
    log_p = models[best].predict_log_proba(x[test].astype(np.float64))
    assert found["test_loss"] == pytest.approx(-log_p[np.arange(60), y[test]].mean(), rel=1e-3)
    assert found["converged"] == 1.0


def test_the_order_of_the_penalties_does_not_matter():
    x, y = planted()
    parts = (x[:100], y[:100], x[100:200], y[100:200], x[200:], y[200:], 4)
    assert linear_probe(*parts, [1e-3, 1.0, 0.1]) == linear_probe(*parts, (1.0, 0.1, 1e-3))


def test_a_class_without_training_rows_is_never_said():
    x, y = planted()
    known = y < 3
    found = fit_probe(np.asarray(x[known], np.float64), y[known], 4, 0.01)
    assert np.isfinite(found.kernel).all()
    assert 3 not in found.logits(x).argmax(axis=1)
    expected = oracle(x[known], y[known], 0.01)
    np.testing.assert_array_equal(found.logits(x).argmax(axis=1), expected.predict(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalties": ()}, "penalties must be finite numbers > 0, at least one, got"),
        ({"penalties": (0.1, 0.0)}, "penalties must be finite numbers > 0"),
        ({"classes": 3}, "train_y must be whole numbers from 0 to 2"),
        ({"val_y": np.zeros(100)}, "val_y must be whole numbers"),
        (
            {"test_y": np.zeros(3, int)},
            r"test_x must be of shape .N, D. and test_y of shape .N,., got .100, 6. and .3,.",
        ),
        ({"train_x": np.zeros((0, 6)), "train_y": np.zeros(0, int)}, "train_x must be of shape"),
        ({"test_x": np.full((100, 6), np.nan)}, "test_x must be finite"),
    ],
)
def test_bad_input(change, message):
    x, y = planted()
    names = ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y")
    given = dict(zip(names, (x[:100], y[:100], x[100:200], y[100:200], x[200:], y[200:]), strict=True))
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**given, "classes": 4, **change})
