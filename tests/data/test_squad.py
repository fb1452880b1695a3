"""Questions: windows cover the context, answers are found again in them, and turn back into the same words."""

import json
import logging

import numpy as np
import pytest

from src.data.squad import Squad, find_answer, read_questions, token_span
from src.errors import UserError
from src.metrics.text import best_spans, squad_scores
from src.notices import warn_once
from tests.data.texts import minilm, real, some_texts


@pytest.fixture(autouse=True)
def _say_again():
    warn_once.cache_clear()


def published(paragraphs):
    """Return paragraphs, of a context and questions with answers and where they begin, in SQuAD's format."""
    return {
        "data": [
            {
                "title": "a",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": f"{i}-{j}",
                                "question": ask,
                                "answers": [{"text": t, "answer_start": s} for t, s in answers],
                            }
                            for j, (ask, answers) in enumerate(questions)
                        ],
                    }
                ],
            }
            for i, (context, questions) in enumerate(paragraphs)
        ]
    }


@pytest.fixture
def path(tmp_path):
    """A file of 30 contexts with 3 questions each, about words in them."""
    rng, paragraphs = np.random.default_rng(0), []
    for number in range(30):
        words = " ".join(some_texts(6, number)).split()
        questions = []
        for text in some_texts(3, 100 + number):
            first = int(rng.integers(0, len(words)))
            answer = words[first : first + 1 + int(rng.integers(0, 3))]
            questions.append((f"{text}?", [(" ".join(answer), len(" ".join([*words[:first], ""])))]))
        paragraphs.append((" ".join(words), questions))
    file = tmp_path / "a.json"
    file.write_text(json.dumps(published(paragraphs)))
    return str(file)


def source(path, **settings):
    return Squad(
        path=path,
        **(
            {"tokenizer_cache": None, "vocab_size": 300, "max_seq_len": 64, "question_length": 16, "stride": 20}
            | settings
        ),
    )


def perfect(data, name):
    """Return the answers of a model that knows them: logits of 1 at each answer's first and last token."""
    x, y = data.target[name]
    kept = data.questions[name]
    starts, ends = np.zeros((2, len(x), x.shape[2]))
    rows = np.flatnonzero(y[:, 0] >= 0)
    starts[rows, y[rows, 0]] = ends[rows, y[rows, 1]] = 1
    return best_spans(
        starts, ends, kept.offsets, kept.question, [one.context for one in kept.questions], max_answer=100
    )


def test_a_perfect_model_answers_everything(path):
    data = source(path).load()
    assert (data.kind, data.outputs, data.source, data.new_head) == ("spans", 2, {}, True)
    assert data.rows()["test"] > len(data.questions["test"].questions)  # contexts are longer than a row
    for name in ("val", "test"):
        questions = data.questions[name].questions
        scores = squad_scores(perfect(data, name), [one.answers for one in questions])
        assert scores == {"exact_match": 1, "f1": 1}
    assert sum(len(kept.questions) for kept in data.questions.values()) == 90


def test_windows_cover_the_context(path):
    data = source(path).load()
    words = data.vocabulary
    for name, (x, y) in data.target.items():
        kept = data.questions[name]
        assert x.dtype == y.dtype == np.int32
        assert kept.offsets.shape == (len(x), x.shape[2], 2)
        for number, one in enumerate(kept.questions):
            rows = np.flatnonzero(kept.question == number)
            seen: set[int] = set()
            begins = []
            for row in rows:
                ids, types, there = x[row]
                inside = kept.offsets[row, :, 0] >= 0
                seen.update(kept.offsets[row][inside][:, 0].tolist())
                begins.append(kept.offsets[row][inside][0, 0])
                assert (ids[0], ids[there == 1][-1]) == (words.cls, words.sep)
                assert types[inside].all()
                asked = ids[(there == 1) & (types == 0)]
                assert asked.tolist() == [words.cls, *words.encode([one.text])[0][:16], words.sep]
                for token, (a, b) in zip(ids[inside], kept.offsets[row][inside], strict=True):
                    assert str(words.backend.id_to_token(int(token))).removeprefix("##") == one.context[a:b]
            if name != "train":  # which keeps only windows with the answer
                (pieces,) = words.encode_with_offsets([one.context])
                assert seen == set(pieces.offsets[:, 0].tolist())
                assert begins == pieces.offsets[::20][: len(rows), 0].tolist()
    assert (data.target["train"].y >= 0).all()


def test_fewer_rows_are_fewer_questions(path):
    whole, few = source(path).load(), source(path, train_rows=10).load()
    assert len({int(i) for i in few.questions["train"].question}) == 10
    rows = {x.tobytes() for x in whole.target["train"].x}
    assert {x.tobytes() for x in few.target["train"].x} < rows
    np.testing.assert_array_equal(few.target["test"].x, whole.target["test"].x)


def test_parts_share_no_context(path):
    data = source(path).load()
    contexts = [{one.context for one in kept.questions} for kept in data.questions.values()]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 30


def test_where_an_answer_is():
    assert find_answer("a cat, a cat", "cat", 9) == 9
    assert find_answer("a cat, a cat", "cat", 8) == 9
    assert find_answer("a cat, a cat", "cat", 3) == 2
    assert find_answer("a cat", "dog", 2) == -1
    assert find_answer("a cat", "", 2) == -1
    offsets = np.array([[0, 2], [3, 5], [5, 8], [9, 10]])
    assert token_span(offsets, 3, 8) == (1, 2)
    assert token_span(offsets, 4, 6) == (1, 2)  # parts of tokens
    assert token_span(offsets, 0, 10) == (0, 3)
    first, last = token_span(offsets, 2, 3)
    assert last < first


def test_questions_without_an_answer_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "a.json"
    content = published([("the cat saw", [("who", [("cat", 4)]), ("why", []), ("what", [("dog", 0)])])])
    file.write_text(json.dumps(content))
    found = read_questions(str(file), "data.path=a.json")
    assert [(one.name, one.answers, one.start) for one in found] == [("0-0", ("cat",), 4), ("0-2", ("dog",), -1)]
    assert "data.path=a.json: 1 of 3 questions have no answer and are left out" in caplog.messages
    assert "data.path=a.json: 1 of 3 questions have an answer that is not in their context" in caplog.messages


def test_files_that_cannot_be_used(tmp_path, path):
    def refused(content, message):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(UserError, match=message) as found:
            source(str(tmp_path / "b.json")).load()
        assert "\n" not in str(found.value)

    refused("{", r"data.path=.*b.json is no JSON: ")
    refused("[]", r"b.json is not in SQuAD's format: ")
    refused('{"data": [{}]}', r"b.json is not in SQuAD's format: there is no 'paragraphs'")
    refused('{"data": []}', r"b.json has no questions with an answer")
    with pytest.raises(UserError, match=r"data.path=nowhere: there is no such file"):
        source("nowhere").load()
    with pytest.raises(UserError, match=r"data.examples is 2; allowed with data=squad: 1"):
        source(path, examples=2).load()
    with pytest.raises(UserError, match=r"data.stride is 46; allowed: at most 45, what data.max_seq_len leaves"):
        source(path, stride=46).load()


def test_published_questions():
    """XQuAD as published (Artetxe et al. 2020): 240 paragraphs, 1,190 questions; each answer is in a window."""
    file = str(real("xquad_en") / "xquad.en.json")
    for length, stride in ((384, 128), (192, 64)):
        data = Squad(path=file, tokenizer=minilm(), max_seq_len=length, stride=stride).load()
        assert sum(len(kept.questions) for kept in data.questions.values()) == 1190
        whole = 0
        for name, (_, y) in data.target.items():
            kept = data.questions[name]
            answered = {int(i) for i in kept.question[y[:, 0] >= 0]}
            assert answered == set(range(len(kept.questions)))
            for row in np.flatnonzero(y[:, 0] >= 0):
                one = kept.questions[kept.question[row]]
                text = one.context[kept.offsets[row, y[row, 0], 0] : kept.offsets[row, y[row, 1], 1]]
                assert one.answers[0] in text
                assert text in one.context
            answers = [one.answers for one in kept.questions]
            whole += round(squad_scores(perfect(data, name), answers)["exact_match"] * len(answers))
        assert whole == 1189  # one answer, "7,000,000 square kilometres (2,70", ends inside of a word piece
