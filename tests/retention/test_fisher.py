"""The four estimates of the Fisher information against closed forms and loops in float64."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from src.errors import UserError
from src.models.base import Model
from src.models.mlp import Activation, Mlp
from src.retention import fisher, fisher_diagonal
from src.retention.fisher import Likelihood

ROWS, FEATURES, CLASSES = 50, 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, FEATURES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, ROWS)
PARAMS = {
    "w": RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32),
    "b": RNG.normal(size=CLASSES).astype(np.float32),
}
KEY = jax.random.PRNGKey(0)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)


def log_prob(params, x):
    return jax.nn.log_softmax(x @ params["w"] + params["b"])


def softmax(params, x):
    z = x.astype(np.float64) @ params["w"].astype(np.float64) + params["b"].astype(np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_exact_is_the_closed_form_of_multinomial_regression():
    """E_y [([y = k] - p_k)**2] = p_k (1 - p_k), so F of w[d, k] is the mean of x_d**2 p_k (1 - p_k)."""
    p = softmax(PARAMS, X)
    found = fisher_diagonal(log_prob, PARAMS, X)
    close(found["w"], (X.astype(np.float64) ** 2).T @ (p * (1 - p)) / ROWS)
    close(found["b"], (p * (1 - p)).mean(axis=0))


def test_exact_is_the_closed_form_of_logistic_regression():
    """F = mean of x x sigma (1 - sigma), the diagonal of the Hessian of its loss."""

    def binary(params, x):
        z = jnp.dot(x, params["w"])
        return jnp.stack([jax.nn.log_sigmoid(-z), jax.nn.log_sigmoid(z)])

    w = RNG.normal(size=FEATURES).astype(np.float32)
    sigma = 1 / (1 + np.exp(-(X.astype(np.float64) @ w.astype(np.float64))))
    close(fisher_diagonal(binary, {"w": w}, X)["w"], (X**2 * (sigma * (1 - sigma))[:, None]).mean(axis=0))


def per_row(params, labels):
    """Each row's gradient of log p(label), in float64."""
    score = np.eye(CLASSES)[labels] - softmax(params, X)
    return np.einsum("nd,nk->ndk", X.astype(np.float64), score), score


def test_empirical_squares_each_row_s_gradient():
    w, b = per_row(PARAMS, Y)
    found = fisher_diagonal(log_prob, PARAMS, X, estimator="empirical", targets=Y)
    close(found["w"], (w**2).mean(axis=0))
    close(found["b"], (b**2).mean(axis=0))


@pytest.mark.parametrize("size", [8, 50, 1, 300])
def test_batched_squares_each_batch_s_mean_gradient(size):
    w, _ = per_row(PARAMS, Y)
    batches = [w[i : i + size].mean(axis=0) for i in range(0, ROWS, size)]
    found = fisher_diagonal(log_prob, PARAMS, X, estimator="batched", targets=Y, chunk=size)
    np.testing.assert_allclose(found["w"], np.mean(np.square(batches), axis=0), rtol=2e-4, atol=1e-7)


def test_batched_is_too_small_by_the_size_of_the_batch():
    """With labels from the model the mean gradient of b rows has 1/b of a row's variance: .0313 for b = 32."""
    rows = 32 * 400
    x = RNG.normal(size=(rows, FEATURES)).astype(np.float32)
    labels = np.array([RNG.choice(CLASSES, p=p) for p in softmax(PARAMS, x)])
    exact = fisher_diagonal(log_prob, PARAMS, x)
    batched = fisher_diagonal(log_prob, PARAMS, x, estimator="batched", targets=labels, chunk=32)
    ratio = np.mean(batched["w"]) / np.mean(exact["w"])
    assert ratio == pytest.approx(1 / 32, rel=0.1)


def test_sampled_converges_to_the_exact_one():
    sampled = jax.jit(jax.vmap(lambda key: fisher_diagonal(log_prob, PARAMS, X, estimator="sampled", key=key)))
    draws = np.asarray(sampled(jax.random.split(KEY, 4000))["w"], np.float64)
    exact = np.asarray(fisher_diagonal(log_prob, PARAMS, X)["w"], np.float64)
    errors = draws.mean(axis=0) - exact
    deviation = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(errors) < 5 * deviation).all()
    assert (draws.std(axis=0) > 0).all()  # it is a draw


@pytest.mark.parametrize("estimator", ["exact", "sampled", "empirical"])
def test_the_chunk_changes_nothing(estimator):
    """Also where the last one is not full: 50 rows in chunks of 7 are padded, and padding counts for nothing."""
    whole, *others = (
        fisher_diagonal(log_prob, PARAMS, X, estimator=estimator, targets=Y, key=KEY, chunk=chunk)
        for chunk in (ROWS, 1, 7, 49, 1000)
    )
    for other in others:
        for path in PARAMS:
            close(other[path], whole[path])


def test_a_small_budget_makes_smaller_chunks_of_the_same(monkeypatch):
    whole = fisher_diagonal(log_prob, PARAMS, X)
    monkeypatch.setattr(fisher, "BUDGET", 1.0)
    close(fisher_diagonal(log_prob, PARAMS, X)["w"], whole["w"])


def loop(function, params, x, squares):
    """``mean over rows of squares(row's number, outputs, Jacobian)`` from JAX's own Jacobians, one row at a time."""
    both = jax.jit(lambda params, row: (function(params, row), jax.jacrev(function)(params, row)))
    found = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), both(params, row)) for row in x]
    return {p: np.mean([squares(i, out, jac[p]) for i, (out, jac) in enumerate(found)], axis=0) for p in params}


def expected(number, log_p, jac):
    return np.einsum("k,k...->...", np.exp(log_p), jac**2)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x, start=0, stop=None):
        x = nn.relu(nn.Conv(3, (2, 2), name="Conv_0")(x))
        x = nn.BatchNorm(name="BatchNorm_0")(x)
        shared = nn.Dense(3, name="Dense_0")
        x = shared(nn.tanh(shared(x)))  # a kernel that is used twice, and at many places of an image
        return nn.Dense(CLASSES, name="Dense_1")(x.mean(axis=(1, 2)))


@dataclass(frozen=True)
class ConvNet(Model):
    def module(self, outputs):
        return Convolutions()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Mlp((6, 7)), (FEATURES,)), (Mlp((6,), Activation.gelu), (FEATURES,)), (ConvNet(), (4, 3, 2))],
    ids=["relu", "gelu", "conv"],
)
def test_networks_agree_with_a_loop_over_jacobians(model, shape):
    """Whether a kernel's gradients are outer products or not."""
    x = RNG.normal(size=(9, *shape)).astype(np.float32)
    params = model.init(KEY, shape, CLASSES)

    def of_batches(params, x):
        return jax.nn.log_softmax(model.apply(params, x, CLASSES))

    def of_a_row(params, row):
        return of_batches(params, row[None])[0]

    oracle = loop(of_a_row, params, x, expected)
    for function in (of_a_row, of_batches):
        found = fisher_diagonal(function, params, x, chunk=4)
        for path in params:
            np.testing.assert_allclose(found[path], oracle[path], rtol=2e-4, atol=1e-7, err_msg=path)


def tied(params, x):
    hidden = jnp.tanh(x @ params["w"])
    return jax.nn.log_softmax(hidden @ params["w"].T @ params["v"])


def transformed(params, x):
    return jax.nn.log_softmax(x @ (params["w"] / jnp.linalg.norm(params["w"])) @ params["v"])


def compiled_inside(params, x):
    return jax.nn.log_softmax(jax.jit(lambda w, x: jnp.tanh(x @ w))(params["w"], x) @ params["v"][:4])


def as_rows(params, x):
    """The kernel meets a matrix: a row's gradient is a sum of outer products, whose square is not that of its parts."""
    return jax.nn.log_softmax((x.reshape(5, 1) @ params["u"]).sum(axis=0) @ params["v"][:4])


@pytest.mark.parametrize("function", [tied, transformed, compiled_inside, as_rows])
def test_kernels_in_other_places_agree_with_a_loop_too(function):
    sizes = {"w": (5, 4), "v": (4, 3) if function is transformed else (5, 3), "u": (1, 4)}
    params = {name: jnp.asarray(RNG.normal(size=size), jnp.float32) for name, size in sizes.items()}
    oracle, found = loop(function, params, X[:9], expected), fisher_diagonal(function, params, X[:9])
    for path in params:
        np.testing.assert_allclose(found[path], oracle[path], rtol=2e-4, atol=1e-7, err_msg=path)


def mean(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def test_a_regression_has_the_fisher_information_of_variance_1():
    params = {"w": RNG.normal(size=(5, 4)).astype(np.float32), "v": RNG.normal(size=(4, 1)).astype(np.float32)}
    y = RNG.normal(size=ROWS).astype(np.float32)
    exact = fisher_diagonal(mean, params, X, likelihood=Likelihood.gaussian)
    squared = loop(mean, params, X, lambda i, out, jac: (jac**2).sum(axis=0))
    labelled = loop(mean, params, X, lambda i, out, jac: ((y[i] - out[0]) * jac[0]) ** 2)
    empirical = fisher_diagonal(
        mean, params, X, likelihood=Likelihood.gaussian, estimator="empirical", targets=y, chunk=7
    )
    sampled = jax.vmap(
        lambda key: fisher_diagonal(mean, params, X, likelihood=Likelihood.gaussian, estimator="sampled", key=key)
    )
    draws = sampled(jax.random.split(KEY, 2000))
    for path in params:
        close(exact[path], squared[path])
        close(empirical[path], labelled[path], rtol=1e-4)
        deviation = np.std(draws[path], axis=0) / np.sqrt(2000)
        assert (np.abs(np.mean(draws[path], axis=0) - exact[path]) < 5 * deviation).all()


def test_it_can_be_compiled_and_mapped_over_parameters():
    stacked = {path: jnp.stack([leaf, 2 * leaf]) for path, leaf in PARAMS.items()}
    found = jax.jit(jax.vmap(lambda params: fisher_diagonal(log_prob, params, X)))(stacked)
    for lane, factor in enumerate((1, 2)):
        alone = fisher_diagonal(log_prob, {path: factor * leaf for path, leaf in PARAMS.items()}, X)
        for path in PARAMS:
            close(found[path][lane], alone[path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": X[:0]}, "has no rows"),
        ({"estimator": "true"}, "is 'true'; allowed: exact, sampled, empirical, batched"),
        ({"estimator": "empirical"}, "empirical Fisher information needs the rows' targets"),
        ({"estimator": "batched"}, "batched Fisher information needs the rows' targets"),
        ({"estimator": "empirical", "targets": Y[:3]}, "50 inputs and 3 targets"),
        ({"estimator": "sampled"}, "needs a key"),
        ({"chunk": 0}, "chunk of the Fisher information is 0"),
        ({"function": lambda params, x: jnp.sum(params["w"])}, "allowed: .1, K., or .K,. for a row"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    arguments = {"function": log_prob, "inputs": X} | change
    with pytest.raises(UserError, match=message):
        fisher_diagonal(params=PARAMS, **arguments)
