"""BERT and GPT-2: packing and padding change nothing, the future stays unseen, parts make the whole pass."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.errors import UserError
from src.models.base import ApplyOptions
from src.models.bert import Bert, BertHead, BertPooling
from src.models.cpu_kernels import gelu
from src.models.gpt2 import Gpt2
from src.models.transformer import pooled, positions_within
from src.retention import fisher_diagonal
from tests.models.texts import LENGTH, MODELS, SMALL, WORDS, examples, outputs_of, packing, parameters, row, whole

EVERY = pytest.mark.parametrize("name", MODELS)
LENGTHS = (5, 3, 4)


def apply(model, params, rows, **how):
    return np.asarray(model.apply(params, jnp.asarray(np.stack(rows)), outputs_of(model), ApplyOptions(**how)))


@EVERY
def test_packed_rows_give_what_single_ones_give(name):
    model = MODELS[name]
    params, parts = parameters(model), examples(LENGTHS)
    alone = apply(model, params, [row([part]) for part in parts])
    together = apply(packing(model, 4), params, [row(parts), row(parts[::-1])])
    if whole(model):
        assert together.shape == (2, 4, outputs_of(model))
        np.testing.assert_allclose(together[0, :3], alone, atol=1e-5)
        np.testing.assert_allclose(together[1, :3], alone[::-1], atol=1e-5)
    else:
        assert together.shape == (2, LENGTH, outputs_of(model))
        in_order = np.concatenate([alone[i, :n] for i, n in enumerate(LENGTHS)])
        np.testing.assert_allclose(together[0], in_order, atol=1e-5)
    assert np.ptp(alone[..., 0]) > 0.1  # the outputs do differ from example to example


@EVERY
def test_padding_changes_nothing(name):
    model = MODELS[name]
    params, (part,) = parameters(model), examples([5])
    short, long = (apply(model, params, [row([part], length)])[0] for length in (5, 16))
    np.testing.assert_allclose(short if whole(model) else short[:5], long if whole(model) else long[:5], atol=1e-5)
    noisy = row([part], 16)
    noisy[:2, 5:] = 1  # whatever the padding's ids and types are
    noisy = apply(model, params, [noisy])[0]
    np.testing.assert_allclose(noisy if whole(model) else noisy[:5], long if whole(model) else long[:5], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2-causal", "gpt2-tokens", "bert-tokens"])
@pytest.mark.parametrize("packed", [False, True])
def test_only_gpt2_does_not_see_the_future(name, packed):
    model = packing(MODELS[name], 2 if packed else 1)
    params = parameters(model)
    before = row(examples([4, 8])) if packed else row(examples([12]))
    after = before.copy()
    after[0, 9] = (after[0, 9] + 1) % WORDS
    a, b = apply(model, params, [before, after])
    changed = np.abs(a - b).max(axis=-1) > 1e-6
    first = 4 if packed else 0  # the example of the changed word begins here
    expected = np.arange(LENGTH) >= (9 if name.startswith("gpt2") else first)
    np.testing.assert_array_equal(changed, expected)


@EVERY
@pytest.mark.parametrize(
    ("count", "training"),
    [(3, True), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1, False), (1, True), (3, False)))],
)
def test_two_parts_make_the_whole_pass(name, count, training):
    """Cut at every group; what lies between is one array, and a tied head needs the words wherever the cut is."""
    model = packing(MODELS[name], count)
    params, outputs = parameters(model), outputs_of(model)
    x = jnp.asarray(np.stack([row(examples(LENGTHS[:count])), row(examples((2,)))]))
    how = ApplyOptions(key=jax.random.PRNGKey(3) if training else None)
    both = model.apply(params, x, outputs, how)
    for cut in range(len(model.groups()) + 1):
        middle = model.apply(params, x, outputs, how._replace(stop=cut))
        if cut == len(model.groups()):
            np.testing.assert_array_equal(middle, both)
            continue
        np.testing.assert_array_equal(model.apply(params, middle, outputs, how._replace(start=cut)), both)
        if cut > 0:
            pooled_already = whole(model) and cut > SMALL["layers"]
            assert middle.shape == ((2, count, 16) if pooled_already else (2, LENGTH, 17))


def test_dropout_is_drawn_anew_in_each_block_and_by_its_key():
    model = Bert(**SMALL, dropout=0.5, head_dropout=0.5)
    params = parameters(model)
    x = jnp.asarray(np.stack([row(examples((6,)))]))
    one, same, other = (model.apply(params, x, 3, ApplyOptions(key=jax.random.PRNGKey(k))) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert model.stochastic
    assert not Bert(**SMALL).stochastic
    np.testing.assert_array_equal(model.apply(params, x, 3), Bert(**SMALL).apply(params, x, 3))


def test_positions_count_within_each_example():
    row_ = np.array([[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 0, 1, 0, 1], list(range(8))]
    np.testing.assert_array_equal(positions_within(jnp.asarray(row_)), expected)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_is_a_choice_of_rows(pooling):
    h = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    owner = np.array([[1, 1, 2, 2, 2, 3, 0], [1, 0, 0, 0, 0, 0, 0]])
    found = np.asarray(pooled(jnp.asarray(h), jnp.asarray(owner), pooling, 3))
    for i in range(2):
        for number in range(1, 4):
            own = h[i][owner[i] == number]
            expected = {"first": own[:1], "last": own[-1:], "mean": own}[pooling]
            expected = expected.mean(axis=0) if len(own) else np.zeros(4)
            np.testing.assert_allclose(found[i, number - 1], expected, atol=1e-6)


def test_gelu_is_x_times_the_normal_distribution_function():
    from scipy.stats import norm

    x = np.linspace(-8, 8, 401)
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), x * norm.cdf(x), atol=2e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=2e-6)


def test_initial_values_are_truncated_normal_ones():
    """Of a normal distribution cut at two deviations, 0.88 of the deviation is left."""
    bert = Bert(vocab_size=2000, width=64, layers=2, heads=2)
    params = bert.init(jax.random.PRNGKey(0), (3, 4), 3)
    words = np.asarray(params["embeddings/word/embedding"])
    assert np.abs(words).max() <= 0.04
    np.testing.assert_allclose(words.std(), 0.02 * 0.8796, rtol=0.01)
    assert params["block_0/up/kernel"].shape == (64, 256)
    gpt2 = Gpt2(vocab_size=50, width=64, layers=8, heads=2).init(jax.random.PRNGKey(0), (3, 4), 50)
    ratio = np.std(gpt2["block_3/down/kernel"]) / np.std(gpt2["block_3/up/kernel"])
    np.testing.assert_allclose(ratio, 1 / 4, rtol=0.05)  # 16 sums into the residual stream


def test_groups_cover_every_parameter_once():
    import re

    for model in MODELS.values():
        names = [name for name, _ in model.groups()]
        assert names[0] == "embeddings"
        assert names[-1] == "head"
        assert ("pooler" in names) == (isinstance(model, Bert) and whole(model) and model.pooling is BertPooling.pooler)
        hits = dict.fromkeys(names, 0)
        for path in parameters(model):
            owners = [name for name, expression in model.groups() if re.fullmatch(expression, path)]
            assert len(owners) == 1, path
            hits[owners[0]] += 1
        assert all(hits.values()), hits


@pytest.mark.slow
def test_the_exact_fisher_information_of_tokens_and_embeddings():
    """Against every gradient of every class written down, on whole numbers as inputs."""
    model = Bert(**{**SMALL, "vocab_size": 12, "width": 4, "intermediate": 4, "layers": 1, "positions": 6})
    params = {p: jnp.asarray(leaf) for p, leaf in parameters(model).items()}
    x = np.stack([row(examples([n], seed=n), 6) for n in (2, 6, 4)])
    x[:, 0] %= 12

    def log_prob(params, rows):
        return jax.nn.log_softmax(model.apply(params, rows, 3))

    found = fisher_diagonal(log_prob, params, x)
    expected = {path: np.zeros(leaf.shape) for path, leaf in params.items()}
    for one in x:
        jacobian = jax.jacrev(lambda p, one=one: log_prob(p, one[None])[0])(params)
        p = np.exp(np.asarray(log_prob(params, one[None])[0], np.float64))
        for path, leaf in jacobian.items():
            expected[path] += np.einsum("k,k...->...", p, np.asarray(leaf, np.float64) ** 2) / len(x)
    for path in params:
        np.testing.assert_allclose(found[path], expected[path], rtol=2e-4, atol=1e-9, err_msg=path)
    assert np.any(found["embeddings/word/embedding"])


@pytest.mark.parametrize(
    ("model", "outputs", "message"),
    [
        (Bert(**SMALL, head=BertHead.masked), 3, r"model.head=masked has 3 outputs; allowed: 40, the vocab"),
        (Gpt2(**SMALL), 3, r"model.head=causal has 3 outputs; allowed: 40"),
        (Bert(**SMALL, head=BertHead.spans), 3, r"model.head=spans has 3 outputs; allowed: 2"),
        (Bert(width=10, heads=4), 3, "model.heads is 4; allowed: a divisor of the width, 10"),
        (Bert(**SMALL, head=BertHead.pretraining), 2, r"model.head=pretraining has 2 outputs; allowed: 40"),
        (Bert(**SMALL, head=BertHead.pretraining, examples=2), 40, "model.examples is 2; allowed with model.head=pre"),
    ],
)
def test_what_a_network_cannot_be_is_refused(model, outputs, message):
    with pytest.raises(UserError, match=message):
        model.module(outputs)


def test_pre_training_says_what_both_heads_say():
    """Its words' logits are those of ``masked``, its pair's those of ``classify``, from the same parameters."""
    model = Bert(**SMALL, head=BertHead.pretraining)
    params = parameters(model)
    x = np.stack([row(examples([length], length)) for length in (12, 7, 3)])
    found = model.apply(params, x, WORDS)
    masked, pair = (
        replace(model, head=head).apply({p: leaf for p, leaf in params.items() if not re.match(out, p)}, x, outputs)
        for head, out, outputs in (
            (BertHead.masked, "pooler|classifier", WORDS),
            (BertHead.classify, "transform|vocabulary", 2),
        )
    )
    np.testing.assert_allclose(found[:, 1:], masked, atol=1e-6)
    np.testing.assert_allclose(found[:, 0, :2], pair, atol=1e-6)
    assert (found[:, 0, 2:] < -1e8).all()
    below = ApplyOptions(stop=3)
    np.testing.assert_allclose(
        model.apply(params, model.apply(params, x, WORDS, below), WORDS, ApplyOptions(start=3)), found, atol=1e-6
    )
    owners = [[name for name, pattern in model.groups() if re.fullmatch(pattern, path)] for path in params]
    assert all(len(names) == 1 for names in owners)


def test_inputs_that_are_no_tokens_are_refused():
    with pytest.raises(UserError, match=r"inputs of shape \(10,\) .*; allowed: data of text"):
        Bert(**SMALL).init(jax.random.PRNGKey(0), (10,), 3)
    with pytest.raises(UserError, match=r"rows are 17 tokens long, and model\.positions is 16"):
        Bert(**SMALL).init(jax.random.PRNGKey(0), (3, 17), 3)


def test_texts_of_one_row_do_not_see_each_other_before_fine_tuning_either():
    """Data that packs labelled texts packs the source task's rows, too."""
    model = Bert(vocab_size=30, width=16, layers=1, heads=2, intermediate=32, positions=16, examples=3).with_head(
        "masked"
    )
    x = np.ones((1, 3, 8), np.int32)
    x[0, 0], x[0, 1], x[0, 2] = np.arange(5, 13), 0, [1, 1, 1, 2, 2, 2, 2, 0]
    params = model.init(jax.random.PRNGKey(0), x.shape[1:], 30)
    other = x.copy()
    other[0, 0, 4] = 20
    one, two = (np.asarray(model.apply(params, rows, 30)) for rows in (x, other))
    np.testing.assert_array_equal(one[:, :3], two[:, :3])
    assert not np.allclose(one[:, 3:7], two[:, 3:7])
