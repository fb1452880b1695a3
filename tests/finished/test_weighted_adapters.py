"""Sums of adapters: against float64 sums of whole deltas, a full SVD, and one model a grid point."""

import math
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from src.checkpoints.adapters import LORA_OPTIONS, LoraAdapter, add_adapter, merge
from src.errors import UserError
from src.finished import weighted_adapters
from src.finished.weighted_adapters import add_weighted_adapter, search_weights, truncate, weight_grid
from src.models.base import same_bits
from src.objectives.supervised import Classification
from src.types import Split
from tests.checkpoints.networks import HEAD, IMAGES, SmallNet, adapter, dense, network

ONE = adapter({"Conv_0": 2, "Conv_1": 1, "Dense_0": 3}, 1, {"Conv_0": 0.5, "Conv_1": 2.0, "Dense_0": 1.25})
TWO = adapter({"Conv_0": 5, "Dense_0": 1}, 2, 0.75)
THREE = adapter({"Conv_1": 4}, 3, 4.0, head=False)  # with the base's own head
HEADLESS = LoraAdapter(THREE.factors, THREE.scaling, {}, THREE.base, HEAD)


def exact(parts, module):
    """The weighted sum of whole deltas."""
    present = [(own, weight) for own, weight in parts if module in own.factors]
    return sum(weight * own.scaling[module] * dense(*own.factors[module]) for own, weight in present)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, -1.5, 2.0), (-1.0, 0.0, 0.25)])
def test_the_sum_of_deltas_is_exact(weights):
    parts = list(zip((ONE, TWO, THREE), weights, strict=True))
    composed = add_weighted_adapter(parts, head=0)
    assert composed.ranks == {"Conv_0": 7, "Conv_1": 5, "Dense_0": 4}
    for module in composed.factors:
        assert relative(composed.delta_weight(module), exact(parts, module)) < 1e-6
    base = network()
    with jax.default_matmul_precision("highest"):
        side = SmallNet().apply(add_adapter(composed, base), IMAGES, 3, LORA_OPTIONS)
        merged = SmallNet().apply(merge(add_adapter(composed, base)), IMAGES, 3)
    assert np.abs(side - merged).max() < 1e-5 * max(1.0, float(np.abs(side).max()))


def test_one_adapter_minus_itself_is_the_base():
    base = network()
    composed = add_weighted_adapter([(ONE, 1.0), (ONE, -1.0)])
    kernels = merge(add_adapter(composed, base))
    assert all(np.abs(kernels[f"{m}/kernel"] - base[f"{m}/kernel"]).max() < 1e-6 for m in ONE.factors)


def test_adding_the_factors_is_not_the_sum():
    """PEFT's combination type "linear": its cross terms are as large as what was calls for."""
    parts = [(ONE, 0.7), (adapter(ONE.ranks, 5, 0.6), 0.3)]
    errors = []
    for module in ONE.factors:
        roots = [math.sqrt(weight * own.scaling[module]) for own, weight in parts]
        a, b = (sum(r * own.factors[module][i] for r, (own, _) in zip(roots, parts, strict=True)) for i in (0, 1))
        errors.append(relative(dense(a, b), exact(parts, module)))
        assert relative(add_weighted_adapter(parts, head=0).delta_weight(module), exact(parts, module)) < 1e-6
    assert min(errors) > 0.3


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.7, 0.3), (0.85, 0.15)])
def test_the_size_of_the_cross_terms(weights):
    """Of two adapters that have nothing to do with each other, in closed form.

    ``(sqrt(v) A_1 + sqrt(w) A_2)(sqrt(v) B_1 + sqrt(w) B_2)`` adds ``sqrt(v w) (A_1 B_2 + A_2 B_1)`` to ``v A_1 B_1 + w
    A_2 B_2``: relative to it, ``sqrt(2 v w / (v^2 + w^2))``, that is 100 %, 85 % and 58 %.
    """
    rng = np.random.default_rng(0)

    def own():
        a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 8), (8, 300)))
        return LoraAdapter({"Dense_0": (a, b)}, {"Dense_0": 1.0}, {}, "")

    v, w = weights
    parts = [(own(), v), (own(), w)]
    (a1, b1), (a2, b2) = (part.factors["Dense_0"] for part, _ in parts)
    linear = dense(v**0.5 * a1 + w**0.5 * a2, v**0.5 * b1 + w**0.5 * b2)
    expected = math.sqrt(2 * v * w / (v**2 + w**2))
    assert relative(linear, exact(parts, "Dense_0")) == pytest.approx(expected, rel=0.05)
    assert relative(add_weighted_adapter(parts).delta_weight("Dense_0"), exact(parts, "Dense_0")) < 1e-6


def test_bfloat16_factors_are_not_rounded_again():
    import ml_dtypes

    parts = [(adapter({"Dense_0": 2}, seed, 0.3, dtype=ml_dtypes.bfloat16), 0.7) for seed in (1, 2)]
    assert relative(add_weighted_adapter(parts, head=0).delta_weight("Dense_0"), exact(parts, "Dense_0")) < 1e-6


def test_metadata_of_a_sum():
    composed = add_weighted_adapter([(ONE, 1.0), (THREE, -2.0)], head=0)
    assert composed.base == ONE.base
    assert composed.head_paths == HEAD
    assert composed.meta == {"composed": [{"weight": 1.0}, {"weight": -2.0}]}
    assert composed.scaling == dict.fromkeys(ONE.factors, 1.0)


# --- heads ---------------------------------------------------------------------------------------------------------


def test_different_heads_need_a_choice():
    with pytest.raises(UserError, match=r"adapters 0, 2 have different heads.*allowed: head=0 or head=2"):
        add_weighted_adapter([(ONE, 1.0), (HEADLESS, 1.0), (TWO, 1.0)])
    for place, own in enumerate((ONE, TWO)):
        head = add_weighted_adapter([(ONE, 1.0), (TWO, 1.0)], head=place).head
        assert all(same_bits(head[path], own.head[path]) for path in HEAD)
    for place in (-1, 2):
        with pytest.raises(UserError, match=f"head is {place}; allowed: the index of an adapter, 0 to 1"):
            add_weighted_adapter([(ONE, 1.0), (TWO, 1.0)], head=place)


def test_head_is_optional_if_heads_are_equal():
    copied = LoraAdapter(TWO.factors, TWO.scaling, {p: v.copy() for p, v in ONE.head.items()}, ONE.base, HEAD)
    for parts in ([(ONE, 1.0), (copied, 2.0)], [(HEADLESS, 1.0), (ONE, 1.0)]):
        assert all(same_bits(add_weighted_adapter(parts).head[path], ONE.head[path]) for path in HEAD)
    assert add_weighted_adapter([(HEADLESS, 1.0), (HEADLESS, 1.0)]).head == {}


# --- what is refused -----------------------------------------------------------------------------------------------


def test_incompatible_adapters_are_refused():
    other = adapter({"Dense_0": 2}, 1, base=network(seed=1))
    with pytest.raises(UserError, match="allowed: the same base") as error:
        add_weighted_adapter([(ONE, 1.0), (other, 1.0)], head=0)
    assert ONE.base in str(error.value)
    assert other.base in str(error.value)
    a, b = ONE.factors["Conv_0"]
    wide = LoraAdapter({"Conv_0": (np.concatenate([a, a]), b)}, {"Conv_0": 1.0}, {}, ONE.base)
    with pytest.raises(UserError, match=r"different shapes: Conv_0 has \(3, 2, 2, 6\), \(6, 2, 2, 6\)"):
        add_weighted_adapter([(ONE, 1.0), (wide, 1.0)])
    with pytest.raises(UserError, match=r"weights of the adapters are 1\.0, nan; allowed: finite"):
        add_weighted_adapter([(ONE, 1.0), (ONE, math.nan)])
    with pytest.raises(UserError, match="no adapters to add"):
        add_weighted_adapter([])


# --- lower ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncation_is_optimal(rank):
    parts = [(ONE, 0.6), (TWO, -1.1), (THREE, 0.2)]
    whole = add_weighted_adapter(parts, head=1)
    found = truncate(whole, rank)
    lost, total = 0.0, 0.0
    for module in whole.factors:
        matrix = exact(parts, module).reshape(-1, whole.factors[module][1].shape[-1])
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :rank] * values[:rank]) @ v[:rank]
        assert relative(found.adapter.delta_weight(module).reshape(matrix.shape), best) < 1e-5
        tail = np.sqrt((values[rank:] ** 2).sum())
        assert found.errors[module] == pytest.approx(tail / np.linalg.norm(values), abs=1e-6)
        measured = relative(found.adapter.delta_weight(module), whole.delta_weight(module))
        assert found.errors[module] == pytest.approx(measured, abs=1e-6)
        lost, total = lost + tail**2, total + (values**2).sum()
    assert found.error == pytest.approx(math.sqrt(lost / total), rel=1e-5, abs=1e-6)
    assert rank == 4 or found.error > 0.01
    assert found.adapter.ranks == {module: min(rank, r) for module, r in whole.ranks.items()}
    assert (found.adapter.base, found.adapter.head_paths) == (whole.base, HEAD)
    assert all(same_bits(found.adapter.head[path], TWO.head[path]) for path in HEAD)


def test_truncating_a_low_rank_sum_has_no_error():
    doubled = add_weighted_adapter([(ONE, 1.0), (ONE, 1.0)])  # ranks 4, 2 and 6, but of deltas of rank 2, 1 and 3
    found = truncate(doubled, 3)
    assert found.error < 1e-6
    assert all(relative(found.adapter.delta_weight(m), 2 * ONE.delta_weight(m)) < 1e-6 for m in ONE.factors)
    nothing = truncate(add_weighted_adapter([(ONE, 0.0)]), 1)
    assert (nothing.error, set(nothing.errors.values())) == (0.0, {0.0})
    with pytest.raises(UserError, match="rank is 0; allowed: a whole number >= 1"):
        truncate(ONE, 0)


def test_ranks_above_what_the_kernel_can_have():
    wide = add_weighted_adapter([(adapter({"Dense_0": 5}, seed, head=False), 1.0) for seed in range(3)])
    assert wide.ranks == {"Dense_0": 15}  # of a 4 x 7 kernel
    found = truncate(wide, 9)
    assert found.adapter.ranks == {"Dense_0": 4}
    assert found.error < 1e-6
    assert relative(found.adapter.delta_weight("Dense_0"), wide.delta_weight("Dense_0")) < 1e-6


# --- which weights -------------------------------------------------------------------------------------------------

TRACES = []


@dataclass(frozen=True)
class Counted(SmallNet):
    """Notes each time its Python runs: once a trace."""

    def forward(self, params, x, outputs, options=LORA_OPTIONS):
        TRACES.append(params["Conv_0/lora_b"].shape)
        return super().forward(params, x, outputs, options)


LABELS = np.array([0, 2, 1, 1, 0], np.int32)
DATA = Split(IMAGES, LABELS)


def test_a_grid_is_one_program_and_each_point_is_right():
    TRACES.clear()
    weighted_adapters._evaluate.clear_cache()
    base, own, grid = network(), [ONE, TWO, THREE], weight_grid(3, [-0.5, 0.0, 1.0])
    with jax.default_matmul_precision("highest"):
        found = search_weights(
            Counted(), base, own, DATA, objective=Classification(), outputs=3, grid=grid, head=1, batch_size=8
        )
        assert len(found) == 27
        assert TRACES == [(1, 1, 7, 6)]
        finer = weight_grid(3, [0.1, 0.2, 0.3])
        search_weights(
            Counted(), base, own, DATA, objective=Classification(), outputs=3, grid=finer, head=1, batch_size=8
        )
        assert len(TRACES) == 1  # weights are arguments
        for *weights, loss, accuracy in found.to_numpy():
            kernels = {
                f"{m}/kernel": (base[f"{m}/kernel"] + exact(list(zip(own, weights, strict=True)), m)).astype(np.float32)
                for m in ("Conv_0", "Conv_1", "Dense_0")
            }
            logits = np.asarray(SmallNet().apply({**base, **TWO.head, **kernels}, IMAGES, 3), np.float64)
            normalised = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            assert loss == pytest.approx(-normalised[np.arange(5), LABELS].mean(), rel=1e-4)
            assert accuracy == pytest.approx((logits.argmax(axis=1) == LABELS).mean())
    assert list(found.columns) == ["weight_0", "weight_1", "weight_2", "loss", "accuracy"]
    losses = found["loss"].to_numpy()
    assert (np.diff(losses) >= 0).all()
    assert len(set(losses)) > 20
    assert len({tuple(row) for row in found[["weight_0", "weight_1", "weight_2"]].to_numpy()}) == 27


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_no_point(batch_size):
    grid = weight_grid(2, [0.0, 0.5, 1.0])
    tables = [
        search_weights(
            SmallNet(),
            network(),
            [ONE, TWO],
            DATA,
            objective=Classification(),
            outputs=3,
            grid=grid,
            head=0,
            batch_size=n,
        )
        for n in (batch_size, 9)
    ]
    assert len(tables[0]) == 9
    by = ["weight_0", "weight_1"]
    one, other = (table.sort_values(by).to_numpy() for table in tables)
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_loss_that_is_not_finite_comes_last():
    grid = [[0.0], [1e30], [1.0]]
    found = search_weights(SmallNet(), network(), [ONE], DATA, objective=Classification(), outputs=3, grid=grid)
    assert not math.isfinite(found["loss"].iloc[-1])
    assert found["weight_0"].iloc[-1] == np.float32(1e30)
    assert np.isfinite(found["loss"].iloc[:2]).all()


@pytest.mark.parametrize("grid", [[[1.0]], [1.0, 2.0], np.zeros((0, 2)), [[1.0, math.nan]]])
def test_invalid_grids_are_refused(grid):
    with pytest.raises(UserError, match=r"grid of weights has the shape .*; allowed: \(points, 2\) finite numbers"):
        search_weights(
            SmallNet(), network(), [ONE, TWO], DATA, objective=Classification(), outputs=3, grid=grid, head=0
        )
