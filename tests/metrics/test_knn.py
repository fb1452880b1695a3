"""The vote of nearest neighbours against a float64 loop over all pairs, and where it is known."""

import numpy as np
import pytest

from src.metrics.probes import CHUNK, knn_predict


def brute_force(bank, labels, queries, k, temperature, classes):
    bank, queries = (np.asarray(z, np.float64) for z in (bank, queries))
    said = []
    for query in queries:
        near = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        chosen = np.argsort(-near, kind="stable")[:k]
        votes = np.zeros(classes)
        for i in chosen:
            votes[labels[i]] += np.exp(near[i] / temperature)
        said.append(np.argmax(votes))
    return np.array(said)


def planted(rows=120, queries=40, dim=6, classes=5):
    """Return classes that overlap, so that the vote matters."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, dim))
    y = rng.integers(0, classes, rows + queries)
    x = (centres[y] + rng.standard_normal((rows + queries, dim))).astype(np.float32)
    return x[:rows], y[:rows].astype(np.int32), x[rows:], y[rows:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (120, 0.1)])
def test_by_brute_force(k, temperature):
    bank, labels, queries, _ = planted()
    found = np.asarray(knn_predict(bank, labels, queries, k, temperature, 5))
    assert found.shape == (40,)
    np.testing.assert_array_equal(found, brute_force(bank, labels, queries, k, temperature, 5))


def test_queries_of_more_than_one_chunk():
    bank, labels, _, _ = planted()
    queries = np.random.default_rng(1).standard_normal((CHUNK + 37, 6)).astype(np.float32)
    found = knn_predict(bank, labels, queries, 20, 0.1, 5)
    np.testing.assert_array_equal(found, brute_force(bank, labels, queries, 20, 0.1, 5))


def test_by_hand():
    """Directions of a circle: at 0° lies one of class 1, at 20° and -20° two of class 0, opposite of all class 2."""
    angles = np.deg2rad([0, 20, -20, 180])
    bank, labels = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.int32([1, 0, 0, 2])
    query = np.float32([[3.0, 0.0]])

    def said(k, temperature):
        return int(knn_predict(bank, labels, query, k, temperature, 3)[0])

    assert said(1, 0.1) == 1
    assert said(3, 1.0) == 0  # 2 exp(0.94) > exp(1)
    assert said(3, 0.01) == 1  # exp(100), beyond float32, > 2 exp(94)
    assert said(3, 0.1) == 0  # 2 exp(9.4) > exp(10): the two are worth exp(-0.6) each
    assert said(3, 0.08) == 1  # exp(-0.754) < 1/2


def test_a_small_bank_votes_as_a_whole():
    bank, labels, queries, _ = planted()
    whole = knn_predict(bank, labels, queries, 120, 0.1, 5)
    np.testing.assert_array_equal(knn_predict(bank, labels, queries, 200, 0.1, 5), whole)


def test_classes_without_rows_are_never_said():
    bank, labels, queries, _ = planted()
    found = knn_predict(bank, labels, queries, 20, 0.1, 9)
    np.testing.assert_array_equal(found, knn_predict(bank, labels, queries, 20, 0.1, 5))
    unknown = np.where(labels == 2, -1, labels).astype(np.int32)
    assert 2 not in np.asarray(knn_predict(bank, unknown, queries, 20, 0.1, 5))


def test_equal_votes_and_zeros():
    bank, labels = np.float32([[1, 0], [1, 0], [1, 0]]), np.int32([2, 1, 0])
    assert int(knn_predict(bank, labels, np.float32([[1, 0]]), 1, 0.1, 3)[0]) == 2  # the first of equally near rows
    assert int(knn_predict(bank, labels, np.float32([[1, 0]]), 2, 0.1, 3)[0]) == 1  # the lowest of equal votes
    assert int(knn_predict(bank, labels, np.zeros((1, 2), np.float32), 3, 0.1, 3)[0]) == 0
    assert int(knn_predict(np.zeros_like(bank), labels, np.float32([[1, 0]]), 1, 0.1, 3)[0]) == 2


def test_features_that_tell_classes_apart_are_seen_to():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 300).astype(np.int32)
    x = (np.eye(8)[y] * 5 + rng.standard_normal((300, 8))).astype(np.float32)
    found = knn_predict(x[:200], y[:200], x[200:], 20, 0.07, 4)
    assert np.mean(np.asarray(found) == y[200:]) > 0.97
    noise = rng.standard_normal((300, 8)).astype(np.float32)
    by_noise = knn_predict(noise[:200], y[:200], noise[200:], 20, 0.07, 4)
    assert np.mean(np.asarray(by_noise) == y[200:]) < 0.45


def test_nothing_to_vote():
    bank, labels, queries, _ = planted()
    with pytest.raises(ValueError, match="must be at least 1, got 0, 5 and 120"):
        knn_predict(bank, labels, queries, 0, 0.1, 5)
    with pytest.raises(ValueError, match="must be at least 1, got 3, 5 and 0"):
        knn_predict(bank[:0], labels[:0], queries, 3, 0.1, 5)
