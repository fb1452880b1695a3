"""What of texts is pre-trained on: the options of ``pretrain``, composed as on the command line."""

import jax
import numpy as np
import pytest

from src.data import docstrings
from src.data.docstrings import PACKAGES, Docstring
from src.errors import UserError
from src.models.bert import BertHead
from src.objectives.pairs import PairLabels
from src.recipe.configure import make_plan
from tests.config.test_config import composed
from tests.runs import pretraining_stage, resolve_trainable, run

TINY = (
    *("data=docstrings", "data.tokenizer_cache=null", "data.max_seq_len=24", "model=bert", "model.vocab_size=200"),
    *("model.width=8", "model.layers=1", "model.heads=2", "model.positions=24", "tracker=disk"),
    *("batch_size=8", "pretrain_steps=2", "finetune_steps=2", "log_every=1", "lr_pre=0.01"),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A standard library of 45 made-up docstrings a package."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(80)]

    def sentence():
        return " ".join(rng.choice(words, 8)).capitalize() + "."

    made = [Docstring(name, f"{sentence()} {sentence()}") for name in [*PACKAGES, "other"] for _ in range(45)]
    monkeypatch.setattr(docstrings, "read_library", lambda cache: made)
    monkeypatch.setattr(docstrings, "read_topics", lambda: [f"{sentence()} {sentence()}" for _ in range(10)])


def planned(*overrides):
    """Return the recipe and the data of a command line."""
    plan = make_plan(composed(*TINY, *overrides))
    return plan.recipe, plan.source.load()


@pytest.mark.slow
def test_an_option_of_pairs_needs_no_other_key():
    """What ``pretrain`` asks for decides which pairs the data makes, and the record tells both parts."""
    recipe, data = planned("pretrain=mlm_nsp")
    assert (data.kind, data.source_kind, data.pairs) == ("classification", "pretraining", "next")
    outcome = run(recipe, data, lambda *_: None)
    assert outcome.status == "completed"
    found = {name.removeprefix("source_test_"): v for name, v in outcome.metrics.items() if "source_test" in name}
    assert found.keys() == {"loss", "masked_loss", "masked_accuracy", "pair_accuracy", "perplexity"}
    assert found["perplexity"] == pytest.approx(np.exp(found["masked_loss"]), rel=1e-5)
    assert found["loss"] > found["masked_loss"]


def test_pairs_alone_are_learned_by_their_own_objective():
    recipe, data = planned("pretrain=sop")
    resolve_trainable(recipe, data)
    stage = pretraining_stage(recipe, data)
    assert stage.objective == PairLabels()
    assert stage.model.head is BertHead.pretraining
    assert data.pairs == "order"


@pytest.mark.parametrize("option", ["nsp", "sop", "mlm_nsp", "mlm_sop"])
def test_each_option_asks_for_its_own_pairs(option):
    cfg = composed(*TINY, f"pretrain={option}")
    assert cfg.data.pairs == cfg.pretrain.pairs == ("next" if option.endswith("nsp") else "order")
    assert composed(*TINY, "pretrain=mlm").data.pairs is None
    plain = ("data=plain_text", "data.path=x", "model=bert", f"pretrain={option}")
    assert composed(*plain).data.pairs == cfg.pretrain.pairs


def test_the_settings_of_masking_reach_the_objective():
    recipe, data = planned(
        "pretrain=mlm",
        "pretrain.mask_prob=0.5",
        "pretrain.fixed_count=true",
        "pretrain.max_predictions_per_seq=7",
        "pretrain.whole_word_mask=true",
    )
    objective = pretraining_stage(recipe, data).objective
    assert (objective.mask_prob, objective.fixed_count, objective.max_predictions_per_seq) == (0.5, True, 7)
    assert data.vocabulary is not None
    written = data.vocabulary.backend.get_vocab()
    assert (
        set(objective.continuations) == {number for token, number in written.items() if token.startswith("##")} != set()
    )
    part = data.source["train"]
    _, wanted = objective.corrupt(jax.random.PRNGKey(0), part.x, part.y)
    missing = (np.asarray(wanted) >= 0).sum(axis=1)
    assert missing.max() == 7
    assert missing.mean() > 5  # words that do not fit any more are passed over


@pytest.mark.parametrize("option", ["mlm", "mlm_sop"])
@pytest.mark.parametrize("exact", ["true", "false"])
def test_how_many_words_are_missing(option, exact):
    """Of each row ``max(1, round(0.3 * length))``; or on average, within 5 standard deviations of a binomial."""
    recipe, data = planned(f"pretrain={option}", "pretrain.mask_prob=0.3", f"pretrain.fixed_count={exact}")
    part = data.source["train"]
    objective = pretraining_stage(recipe, data).objective
    x, wanted = (np.asarray(found) for found in objective.corrupt(jax.random.PRNGKey(1), part.x, part.y))
    words = slice(1, None) if option == "mlm_sop" else slice(None)
    missing, could = (wanted[:, words] >= 0).sum(axis=1), (part.y[:, words] >= 0).sum(axis=1)
    if exact == "true":
        expected = [max(1, round(0.3 * int(length))) for length in (part.x[:, 2] > 0).sum(axis=1)]
        assert missing.tolist() == expected
    else:
        assert abs(missing.sum() - 0.3 * could.sum()) < 5 * np.sqrt(could.sum() * 0.3 * 0.7)
        assert len(set((missing - 0.3 * could).round(3))) > 3
    assert (x[:, 1:] == part.x[:, 1:]).all()


SHARE = "allowed: a number strictly between 0 and 1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain=mlm", "pretrain.mask_prob=0"], f"pretrain.mask_prob is 0.0; {SHARE}"),
        (["pretrain=mlm_nsp", "pretrain.mask_prob=1"], f"pretrain.mask_prob is 1.0; {SHARE}"),
        (
            ["pretrain=mlm", "pretrain.max_predictions_per_seq=3"],
            r"pretrain.max_predictions_per_seq is 3; allowed: null, or a number with",
        ),
        (
            ["pretrain=mlm", "pretrain.fixed_count=true", "pretrain.max_predictions_per_seq=0"],
            r"pretrain.max_predictions_per_seq is 0; allowed: a whole number",
        ),
        (
            ["pretrain=mlm_sop", "pretrain.mask_replace_prob=0.9", "pretrain.random_replace_prob=0.2"],
            r"pretrain.mask_replace_prob . pretrain.random_replace_prob is 1.1",
        ),
        (["pretrain=sop", "pretrain.pairs=next"], "pretrain.pairs is next; allowed: order"),
        (["pretrain=sop", "data.pairs=next"], r"pretrain=sop learns .*, and data.pairs is next; .*data.pairs=order"),
        (["pretrain=mlm_nsp", "data.pairs=null"], r"pretrain=mlm_nsp learns .* the data has none; .*data.pairs=next"),
        (["pretrain=mlm", "data.pairs=next"], r"pretrain=mlm learns masked .* is pretraining; .*data.pairs=null"),
        (["pretrain=nsp", "model=gpt2"], "model=gpt2 has no head for a task of pairs of sentences"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_sentence(overrides, message):
    with pytest.raises(UserError, match=message):
        resolve_trainable(*planned(*overrides))


def test_other_data_has_no_pairs():
    plan = make_plan(composed("data=digits", "pretrain=nsp"))
    with pytest.raises(
        UserError, match="pretrain=nsp learns from pairs of sentences, and the data has none; allowed: "
    ):
        resolve_trainable(plan.recipe, plan.source.load())


def test_whole_words_need_a_tokenizer_that_tells(monkeypatch):
    """A vocabulary without a piece that continues a word, as a byte-level one is."""
    recipe, data = planned("pretrain=mlm", "pretrain.whole_word_mask=true")
    resolve_trainable(recipe, data)
    monkeypatch.setitem(vars(data.vocabulary), "continuations", ())
    with pytest.raises(
        UserError, match=r"pretrain.whole_word_mask is true, and .* has no token that begins with ##; allowed"
    ):
        resolve_trainable(recipe, data)


def test_plain_texts_are_paired_too(tmp_path):
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(50)]
    text = "\n\n".join(" ".join(" ".join(rng.choice(words, 6)).capitalize() + "." for _ in range(3)) for _ in range(60))
    (tmp_path / "a.txt").write_text(text)
    where = [line for line in TINY if not line.startswith("data=")]
    asked = ("data=plain_text", f"data.path={tmp_path / 'a.txt'}", f"data.source_path={tmp_path / 'a.txt'}")
    masked = ("data.objective=masked", "model.head=pretraining", "pretrain=mlm_sop")
    plan = make_plan(composed(*where, *asked, *masked, "strategy=full"))
    data = plan.source.load()
    assert (data.kind, data.source_kind, data.pairs) == ("pretraining", "pretraining", "order")
    resolve_trainable(plan.recipe, data)
    for part in (*data.source.values(), *data.target.values()):
        assert part.y.shape == (len(part.x), 1 + part.x.shape[2])
        assert set(part.y[:, 0]) <= {0, 1}
    wrong = make_plan(composed(*where, *asked, "pretrain=mlm_sop"))
    with pytest.raises(UserError, match=r"data.pairs is order, and data.objective is causal; allowed with pairs"):
        wrong.source.load()
