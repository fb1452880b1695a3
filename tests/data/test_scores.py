"""Scores that need words: of outputs that are planted, and the same in every run, whatever runs it."""

import json

import numpy as np
import pytest

from src.data.base import Transfer
from src.data.conll import Conll
from src.data.squad import Squad
from src.models import bert
from src.models.bert import Bert
from src.recipe.spec import Recipe
from src.strategies.frozen import Frozen
from src.strategies.full import Full
from src.training.vectorize import RunAxis
from src.types import Split
from tests.runs import run_finetuning, start_untrained

# Four sentences; of the last, both entities are found with the wrong type, of the first one word too few.
SENTENCES = (
    ("Ann Lee met Bob", "B-PER I-PER O B-PER", "B-PER O O B-PER"),
    ("the red cat", "O O O", "O B-LOC O"),
    ("Rome", "B-LOC", "I-LOC"),  # an entity to conlleval, which forgives a B- that is an I-
    ("Bob saw Rome", "B-PER O B-LOC", "B-LOC O B-PER"),
)


def conll(tmp_path, **settings):
    """The sentences as the test part; each is one of three files."""
    tagged = (zip(words.split(), tags.split(), strict=True) for words, tags, _ in SENTENCES)
    content = "\n\n".join("\n".join(f"{word} {tag}" for word, tag in one) for one in tagged)
    path = tmp_path / "tags.txt"
    path.write_text(content + "\n")
    more = {"path": str(path), "val_path": str(path), "test_path": str(path), "vocab_size": 60, "max_seq_len": 24}
    return Conll(tokenizer_cache=None, **(more | settings)).load()


@pytest.mark.parametrize("examples", [1, 3])
def test_entities_of_planted_tags(tmp_path, examples):
    data = conll(tmp_path, examples=examples)
    x, y = data.target["test"]
    said = {words.lower(): tags.split() for words, _, tags in SENTENCES}
    outputs = np.zeros((*y.shape, len(data.labels)))
    for row in range(len(x)):
        for number in range(1, x[row, 2].max() + 1):
            words = data.vocabulary.decode(x[row, 0, x[row, 2] == number])
            places = np.flatnonzero((x[row, 2] == number) & (y[row] >= 0))
            for place, tag in zip(places, said[words], strict=True):
                outputs[row, place, data.labels.index(tag)] = 1.0
    outputs[y < 0] = np.eye(len(data.labels))[0]  # what is said of other tokens does not count
    # 6 entities: Ann Lee, Bob, Rome, Bob, Rome. Found: Ann, Bob, red, Rome, Bob (LOC), Rome (PER). Right: Bob, Rome.
    assert data.scores("test", outputs) == pytest.approx(
        {"entity_precision": 2 / 6, "entity_recall": 2 / 5, "entity_f1": 4 / 11}
    )
    assert data.scores("test", np.eye(len(data.labels))[y])["entity_f1"] == 1.0


def squad(tmp_path, **settings):
    """Two questions about contexts of 12 words; each context takes more than one window."""
    contexts = ["one two three four five six seven eight nine ten eleven twelve", "a b c d e f g h i j k l"]
    asked = [[("q1", "which", "ten", 44)], [("q2", "what", "b c", 2)]]
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": i, "question": q, "answers": [{"text": t, "answer_start": s}]} for i, q, t, s in own],
        }
        for context, own in zip(contexts, asked, strict=True)
    ]
    path = tmp_path / "asked.json"
    path.write_text(json.dumps({"data": [{"title": "a", "paragraphs": paragraphs}]}))
    more = {"path": str(path), "val_path": str(path), "test_path": str(path), "vocab_size": 90}
    sizes = {"max_seq_len": 12, "question_length": 4, "stride": 4}
    return Squad(tokenizer_cache=None, **(more | sizes | settings)).load()


def test_answers_of_planted_spans(tmp_path):
    data = squad(tmp_path)
    x, y = data.target["test"]
    assert len(x) > 2  # windows
    outputs = np.zeros((len(x), x.shape[2], 2))
    where = y[:, 0] >= 0
    for row in np.flatnonzero(where):
        outputs[row, y[row], [0, 1]] = 5.0
    assert data.scores("test", outputs) == {"exact_match": 1.0, "f1": 1.0}
    # The second answer begins one token late: "c" instead of "b c", F1 2 * 1 / (1 + 2).
    for row in np.flatnonzero(where & (data.questions["test"].question == 1)):
        outputs[row, :, 0] = 0.0
        outputs[row, y[row, 1], 0] = 5.0
    assert data.scores("test", outputs) == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


SMALL = {"vocab_size": 120, "width": 16, "layers": 1, "heads": 2, "intermediate": 16, "positions": 32}


def by_hand(recipe, data, outcome, part):
    """The scores of a part by a pass of the model alone, row by row."""
    outputs = [
        recipe.model.apply(outcome.params, data.target[part].x[row : row + 1], data.outputs)
        for row in range(len(data.target[part].x))
    ]
    found = data.scores(part, np.concatenate([np.asarray(one) for one in outputs]))
    return {f"{part}_{name}": value for name, value in found.items()}


@pytest.mark.parametrize(
    ("load", "head", "names"),
    [
        pytest.param(
            conll, bert.Head.tokens, ["entity_f1", "entity_precision", "entity_recall"], marks=pytest.mark.slow
        ),
        (squad, bert.Head.spans, ["exact_match", "f1"]),
    ],
)
def test_every_run_has_them(tmp_path, load, head, names):
    data = load(tmp_path)
    recipe = Recipe(model=Bert(**SMALL, head=head), strategy=Full(), finetune_steps=25, lr_fine=0.5, log_every=25)
    (pre,) = start_untrained([recipe], data)
    (outcome,) = run_finetuning([recipe], data, [pre], [lambda _: None])
    expected = {**by_hand(recipe, data, outcome, "val"), **by_hand(recipe, data, outcome, "test")}
    assert [name for name in outcome.metrics if name in expected] == list(expected)
    assert {name: outcome.metrics[name] for name in expected} == pytest.approx(expected)
    assert sorted(expected) == sorted(f"{part}_{name}" for part in ("val", "test") for name in names)


def test_lanes_and_kept_features_have_them(tmp_path):
    """Two rates of a probe: lanes of one program, on features that are computed once."""
    data = conll(tmp_path)
    model = Bert(**SMALL, head=bert.Head.tokens)
    recipes = [
        Recipe(model=model, strategy=Frozen(), finetune_steps=30, lr_fine=lr, log_every=30) for lr in (1e-6, 20.0)
    ]
    starts = start_untrained(recipes[:1], data)
    together = run_finetuning(recipes, data, [starts[0]] * 2, [lambda _: None] * 2, RunAxis.map)
    assert together[0].metrics["test_entity_f1"] != together[1].metrics["test_entity_f1"]
    for recipe, outcome in zip(recipes, together, strict=True):
        expected = by_hand(recipe, data, outcome, "test")
        assert {name: outcome.metrics[name] for name in expected} == pytest.approx(expected)


def test_tables_have_none():
    rng = np.random.default_rng(0)
    parts = {name: Split(rng.normal(size=(6, 2)).astype(np.float32), np.zeros(6, np.float32)) for name in ("val",)}
    data = Transfer("regression", {}, parts, 1, 1, new_head=False)
    assert not data.scored
    assert data.scores("val", parts["val"].x) == {}
