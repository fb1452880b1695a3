"""Means of weights: closed forms of a linear model, planted evaluations, and one model at a time as the oracle."""

import itertools
import math
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from flax import linen as nn
from omegaconf import OmegaConf

from src.checkpoints.adapters import LORA_OPTIONS, add_adapter, lora_call, merge
from src.errors import UserError
from src.finished.averaging import (
    EvalTask,
    Interpolation,
    evaluate_weights,
    greedy_soup,
    interpolate,
    recompute_statistics,
    stack,
    uniform_soup,
)
from src.finished.jobs import read_job
from src.models.base import PLAIN, Model, same_bits
from src.models.mlp import Mlp
from src.objectives.supervised import Classification, Regression
from src.optim.optimizers import Sgd
from src.optim.schedules import Constant
from src.strategies.base import Strategy
from src.strategies.full import Full
from src.training.stage import Stage
from src.types import Split
from tests.checkpoints.networks import HEAD, IMAGES, SmallNet, adapter, fresh_head, network
from tests.runs import measure

RNG = np.random.default_rng(0)


class Linear(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        return nn.Dense(self.outputs, name="Dense_0")(x)


@dataclass(frozen=True)
class LinearModel(Model):
    def module(self, outputs):
        return Linear(outputs)

    def groups(self):
        return (("head", "Dense_0/.*"),)


def linear(seed):
    rng = np.random.default_rng(seed)
    return {
        "Dense_0/kernel": rng.normal(size=(4, 1)).astype(np.float32),
        "Dense_0/bias": rng.normal(size=1).astype(np.float32),
    }


def stage_of(model, outputs, objective, strategy=None):
    return Stage(model, outputs, objective, strategy or Full(), Sgd(), Constant(), lr=0.1, steps=1, seed=0)


def rows(size, classes, seed=0, shape=(4,)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, *shape)).astype(np.float32)
    y = rng.integers(0, classes, size).astype(np.int32) if classes else rng.normal(size=size).astype(np.float32)
    return Split(x, y)


# --- interpolation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_of_a_linear_model_outputs_are_interpolated(alpha):
    a, b, x = linear(1), linear(2), rows(9, 0).x
    found = LinearModel().apply(interpolate(a, b, alpha), x, 1)
    outputs = [x.astype(np.float64) @ p["Dense_0/kernel"] + p["Dense_0/bias"] for p in (a, b)]
    np.testing.assert_allclose(found, (1 - alpha) * outputs[0] + alpha * outputs[1], atol=1e-6)


def test_ends_are_bit_identical():
    a, b = network(0), network(1)
    a["Conv_0/bias"][:] = -0.0  # which 1 * a + 0 * b would turn into 0.0
    b["Dense_0/bias"][0] = -0.0
    for alpha, end in ((0.0, a), (1.0, b)):
        found = interpolate(a, b, alpha)
        assert found.keys() == end.keys()
        assert all(same_bits(found[path], end[path]) for path in end)


def test_parameters_equal_at_both_ends_keep_their_bits():
    a, b = network(0), network(0) | fresh_head(3)
    for alpha in (0.1, 0.3, 0.7):
        found = interpolate(a, b, alpha)
        assert {path for path in a if not same_bits(found[path], a[path])} == set(HEAD)


def test_added_parameters_and_a_new_head_are_not_interpolated():
    a, b = linear(1) | {"Dense_1/kernel": np.ones((3, 5), np.float32)}, linear(2)
    b |= {"Dense_1/kernel": np.full((3, 2), 7, np.float32), "Dense_0/scale": np.full(3, 2, np.float32)}
    found = interpolate(a, b, 0.5, kept=["Dense_1/kernel"])
    assert found.keys() == b.keys()
    assert same_bits(found["Dense_1/kernel"], b["Dense_1/kernel"])
    assert same_bits(found["Dense_0/scale"], b["Dense_0/scale"])
    mean = (a["Dense_0/kernel"].astype(np.float64) + b["Dense_0/kernel"]) / 2
    np.testing.assert_allclose(found["Dense_0/kernel"], mean, rtol=1e-6)


def test_rounded_once():
    """Of one rounding the error is half a unit in the last place; products in float32 would add theirs."""
    a, b = ({"w": np.random.default_rng(seed).normal(size=4000).astype(np.float32)} for seed in (1, 2))
    exact = 0.3 * b["w"].astype(np.float64) + 0.7 * a["w"].astype(np.float64)
    assert same_bits(interpolate(a, b, 0.3)["w"], exact.astype(np.float32))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_an_alpha_outside_is_refused(alpha):
    with pytest.raises(UserError, match=r"alpha is .*; allowed: a number from 0 to 1"):
        interpolate(linear(1), linear(2), alpha)


def test_architectures_that_differ_are_refused_with_the_first_differences():
    one, other = linear(1), linear(2)
    other["Dense_0/kernel"] = np.zeros((4, 2), np.float32)
    more = linear(3) | {"Dense_1/bias": np.zeros(2, np.float32)}
    shapes = r"Dense_0/kernel is \(4, 1\) float32 and \(4, 2\) float32"
    for call in (
        lambda: interpolate(one, other, 0.5),
        lambda: uniform_soup([one, other]),
        lambda: greedy_soup([one, other], lambda params: 0.0),
        lambda: stack([one, other]),
    ):
        with pytest.raises(UserError, match=shapes):
            call()
    with pytest.raises(UserError, match=r"Dense_1/bias is absent and \(2,\) float32"):
        uniform_soup([one, more])
    with pytest.raises(UserError, match=r"Dense_1/bias is \(2,\) float32 and absent"):
        interpolate(more, one, 0.5)
    many = {f"w{i}": np.zeros(1) for i in range(5)}
    with pytest.raises(UserError, match=re.escape("w2 is (1,) float64 and absent and 2 more; allowed")):
        uniform_soup([many, {}])


# --- soups ---------------------------------------------------------------------------------------------------------


def test_the_uniform_soup_is_the_mean_in_any_order():
    members = [network(seed) for seed in range(4)]
    expected = {path: np.mean([m[path].astype(np.float64) for m in members], axis=0) for path in members[0]}
    for order in itertools.permutations(members):
        found = uniform_soup(order)
        for path, leaf in found.items():
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-7)
            assert leaf.dtype == np.float32


def test_soup_keeps_bits_that_members_share():
    members = [network(0) | fresh_head(seed) for seed in range(3)]
    found = uniform_soup(members)
    assert {path for path in found if not same_bits(found[path], members[0][path])} == set(HEAD)
    assert all(same_bits(leaf, members[1][path]) for path, leaf in uniform_soup(members[1:2]).items())


def planted(losses):
    """Members that can be told from their mean: member i is the i-th unit vector; ``losses`` are by set of members."""
    members = [{"w": row} for row in np.eye(3, dtype=np.float32)]
    calls = []

    def evaluate(params):
        inside = frozenset(np.flatnonzero(params["w"]).tolist())
        np.testing.assert_allclose(params["w"][list(inside)], 1 / len(inside), rtol=1e-6)  # a uniform mean
        calls.append(inside)
        return losses[inside]

    return members, evaluate, calls


def sets(**losses):
    return {frozenset(int(digit) for digit in name[1:]): loss for name, loss in losses.items()}


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        # The best first, then the next best where it helps: 2, then 0, then 1.
        (sets(_0=0.5, _1=0.6, _2=0.4, _02=0.3, _012=0.2), (2, 0, 1)),
        (sets(_0=0.5, _1=0.6, _2=0.4, _02=0.41, _12=0.39), (2, 1)),
        (sets(_0=0.5, _1=0.6, _2=0.4, _02=0.41, _12=0.42), (2,)),
        # As good is good enough; among members that are equal, the earlier comes first.
        (sets(_0=0.5, _1=0.5, _2=0.5, _01=0.5, _012=0.5), (0, 1, 2)),
        (sets(_0=0.6, _1=0.5, _2=0.5, _12=0.5, _012=0.50001), (1, 2)),
        # A loss that is not a number is the worst there is, alone or in a soup.
        (sets(_0=math.nan, _1=0.6, _2=0.4, _12=math.nan, _02=0.4), (2, 0)),
        (sets(_0=math.nan, _1=math.inf, _2=0.4, _12=math.nan, _02=math.inf), (2,)),
    ],
)
def test_the_greedy_soup(losses, kept):
    members, evaluate, calls = planted(losses)
    params, found = greedy_soup(members, evaluate)
    assert found == kept
    assert same_bits(params["w"], uniform_soup([members[i] for i in kept])["w"])
    assert len(calls) == 5  # each alone, then two candidates


def test_the_greedy_soup_is_never_worse_than_its_best_member():
    rng = np.random.default_rng(0)
    alone = [frozenset({i}) for i in range(3)]
    inside_of_three = [frozenset(c) for size in (1, 2, 3) for c in itertools.combinations(range(3), size)]
    for _ in range(300):
        losses = {inside: rng.choice([0.1, 0.2, 0.3, math.nan]) for inside in inside_of_three}
        members, evaluate, _ = planted(losses)
        if all(math.isnan(losses[one]) for one in alone):
            with pytest.raises(UserError, match="no member has a finite validation loss"):
                greedy_soup(members, evaluate)
            continue
        _, kept = greedy_soup(members, evaluate)
        assert losses[frozenset(kept)] <= np.nanmin([losses[one] for one in alone])


def test_no_members():
    for call in (uniform_soup, stack, lambda members: greedy_soup(members, lambda params: 0.0)):
        with pytest.raises(UserError, match="there are no members to average"):
            call([])


# --- measuring -----------------------------------------------------------------------------------------------------


TRACES = []


@dataclass(frozen=True)
class Counted(Mlp):
    """A perceptron that notes when it is traced."""

    def forward(self, params, x, outputs, options=PLAIN):
        TRACES.append(x.shape)
        return super().forward(params, x, outputs, options)


MODEL = Counted(widths=(6, 5))


def perceptron(seed, outputs):
    return {p: np.asarray(v) for p, v in MODEL.init(jax.random.PRNGKey(seed), (4,), outputs).items()}


def two_tasks(source):
    """A target of three classes and a source of two with a head of its own."""
    head = {path: source[path] for path in ("Dense_2/kernel", "Dense_2/bias")}
    target = EvalTask(stage_of(MODEL, 3, Classification()), {"val": rows(7, 3, 1), "test": rows(8, 3, 2)})
    return target, EvalTask(stage_of(MODEL, 2, Classification()), {"source_test": rows(9, 2, 3)}, head)


def one_by_one(points, target, source):
    """The same numbers from the recipe's own evaluation of one set of weights at a time."""
    for params in points:
        (found,) = measure([target.stage], [params], target.splits)
        (more,) = measure([source.stage], [params | source.head], source.splits)
        yield found | more


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_a_path_equals_one_model_at_a_time(count):
    a, b = perceptron(0, 2), perceptron(1, 3)
    target, source = two_tasks(a)
    alphas = np.linspace(1.0, 0.0, count)
    found = evaluate_weights(Interpolation(a, b, alphas, tuple(source.head)), (target, source), batch_size=4).to_dict(
        "list"
    )
    names = [f"{s}_{m}" for s in ("val", "test", "source_test") for m in ("loss", "accuracy")]
    assert list(found) == ["alpha", *names]
    np.testing.assert_allclose(found["alpha"], alphas, rtol=1e-6)
    points = [interpolate(a, b, alpha, source.head) for alpha in alphas]
    for place, expected in enumerate(one_by_one(points, target, source)):
        for name in names:
            assert found[name][place] == pytest.approx(expected[name], rel=1e-6, abs=1e-6)


def test_stacked_members_equal_one_model_at_a_time():
    members = [perceptron(seed, 3) for seed in range(5)]
    target, source = two_tasks(perceptron(9, 2))
    found = evaluate_weights(stack(members), (target, source), batch_size=2).to_dict("list")
    assert "alpha" not in found
    for place, expected in enumerate(one_by_one(members, target, source)):
        assert all(found[name][place] == pytest.approx(expected[name], rel=1e-6, abs=1e-6) for name in found)


def test_points_and_weights_are_arguments_of_one_program():
    a, b = perceptron(0, 2), perceptron(1, 3)
    target, source = two_tasks(a)
    line = Interpolation(a, b, np.linspace(0, 1, 11), tuple(source.head))
    jax.clear_caches()
    TRACES.clear()
    evaluate_weights(line, (target, source), batch_size=3)
    assert len(TRACES) == 3  # one a split: 11 points in 4 chunks are one program
    evaluate_weights(
        Interpolation(b | dict(source.head), a | fresh(b), np.linspace(0, 1, 30), line.kept),
        (target, source),
        batch_size=3,
    )
    assert len(TRACES) == 3


def fresh(params):
    return {path: params[path] + 1 for path in ("Dense_2/kernel", "Dense_2/bias")}


def test_adapter_parameters_are_applied_when_evaluating():
    """Injected leaves lie in the fine-tuned weights only: they act at every alpha, in the source's head's place too."""
    base = network(0)
    tuned = add_adapter(adapter({"Conv_1": 2, "Dense_0": 3}, 1), base)

    @dataclass(frozen=True)
    class Beside(Strategy):
        adapter_params = tuple(sorted(LORA_OPTIONS.adapter_params))

        def wrap_call(self, ctx):
            return lora_call(ctx)

    split = Split(IMAGES, np.arange(5, dtype=np.int32) % 3)
    stage = stage_of(SmallNet(), 3, Classification(), Beside())
    head = {path: base[path] for path in HEAD}
    tasks = [EvalTask(stage, {"val": split}), EvalTask(stage, {"source_test": split}, head)]
    found = evaluate_weights(Interpolation(base, tuned, [0.0, 0.5]), tasks).to_dict("list")
    for place, alpha in enumerate((0.0, 0.5)):
        whole = merge(interpolate(base, tuned, alpha))
        for name, params in (("val_loss", whole), ("source_test_loss", whole | head)):
            expected = Classification().loss(SmallNet().apply(params, IMAGES, 3), split.y)
            assert found[name][place] == pytest.approx(float(expected), rel=1e-5)
    assert abs(found["val_loss"][0] - float(Classification().loss(SmallNet().apply(base, IMAGES, 3), split.y))) > 1e-3


def test_invalid_points_are_refused():
    task = EvalTask(stage_of(LinearModel(), 1, Regression()), {"val": rows(3, 0)})
    with pytest.raises(UserError, match=r"the points of the path have the lengths \[0\]"):
        evaluate_weights(Interpolation(linear(1), linear(2), []), [task])
    with pytest.raises(UserError, match=r"lengths \[2, 3\]"):
        evaluate_weights({"Dense_0/kernel": np.zeros((2, 4, 1)), "Dense_0/bias": np.zeros((3, 1))}, [task])
    with pytest.raises(UserError, match="allowed: numbers from 0 to 1"):
        evaluate_weights(Interpolation(linear(1), linear(2), [0.5, 1.5]), [task])


# --- batch statistics ----------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, start=0, stop=None):
        x = nn.BatchNorm(momentum=0.9, name="BatchNorm_0")(nn.Dense(6, name="Dense_0")(x))
        x = nn.BatchNorm(name="BatchNorm_1")(nn.Dense(5, name="Dense_1")(nn.relu(x)))
        return nn.Dense(self.outputs, name="Dense_2")(x)


@dataclass(frozen=True)
class NormalisedModel(Model):
    def module(self, outputs):
        return Normalised(outputs)


def test_statistics_are_those_of_the_rows_layer_by_layer():
    rng = np.random.default_rng(1)
    params = NormalisedModel().init(jax.random.PRNGKey(0), (4,), 1)
    params = {p: np.asarray(v) + rng.uniform(0.1, 1, v.shape).astype(np.float32) for p, v in params.items()}
    x = rng.normal(2.0, 3.0, size=(50, 4)).astype(np.float32)
    found = recompute_statistics(stage_of(NormalisedModel(), 1, Regression()), params, x)
    assert {path for path in params if not same_bits(found[path], params[path])} == {
        f"BatchNorm_{i}/{name}" for i in (0, 1) for name in ("mean", "var")
    }
    h = x.astype(np.float64)
    for i in (0, 1):  # by hand, in float64; each layer normalises with the batch's own numbers
        h = h @ params[f"Dense_{i}/kernel"].astype(np.float64) + params[f"Dense_{i}/bias"]
        np.testing.assert_allclose(found[f"BatchNorm_{i}/mean"], h.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[f"BatchNorm_{i}/var"], h.var(0), rtol=1e-4)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * params[f"BatchNorm_{i}/scale"] + params[f"BatchNorm_{i}/bias"]
        h = np.maximum(h, 0)


# --- what jobs leave -----------------------------------------------------------------------------------------------


def test_low_rank_changes_are_merged_before_anything_is_averaged(tmp_path):
    """The mean of the merged kernels is that of the products; a mean of factors would have cross terms."""
    from tests.cli.test_compose_adapters import make_job

    whole = []
    for name, seed, rank in (("a", 1, 3), ("b", 2, 3)):
        params = make_job(tmp_path / name, seed, rank)
        found = read_job(tmp_path / name).merged_params()
        delta = (6.0 / rank) * params["Dense_0/lora_a"].astype(np.float64) @ params["Dense_0/lora_b"]
        np.testing.assert_allclose(found["Dense_0/kernel"], params["Dense_0/kernel"] + delta, atol=1e-6)
        assert found.keys() == {path for path in params if "lora" not in path}
        whole.append((params["Dense_0/kernel"] + delta, found))
    soup = uniform_soup([found for _, found in whole])
    np.testing.assert_allclose(soup["Dense_0/kernel"], (whole[0][0] + whole[1][0]) / 2, atol=1e-6)


def test_dora_is_not_merged_as_lora(tmp_path):
    from src.tracking.record_writer import RecordWriter

    (tmp_path / ".hydra").mkdir()
    OmegaConf.save({"strategy": {"name": "dora"}}, tmp_path / ".hydra" / "config.yaml")
    leaves = {"kernel": (4, 4), "lora_a": (4, 1), "lora_b": (1, 4), "magnitude": (4,)}
    params = {f"Dense_0/{name}": np.ones(shape, np.float32) for name, shape in leaves.items()}
    record = RecordWriter(tmp_path)
    record.save_params(params, {})
    record.close()
    with pytest.raises(UserError, match="not a sum of low-rank changes"):
        read_job(tmp_path).merged_params()
