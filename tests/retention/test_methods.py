"""Each way of keeping the source task, against closed forms in float64 and by what it promises."""

import dataclasses
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from src.config.hparams import bind, hyperparameters, static_part
from src.config.schema import build, option_class, option_names
from src.errors import UserError
from src.models.mlp import Mlp
from src.objectives.base import NetworkFns, Objective
from src.objectives.kinds import for_kind
from src.objectives.supervised import Classification
from src.objectives.text import MaskedLm
from src.pretraining.augmentation import Augmentation
from src.pretraining.contrastive import Shape, Temperature
from src.pretraining.mae import MaeObjective
from src.pretraining.moco import MocoObjective
from src.pretraining.simclr import SimclrObjective
from src.retention import fisher_diagonal
from src.retention.base import FinetuneSetup, Retention, SourceTask, distance
from src.retention.distill import Distill, divergence
from src.retention.ewc import Ewc
from src.retention.fisher import Estimator
from src.retention.isolate import Isolate
from src.retention.l2_sp import L2Sp
from src.retention.none import NoRetention
from src.retention.online_ewc import OnlineEwc
from src.retention.replay import Replay, reservoir
from src.types import Split

RNG = np.random.default_rng(0)
MODEL, FEATURES, CLASSES, ROWS = Mlp((6,), dropout=0.5), 4, 3, 40
HEAD = frozenset({"Dense_1/kernel", "Dense_1/bias"})
SOURCE = Split(RNG.normal(size=(ROWS, FEATURES)).astype(np.float32), RNG.integers(0, CLASSES, ROWS).astype(np.int32))
KEY = jax.random.PRNGKey(0)
VIEWS = Temperature(Shape.constant, cold=0.5), Augmentation()
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)


def keeping(seed=0, kind="classification", **changes):
    outputs = CLASSES if kind == "classification" else 1
    source = SOURCE if kind == "classification" else Split(SOURCE.x, RNG.normal(size=ROWS).astype(np.float32))
    params = MODEL.init(jax.random.PRNGKey(seed), (FEATURES,), outputs)
    task = SourceTask(MODEL, outputs, for_kind(kind), params, HEAD, False, source, seed)
    return task._replace(**changes)


def moved(params, seed=1):
    rng = np.random.default_rng(seed)
    return {path: leaf + rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in params.items()}


def outputs(params, x):
    return MODEL.apply(params, x, CLASSES)


def squares(params, anchor, paths, weight=None):
    """``sum weight * (w - w0)**2`` in float64."""
    total = 0.0
    for path in paths:
        change = np.asarray(params[path], np.float64) - np.asarray(anchor.get(path, 0), np.float64)
        total += np.sum((1 if weight is None else np.asarray(weight[path], np.float64)) * change**2)
    return total


TRUNK = ["Dense_0/kernel", "Dense_0/bias"]
SETUP = FinetuneSetup((), (), objective=Classification())
METHODS = [L2Sp(), Ewc(), OnlineEwc(), Replay(), Distill(), Isolate(), NoRetention()]


# --- L2-SP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_head", [False, True])
def test_l2_sp_is_half_the_squared_distance(new_head):
    task = keeping(new_head=new_head)
    params = moved(task.params) | {"Dense_0/lora_a": np.ones((4, 2), np.float32)}
    if new_head:
        params["Dense_1/kernel"] = RNG.normal(size=(6, 7)).astype(np.float32)
    method = L2Sp(strength=0.3, head_decay=0.7)
    expected = 0.15 * squares(params, task.params, TRUNK if new_head else task.params)
    expected += 0.35 * squares(params, {}, HEAD)
    close(method.penalty(params, method.init_state(task)), expected)


def test_what_does_not_move_costs_nothing():
    task, method = keeping(), L2Sp(strength=2.0)
    params = moved(task.params)
    kernel = {"Dense_0/kernel": params["Dense_0/kernel"]}
    close(method.penalty(kernel, method.init_state(task)), squares(params, task.params, kernel))


def test_batch_statistics_have_no_anchor():
    task = keeping()
    task.params["BatchNorm_0/mean"] = jnp.zeros(3)
    assert "BatchNorm_0/mean" not in L2Sp().init_state(task)["anchor"]


def test_the_gradient_at_the_anchor_is_zero():
    for method in (L2Sp(strength=3.0), Ewc(strength=3.0), OnlineEwc(strength=3.0)):
        task = keeping()
        grads = jax.grad(method.penalty)(task.params, method.init_state(task))
        assert all((np.asarray(grad) == 0).all() for grad in grads.values())


def test_the_proximal_step_is_the_minimum_of_its_problem():
    """At the step's result the gradient of ``lr * penalty + 1/2 ||w - v||**2`` is zero."""
    task = keeping()
    step, penalised = (L2Sp(strength=3.0, head_decay=0.5, proximal=flag) for flag in (True, False))
    before, kept = moved(task.params), step.init_state(task)
    rates = {path: 0.1 * (i + 1) for i, path in enumerate(before)}
    for lr in (0.4, rates):
        after = step.after_update(before, kept, lr)
        grads = jax.grad(penalised.penalty)(after, kept)
        for path in before:
            rate = lr[path] if isinstance(lr, dict) else lr
            close(rate * grads[path], before[path] - after[path], atol=1e-5)
    assert (step.penalises, step.proximal) == (False, True)
    assert float(step.penalty(before, kept)) == 0
    assert penalised.after_update(before, kept, 0.1) is before


def test_gradient_descent_diverges_where_the_proximal_step_does_not():
    """At ``lr * strength = 2.1`` the distance from the anchor grows by 1.1 an update, and shrinks by 1/3.1."""
    task, lr = keeping(), 0.1
    explicit, implicit = L2Sp(strength=21.0), L2Sp(strength=21.0, proximal=True)
    kept = explicit.init_state(task)
    start = moved(task.params)

    def distances(step):
        params, found = start, []
        for _ in range(5):
            params = step(params)
            found.append(np.sqrt(squares(params, task.params, params)))
        return np.array(found)

    def descend(params):
        grads = jax.grad(explicit.penalty)(params, kept)
        return {path: leaf - lr * grads[path] for path, leaf in params.items()}

    first = np.sqrt(squares(start, task.params, start))
    powers = np.arange(1, 6)
    np.testing.assert_allclose(distances(descend), first * 1.1**powers, rtol=1e-4)
    np.testing.assert_allclose(distances(lambda p: implicit.after_update(p, kept, lr)), first * 3.1**-powers, rtol=1e-4)


def test_an_enormous_strength_freezes():
    task, method = keeping(), L2Sp(strength=1e12, proximal=True)
    after = method.after_update(moved(task.params), method.init_state(task), 1.0)
    for path, leaf in task.params.items():
        close(after[path], leaf, atol=1e-6)


# --- Elastic weight consolidation -----------------------------------------------------------------------------------


def log_prob(params, x):
    hidden = jax.nn.relu(x @ params["Dense_0/kernel"] + params["Dense_0/bias"])
    return jax.nn.log_softmax(hidden @ params["Dense_1/kernel"] + params["Dense_1/bias"])


@pytest.mark.parametrize("estimator", list(Estimator), ids=lambda one: one.name)
@pytest.mark.parametrize("new_head", [False, True])
def test_ewc_weighs_each_parameter_by_its_fisher_information(estimator, new_head):
    task = keeping(new_head=new_head)
    method = Ewc(strength=0.8, fisher=estimator, chunk=16)
    kept, params = method.init_state(task), moved(task.params)
    paths = TRUNK if new_head else list(task.params)
    assert set(kept["importance"]) == set(kept["anchor"]) == set(paths)
    close(method.penalty(params, kept), 0.4 * squares(params, task.params, paths, kept["importance"]))
    if estimator is not Estimator.sampled:  # which draws from a stream of its own
        F = fisher_diagonal(log_prob, task.params, SOURCE.x, estimator=estimator, targets=SOURCE.y, chunk=16)
        for path in paths:
            np.testing.assert_allclose(kept["importance"][path], F[path], rtol=1e-4, atol=1e-9)


def test_ewc_of_a_regression_squares_the_derivative_of_the_prediction():
    task = keeping(kind="regression")
    found = Ewc().init_state(task)["importance"]["Dense_1/kernel"]
    kernel, bias = (np.asarray(task.params[path], np.float64) for path in TRUNK)
    hidden = np.maximum(SOURCE.x @ kernel + bias, 0)
    close(found[:, 0], np.mean(hidden**2, axis=0))


def test_ewc_takes_as_many_samples_as_it_is_told():
    """All that there are is the whole; fewer are chosen by the seed."""
    whole, same, few, other = (
        Ewc(samples=samples).init_state(keeping()._replace(seed=seed))["importance"]["Dense_0/kernel"]
        for samples, seed in ((None, 0), (ROWS + 5, 0), (10, 0), (10, 1))
    )
    close(whole, same)
    assert not np.allclose(whole, few)
    assert not np.allclose(few, other)


def test_online_ewc_keeps_a_running_sum():
    first, second, third = (keeping(seed) for seed in (0, 1, 2))
    method = OnlineEwc(strength=0.8, gamma=0.9)
    F = [Ewc().init_state(task)["importance"] for task in (first, second, third)]
    kept = method.update(method.update(method.init_state(first), second), third)
    for path in first.params:
        expected = 0.81 * np.asarray(F[0][path], np.float64) + 0.9 * F[1][path] + F[2][path]
        np.testing.assert_allclose(kept["importance"][path], expected, rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(kept["anchor"][path], third.params[path])


def test_online_ewc_after_one_task_is_ewc():
    task = keeping()
    params = moved(task.params)
    one, other = (method.penalty(params, method.init_state(task)) for method in (Ewc(), OnlineEwc(gamma=0.3)))
    close(one, other)


# --- replay ---------------------------------------------------------------------------------------------------------


def test_a_reservoir_holds_every_row_as_often():
    """Chi-square over 3,000 passes of 20 rows with room for 5; each row is in a quarter of them."""
    rng, passes, rows, size = np.random.default_rng(0), 3000, 20, 5
    held = [reservoir(rows, size, rng) for _ in range(passes)]
    assert all(len(set(one.tolist())) == size for one in held)
    counts = np.bincount(np.concatenate(held), minlength=rows)
    expected = passes * size / rows
    # Drawn without replacement, counts vary by (1 - size / rows) of what independent draws do.
    statistic = np.sum((counts - expected) ** 2) / expected * (rows - 1) / (rows - size)
    assert 0.001 < stats.chi2.sf(statistic, rows - 1) < 0.999


@pytest.mark.parametrize(("rows", "size"), [(20, 5), (50, 1), (7, 6), (5, 5), (3, 9)])
def test_a_reservoir_is_algorithm_r(rows, size):
    """The same draws in a loop over the rows."""
    rng = np.random.default_rng(3)
    later = np.arange(min(rows, size), rows)
    places = iter(rng.integers(0, later + 1))
    kept = []
    for row in range(rows):
        if row < size:
            kept.append(row)
        elif (place := next(places)) < size:
            kept[place] = row
    assert reservoir(rows, size, np.random.default_rng(3)).tolist() == kept


@pytest.mark.parametrize(("method", "rows"), [(Replay(), 4), (Replay(fraction=0.001), 1), (Replay(count=7), 7)])
def test_replay_keeps_rows_of_the_source_as_they_are(method, rows):
    kept = method.init_state(keeping())
    assert kept["x"].shape == (rows, FEATURES)
    pairs = {(tuple(x), int(y)) for x, y in zip(SOURCE.x.tolist(), SOURCE.y, strict=True)}
    assert {(tuple(x), int(y)) for x, y in zip(kept["x"].tolist(), kept["y"], strict=True)} <= pairs


def test_replay_keeps_all_where_there_are_no_more_and_says_so_once(caplog):
    with caplog.at_level(logging.WARNING):
        kept = [Replay(count=ROWS + 1).init_state(keeping()) for _ in range(3)]
        later = Replay(count=ROWS + 1).update(kept[0], keeping(source=Split(SOURCE.x[:9], SOURCE.y[:9])))
    np.testing.assert_array_equal(kept[0]["x"], SOURCE.x)
    np.testing.assert_array_equal(later["x"], np.concatenate([SOURCE.x, SOURCE.x[:9]]))
    assert [record.getMessage() for record in caplog.records] == [
        "retention.count is 41 and the task to be kept has fewer rows: all of them are kept"
    ]


def network(outputs_of):
    """The source's network, of what its outputs are."""
    return NetworkFns(lambda x, _places=None, _params=None: (outputs_of(x), {}), {}, lambda x: ((x, outputs_of(x)), {}))


def nats(outputs, labels):
    z = np.asarray(outputs, np.float64)
    return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels])


def test_replay_adds_the_source_s_loss_on_all_that_is_kept():
    task, method = keeping(), Replay(count=7, strength=0.5)
    kept = method.init_state(task)
    found = method.loss(network(partial(outputs, task.params)), jnp.zeros((9, FEATURES)), kept, KEY)
    close(found, 0.5 * nats(outputs(task.params, kept["x"]), kept["y"]))


@pytest.mark.parametrize(("batch", "new_rows", "drawn"), [(None, 3, 3), (5, 3, 5), (5, 100, 5), (20, 3, 7)])
def test_replay_draws_a_batch_by_its_key(batch, new_rows, drawn):
    method, seen = Replay(count=7, batch_size=batch), []
    kept = method.init_state(keeping())

    def outputs_of(x):
        seen.append(x)
        return jnp.zeros((len(x), CLASSES))

    for key in (KEY, KEY, jax.random.PRNGKey(1)):
        close(method.loss(network(outputs_of), jnp.zeros((new_rows, FEATURES)), kept, key), np.log(CLASSES))
    assert {len(x) for x in seen} == {drawn}
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2]) == (drawn == 7)


class Halved(Objective):
    """Sees half of each input: what is learned of rows that are not seen as they are."""

    corrupts = True

    def corrupt(self, key, x, targets):
        return x / 2, targets

    def loss(self, outputs, targets, smoothing=None):
        return jnp.mean(outputs)


def test_replay_learns_as_the_source_task_was_learned():
    """By the objective's own update: an input of ones is halved before the network sees it."""
    ones = Split(np.ones_like(SOURCE.x), SOURCE.y)
    task, method = keeping(source=ones)._replace(objective=Halved()), Replay(fraction=1.0)
    kept = method.init_state(task)
    assert float(method.loss(network(lambda x: x), ones.x, kept, KEY)) == 0.5


@pytest.mark.parametrize(
    ("name", "objective", "fits"),
    [
        ("ewc", Classification(), True),
        ("online_ewc", MocoObjective(*VIEWS), False),
        ("ewc", MaskedLm(), False),
        ("replay", MaskedLm(), True),
        ("replay", SimclrObjective(*VIEWS), True),
        ("replay", MaeObjective(Augmentation()), True),
        ("replay", MocoObjective(*VIEWS), False),
        ("distill", MocoObjective(*VIEWS), True),
        ("distill", MaeObjective(Augmentation()), False),
        ("l2_sp", MaeObjective(Augmentation()), True),
    ],
)
def test_what_pre_training_leaves_nothing_to_keep_of_is_refused_before(name, objective, fits):
    method = option_class("retention", name)()
    if fits:
        method.check(SETUP._replace(objective=objective))
    else:
        with pytest.raises(UserError, match=f"retention.name is '{name}', which .*; allowed with it: .*l2_sp"):
            method.check(SETUP._replace(objective=objective))


def test_replay_of_a_regression():
    y = RNG.normal(size=ROWS).astype(np.float32)
    task, method = keeping(kind="regression", source=Split(SOURCE.x, y)), Replay(fraction=1.0)
    kept = method.init_state(task)
    found = method.loss(network(lambda x: jnp.ones((len(x), 1))), jnp.zeros((ROWS, FEATURES)), kept, KEY)
    close(found, np.mean((1 - y.astype(np.float64)) ** 2))


# --- distillation ---------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_scipy():
    old, new = RNG.normal(size=(2, 6, 4)).astype(np.float32)

    def probabilities(z):
        e = np.exp(z.astype(np.float64) / 1.7)
        return e / e.sum(axis=1, keepdims=True)

    expected = 1.7**2 * stats.entropy(probabilities(old), probabilities(new), axis=1).mean()
    close(divergence(old, new, 1.7), expected)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_distillation_is_zero_for_the_old_network_and_nowhere_less(kind):
    task, method = keeping(kind=kind), Distill()
    kept = method.init_state(task)
    x = jnp.asarray(RNG.normal(size=(8, FEATURES)), jnp.float32)

    def loss(params):
        return method.loss(network(lambda rows: MODEL.apply(params, rows, task.outputs)), x, kept, KEY)

    value, grads = jax.value_and_grad(loss)(task.params)
    assert abs(float(value)) < 1e-6
    assert all(np.abs(grad).max() < 1e-6 for grad in grads.values())
    assert float(loss(moved(task.params))) > 1e-3


def test_distillation_of_a_regression_is_the_mean_squared_difference():
    task, method = keeping(kind="regression"), Distill(strength=0.5)
    x = jnp.asarray(RNG.normal(size=(8, FEATURES)), jnp.float32)
    found = method.loss(network(lambda rows: MODEL.apply(task.params, rows, 1) + 3.0), x, method.init_state(task), KEY)
    close(found, 4.5)


def test_the_factor_keeps_the_gradients_size():
    """For T -> infinity the gradient of ``T**2 KL`` goes to the difference of the centred outputs, over K (Hinton)."""
    old, new = RNG.normal(size=(2, 1, 4)).astype(np.float32)
    grad = jax.grad(lambda z: divergence(old, z, 100.0))(new)
    centred = (new - new.mean()) - (old - old.mean())
    np.testing.assert_allclose(grad, centred / 4, atol=0.01)


# --- isolation, and what all share ----------------------------------------------------------------------------------


def test_isolation_lets_only_the_head_and_what_is_added_move():
    Isolate().check(FinetuneSetup(["Dense_0/lora_a", "Dense_1/kernel", "Dense_1/bias"], HEAD, ["lora_a", "lora_b"]))
    for path in ("Dense_0/kernel", "BatchNorm_0/mean", "Dense_0/lora_c"):
        with pytest.raises(UserError, match=rf"'isolate', and the strategy moves {path} .*linear_probe"):
            Isolate().check(FinetuneSetup([path, "Dense_1/kernel"], HEAD, ["lora_a"]))


def test_what_needs_the_source_s_rows_says_what_does_not():
    for method in METHODS:
        method.check(SETUP)
        if not method.needs_source:
            method.check(SETUP._replace(objective=None))
            method.init_state(keeping(source=None))
            continue
        for act in (
            lambda m=method: m.check(SETUP._replace(objective=None)),
            lambda m=method: m.init_state(keeping(source=None)),
        ):
            with pytest.raises(UserError, match=r"needs rows of the source task.*: distill, isolate, l2_sp, none$"):
                act()


def test_without_pre_training_there_is_nothing_to_keep():
    for method in METHODS:
        if method.needs_state:
            with pytest.raises(
                UserError, match=r"retention.name is '\w+', and .* without pre-training.*with it: none$"
            ):
                method.check(SETUP._replace(pretrained=False))
        else:
            method.check(SETUP._replace(pretrained=False))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_flags_say_what_a_method_does(method):
    """A flag that is off stands for a method that returns 0, or its argument."""
    task = keeping()
    kept, params = method.init_state(task), moved(task.params)
    x = jnp.asarray(RNG.normal(size=(8, FEATURES)), jnp.float32)
    assert (float(method.penalty(params, kept)) != 0) == method.penalises
    assert (float(method.loss(network(partial(outputs, params)), x, kept, KEY)) != 0) == method.rehearses
    assert (method.after_update(params, kept, 0.1) is not params) == method.proximal
    assert method.isolates == isinstance(method, Isolate)


@pytest.mark.parametrize("method", [*METHODS, L2Sp(proximal=True)], ids=lambda method: type(method).__name__)
def test_one_program_serves_every_strength_and_can_be_mapped(method):
    """Hyperparameters are arguments, what is kept too; two lanes give what each gives alone."""
    traces = []

    def everything(values, params, kept, key):
        traces.append(1)
        bound = bind(static, values)
        extra = bound.loss(network(partial(outputs, params)), x, kept, key)
        return bound.penalty(params, kept) + extra, bound.after_update(params, kept, 0.1)

    static = static_part(method)
    x = jnp.asarray(RNG.normal(size=(3, FEATURES)), jnp.float32)
    tasks = [keeping(seed) for seed in (0, 1)]
    values = [dict.fromkeys(hyperparameters(method), jnp.float32(value)) for value in (0.3, 0.6)]
    arguments = [(v, moved(task.params), method.init_state(task), KEY) for v, task in zip(values, tasks, strict=True)]
    compiled = jax.jit(everything)
    alone = [compiled(*each) for each in arguments]
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
    for lane, each in enumerate(alone):
        jax.tree.map(lambda a, b, i=lane: close(a[i], b, atol=1e-6), jax.jit(jax.vmap(everything))(*stacked), each)


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 3, 2, 4)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_distance_and_its_gradient_are_those_of_the_formula(shape, weighted):
    """In float64; with a leaf that has no anchor, and one in bfloat16 whose difference is taken in float32."""
    w, anchor, weight = (RNG.normal(size=shape).astype(np.float32) for _ in range(3))
    half = jnp.asarray(w, jnp.bfloat16)
    params = {"a": jnp.asarray(w), "half": half, "new": jnp.ones(2)}
    anchors, weights = {"a": anchor, "half": anchor}, {"a": weight, "half": weight} if weighted else None
    value, grads = jax.jit(jax.value_and_grad(lambda p: 3.0 * distance(p, anchors, weights)))(params)
    factor = weight.astype(np.float64) if weighted else np.ones(shape)
    away = [np.asarray(leaf, np.float64) - anchor.astype(np.float64) for leaf in (w, half.astype(jnp.float32))]
    np.testing.assert_allclose(value, 1.5 * sum(np.sum(factor * each**2) for each in away), rtol=1e-5)
    np.testing.assert_allclose(grads["a"], 3.0 * factor * away[0], rtol=1e-6)
    np.testing.assert_allclose(grads["half"].astype(jnp.float32), 3.0 * factor * away[1], rtol=2**-8)
    assert grads["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads["new"], 0.0)


def test_names_become_classes():
    assert option_class("retention", "none") is NoRetention
    assert {type(method) for method in METHODS} == {option_class("retention", n) for n in option_names("retention")}
    assert all(issubclass(option_class("retention", name), Retention) for name in option_names("retention"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "l2_sp", "strength": -1}, "retention.strength is -1.0; allowed: a finite number >= 0"),
        ({"name": "ewc", "strength": -1}, "retention.strength is -1.0"),
        ({"name": "ewc", "fisher": "true"}, "retention.fisher: Invalid value 'true'"),
        ({"name": "online_ewc", "gamma": 1.5}, "retention.gamma is 1.5; allowed: a number from 0 to 1"),
        ({"name": "distill", "temperature": 0}, "retention.temperature is 0.0; allowed: a finite number > 0"),
        ({"name": "replay", "fraction": 0}, "retention.fraction is 0.0"),
        ({"name": "nine"}, "retention.name is 'nine' .did you mean 'none'"),
    ],
)
def test_wrong_values_are_named(values, message):
    from omegaconf import OmegaConf

    with pytest.raises(UserError, match=message):
        build("retention", OmegaConf.create(values))


def test_methods_can_be_hashed():
    assert {dataclasses.replace(method) for method in METHODS} == set(METHODS)
