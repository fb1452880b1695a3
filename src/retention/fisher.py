"""The diagonal of the Fisher information, in four estimators.

The Fisher information of ``p(y | x, w)`` is ``E_x E_{y ~ p(y | x, w)} [g g^T]`` with ``g = d log p(y | x, w) / d w``
(Martens, arXiv 1412.1193, section 5); the labels are drawn from the model. Estimators of that name differ (van de Ven,
arXiv 2502.11756, compares them):

- ``exact``: the mean over all labels, weighted by their probabilities.
- ``sampled``: one label for each input, drawn from ``p``: unbiased, noisy, one backward pass instead of K.
- ``empirical``: the label of the data set. Tends to 0 as the model fits its data perfectly.
- ``batched``: the square of a batch's mean gradient, with the labels of the data set. It is about ``1/b`` of the
  empirical one for batches of ``b`` rows; some libraries compute it (Avalanche).

The first three average the squared gradients of the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, Float, Shaped

from ..errors import UserError, listed

Estimator = Enum("Estimator", ["exact", "sampled", "empirical", "batched"])
BUDGET = 256e6  # bytes that the gradients of a chunk's rows may occupy

Params = Mapping[str, Array]
Outputs = Callable[[Params, Array], Float[Array, " K"]]  # of ONE row


Likelihood = Enum("Likelihood", ["categorical", "gaussian"])


def direction(estimator: str, likelihood: Likelihood, c: Any, outputs: Array, target: Array, key: Array) -> Array:
    """Return the vector ``v`` of one row; the estimator is the square of ``d (v . outputs) / d w``.

    ``exact`` is the sum over K vectors, numbered by ``c``: of a ``categorical`` each class scaled by the root of its
    probability, of a ``gaussian`` each output, as the mean of ``(y - mean)**2`` is 1. The others have one vector: of a
    drawn or given class, or a drawn or given ``y - mean``.
    """
    if estimator == "exact":
        scale = jnp.exp(outputs[c] / 2) if likelihood is Likelihood.categorical else 1
        return _one_hot(c, outputs) * scale
    if likelihood is Likelihood.categorical:
        return _one_hot(jax.random.categorical(key, outputs) if estimator == "sampled" else target, outputs)
    drawn = estimator == "sampled"
    return jax.random.normal(key, outputs.shape, outputs.dtype) if drawn else target.reshape(outputs.shape) - outputs


def _one_hot(place: Any, outputs: Array) -> Array:
    return jax.nn.one_hot(place, outputs.shape[-1], dtype=outputs.dtype)


def fisher_diagonal(
    function: Callable[[Any, Array], Array],
    params: Params,
    inputs: Float[Any, "N ..."],
    *,
    likelihood: Likelihood = Likelihood.categorical,
    estimator: str | Estimator = "exact",
    key: Array | None = None,
    targets: Shaped[Any, "N ..."] | None = None,
    chunk: int = 256,
) -> dict[str, Array]:
    """Return the diagonal of the Fisher information, by path like ``params``.

    Args:
        function: ``(params, x)`` to the log-probabilities of K classes, or to the means of K normal distributions of
            variance 1: (K,) for one row of inputs, or (1, K) for a batch of one row. (A loss ``(y - mean)**2``, without
            the half, corresponds to a variance of 1/2 and twice this Fisher information.)
        params: a flat dict; all of it is differentiated.
        inputs: rows, without augmentation.
        likelihood: of the targets.
        estimator: ``exact``, ``sampled``, ``empirical`` or ``batched``.
        key: random key of the labels of ``sampled``.
        targets: the rows' labels or numbers, for ``empirical`` and ``batched``.
        chunk: the most rows computed at a time, fewer if their gradients would exceed a quarter of a gigabyte; without
            effect on the result. For ``batched`` it is the size of a batch.

    Raises:
        UserError: no rows, an unknown estimator, missing targets or a missing key, shapes that do not fit.
    """
    name = estimator.name if isinstance(estimator, Estimator) else str(estimator)
    _check(name, inputs, key, targets, chunk)
    inputs = jnp.asarray(inputs)
    rows = len(inputs)
    params = {path: jnp.asarray(leaf) for path, leaf in params.items()}
    outputs = _of_one_row(function, params, inputs[0])
    labels = jnp.zeros(rows, jnp.int32) if targets is None else jnp.asarray(targets)
    vector = partial(direction, name, likelihood)
    # A key for each row, so that random labels do not depend on the chunks.
    base = jax.random.PRNGKey(0) if key is None else key
    keys = jax.vmap(partial(jax.random.fold_in, base))(jnp.arange(rows, dtype=jnp.uint32))
    size, squares = min(chunk, rows), partial(_of_a_batch, outputs, params, vector)
    if name != "batched":
        tapped = Tapped.of(outputs, params, inputs[0])
        size = min(size, max(1, int(BUDGET / tapped.bytes_per_row)))
        size = -(-rows // -(-rows // size))  # the same number of chunks, of equal size: less padding
        squares = partial(tapped.squares, params, vector, tapped.outputs if name == "exact" else 1)
    real = jnp.arange(-(-rows // size) * size).reshape(-1, size) < rows
    parts = (*(_cut(values, size) for values in (inputs, labels, keys)), real)

    def add(total: dict[str, Array], part: Any) -> tuple[dict[str, Array], None]:
        found = squares(*part)
        return {path: total[path] + found[path] for path in total}, None

    total, _ = jax.lax.scan(add, {path: jnp.zeros_like(leaf) for path, leaf in params.items()}, parts)
    terms = len(real) if name == "batched" else rows
    return {path: value / terms for path, value in total.items()}


def _check(name: str, inputs: Any, key: Any, targets: Any, chunk: int) -> None:
    allowed = [one.name for one in Estimator]
    if name not in allowed:
        raise UserError(f"the estimator of the Fisher information is '{name}'; allowed: {listed(allowed)}")
    if len(inputs) == 0:
        raise UserError("the Fisher information has no rows of inputs; allowed: at least one row of inputs")
    if chunk < 1:
        raise UserError(f"the chunk of the Fisher information is {chunk}; allowed: a whole number >= 1")
    if name in ("empirical", "batched"):
        if targets is None:
            raise UserError(f"the {name} Fisher information needs the rows' targets; without them: exact, sampled")
        if len(targets) != len(inputs):
            raise UserError(f"the Fisher information was given {len(inputs)} inputs and {len(targets)} targets")
    if name == "sampled" and key is None:
        raise UserError("the sampled Fisher information needs a key to draw labels with; without one: exact")


def _of_one_row(function: Callable[[Any, Array], Array], params: Params, row: Array) -> Outputs:
    """Return a function of one row, also if ``function`` takes batches only."""
    found: Any = None
    with contextlib.suppress(Exception):  # whatever a network raises for a row without a batch axis
        found = jax.eval_shape(function, params, row)
    if found is not None and len(found.shape) == 1:
        return function
    found = jax.eval_shape(function, params, row[None])
    if len(found.shape) != 2 or found.shape[0] != 1:
        raise UserError(
            f"the function returns {found.shape} for a batch of one row; allowed: (1, K), or (K,) for a row"
        )
    return lambda params, x: function(params, x[None])[0]


def _cut(values: Array, size: int) -> Array:
    """Return ``values`` in chunks, the last one padded with the first rows."""
    chunks = -(-len(values) // size)
    return jnp.take(values, jnp.arange(chunks * size) % len(values), axis=0).reshape(chunks, size, *values.shape[1:])


def _of_a_batch(
    outputs: Outputs,
    params: dict[str, Array],
    vector: Callable[..., Array],
    x: Float[Array, "b ..."],
    targets: Shaped[Array, "b ..."],
    keys: Array,
    real: Array,
) -> dict[str, Array]:
    """Return the squared mean gradient of the real rows: a smaller last batch has the same weight as others."""
    out, pull = jax.vjp(lambda p: jax.vmap(partial(outputs, p))(x), params)
    v = jax.vmap(partial(vector, 0))(out, targets, keys)
    (grads,) = pull(jnp.where(real[:, None], v, 0.0) / jnp.sum(real))
    return {path: jnp.square(grad) for path, grad in grads.items()}


class Tapped(NamedTuple):
    """A traced function of one row, with taps at the products whose kernels need no per-row gradient.

    If a kernel is used once, as ``a @ kernel`` with one row ``a``, a row's squared gradient of it is the outer product
    of ``a**2`` and ``d**2``, with ``d`` the product's gradient. The sum over rows is then one matrix product, about a
    hundred times faster. Other parameters are copied for each row, so that the gradients of the copies are per row.
    """

    program: ClosedJaxpr
    places: Mapping[int, str]  # number of an equation -> path of the kernel that it multiplies with
    paths: tuple[str, ...]
    outputs: int  # K
    bytes_per_row: int

    @classmethod
    def of(cls, outputs: Outputs, params: dict[str, Array], row: Array) -> Tapped:
        """Trace a function and find the products."""
        program = jax.make_jaxpr(outputs)(params, row)
        paths = tuple(sorted(params))  # the order in which JAX flattens a dict
        places = {}
        for path, var in zip(paths, program.jaxpr.invars[: len(paths)], strict=True):
            uses = [number for number, eqn in enumerate(program.jaxpr.eqns) if var in _variables(eqn.invars)]
            if len(uses) == 1 and var not in _variables(program.jaxpr.outvars):
                places |= {uses[0]: path} if _multiplies(program.jaxpr.eqns[uses[0]], var) else {}
        copied = sum(params[path].nbytes for path in paths if path not in places.values())
        between = sum(var.aval.size * 4 for eqn in program.jaxpr.eqns for var in eqn.outvars)  # type: ignore[attr-defined]
        return cls(program, places, paths, program.out_avals[0].shape[0], 3 * (copied + between) + 4)

    def squares(
        self,
        params: dict[str, Array],
        vector: Callable[..., Array],
        count: int,
        x: Float[Array, "b ..."],
        targets: Shaped[Array, "b ..."],
        keys: Array,
        real: Array,
    ) -> dict[str, Array]:
        """Return ``(d (v . outputs) / d w)**2``, summed over the directions and the real rows."""
        kernels = {path: params[path] for path in self.places.values()}
        copies = {
            path: jnp.broadcast_to(leaf, (len(x), *leaf.shape)) for path, leaf in params.items() if path not in kernels
        }
        taps = {path: jnp.zeros((len(x), kernel.shape[1]), kernel.dtype) for path, kernel in kernels.items()}

        def forward(copies: dict[str, Array], taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            return jax.vmap(lambda c, t, row: self.run({**kernels, **c}, t, row))(copies, taps, x)

        out, pull, factors = jax.vjp(forward, copies, taps, has_aux=True)

        def add(total: Any, c: Any) -> tuple[Any, None]:
            v = jax.vmap(partial(vector, c))(out, targets, keys)
            of_copies, of_taps = pull(v)
            whole, rows = total
            masked = {path: jnp.where(_like(real, grad), grad, 0.0) for path, grad in of_copies.items()}
            whole = {path: whole[path] + jnp.sum(jnp.square(grad), axis=0) for path, grad in masked.items()}
            return (whole, {path: rows[path] + jnp.square(grad) for path, grad in of_taps.items()}), None

        zero = ({path: jnp.zeros_like(params[path]) for path in copies}, jax.tree.map(jnp.zeros_like, taps))
        (whole, rows), _ = jax.lax.scan(add, zero, jnp.arange(count))
        precise = jax.lax.Precision.HIGHEST
        for path, squares in rows.items():
            inputs = jnp.where(real[:, None], jnp.square(factors[path]), 0.0)
            whole[path] = jnp.matmul(inputs.T, jnp.where(real[:, None], squares, 0.0), precision=precise)
        return whole

    def run(self, params: dict[str, Array], taps: dict[str, Array], x: Array) -> tuple[Array, dict[str, Array]]:
        """Return a row's outputs and the factor of each tapped kernel; the taps are added to the products."""
        values: dict[Var, Any] = dict(zip(self.program.jaxpr.constvars, self.program.consts, strict=True))
        values |= dict(zip(self.program.jaxpr.invars, [*(params[path] for path in self.paths), x], strict=True))
        factors = {}

        jaxpr = self.program.jaxpr
        for number, eqn in enumerate(jaxpr.eqns):
            known = list(dict.fromkeys(_variables(eqn.invars)))
            alone = jaxpr.replace(constvars=[], invars=known, outvars=eqn.outvars, eqns=[eqn])
            results = eval_jaxpr(alone, [], *(values[var] for var in known))
            if number in self.places:
                path = self.places[number]
                factors[path] = values[eqn.invars[0]].reshape(-1)  # type: ignore[index]
                results = [results[0] + taps[path].reshape(results[0].shape)]
            values |= dict(zip(eqn.outvars, results, strict=True))
        (out,) = jaxpr.outvars
        return out.val if isinstance(out, Literal) else values[out], factors


def _variables(atoms: Any) -> list[Var]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _multiplies(eqn: JaxprEqn, kernel: Var) -> bool:
    """Tell whether an equation is ``a @ kernel`` with one row ``a``, of shape (in,) or (1, ..., in)."""
    if eqn.primitive.name != "dot_general" or eqn.invars[1] is not kernel:
        return False
    if eqn.invars[0] is kernel or isinstance(eqn.invars[0], Literal):
        return False
    contracted, batch = eqn.params["dimension_numbers"]
    a, w = (atom.aval for atom in eqn.invars)
    return (
        batch == ((), ())
        and contracted == ((a.ndim - 1,), (0,))  # type: ignore[attr-defined]
        and (w.ndim, a.size) == (2, w.shape[0])  # type: ignore[attr-defined]
        and eqn.outvars[0].aval.dtype == w.dtype  # type: ignore[attr-defined]
    )


def _like(mask: Array, values: Array) -> Array:
    return mask.reshape(-1, *(1,) * (values.ndim - 1))
