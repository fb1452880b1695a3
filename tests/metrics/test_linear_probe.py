"""The probe against a converged logistic regression of scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from src.metrics.probes import PENALTIES, accuracy, fit_probe, linear_probe


def planted(rows=300, dim=6, classes=4, seed=0, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dim))
    y = rng.integers(0, classes, rows)
    return (centres[y] + noise * rng.standard_normal((rows, dim))).astype(np.float32), y


def oracle(x, y, penalty):
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=10_000)
    return model.fit(np.asarray(x, np.float64), y)


@pytest.mark.parametrize(("classes", "penalty"), [(4, 1.0), (4, 1e-2), (4, 1e-4), (2, 0.02)])
def test_the_minimum_is_scikit_learn_s(classes, penalty):
    """Two columns that differ by w have at least the squared length w**2 / 2: half the penalty on w."""
    x, y = planted(classes=classes)
    found, expected = fit_probe(x, y, penalty), oracle(x, y, penalty / 2 if classes == 2 else penalty)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-2)
    np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), atol=1e-2)
    assert accuracy(found, x, y) == pytest.approx(expected.score(x, y), abs=0.005)


@pytest.mark.parametrize("seed", range(3))
def test_validation_chooses_and_test_reports(seed):
    """Few rows of many dimensions, so that the penalty matters."""
    x, y = planted(160, 30, 3, seed, noise=2.0)
    train, val, test = slice(0, 40), slice(40, 100), slice(100, 160)
    found = linear_probe(*((x[part], y[part]) for part in (train, val, test)), PENALTIES)
    models = {penalty: oracle(x[train], y[train], penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: (models[penalty].score(x[val], y[val]), penalty))
    assert found["penalty"] == best
    assert found["val_accuracy"] == pytest.approx(models[best].score(x[val], y[val]))
    assert found["test_accuracy"] == pytest.approx(models[best].score(x[test], y[test]))


def test_the_order_of_the_penalties_does_not_matter():
    x, y = planted()
    parts = [(x[:100], y[:100]), (x[100:200], y[100:200]), (x[200:], y[200:])]
    assert linear_probe(*parts, [1e-3, 1.0, 0.1]) == linear_probe(*parts, (1.0, 0.1, 1e-3))


def test_a_class_without_training_rows_is_never_predicted():
    x, y = planted()
    seen = y < 3
    assert 3 not in fit_probe(x[seen], y[seen], 0.01).predict(x)
    assert accuracy(fit_probe(x[y == 2], y[y == 2], 0.01), x, y) == np.mean(y == 2)


@pytest.mark.parametrize("penalties", [(), (0.1, 0.0)])
def test_penalties_are_checked(penalties):
    with pytest.raises(ValueError, match="penalties must be finite numbers > 0, at least one, got"):
        linear_probe(planted(), planted(), planted(), penalties)
