"""``python -m src.predict``: predictions reproduce the recorded metrics, and errors of the user are explained."""

import csv
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src import predict
from src.checkpoints.tensor_files import read_tensors
from src.config.identity import register_resolvers
from src.config.schema import CONF, register_schema
from src.errors import UserError
from src.finished.conversion import export_job
from src.finished.jobs import read_job
from src.finished.predictor import load_predictor
from src.launch.job import run_job
from src.metrics.text import entity_scores, squad_scores
from tests.commands import ROOT, summary

SIZES = {"layers": 1, "width": 16, "heads": 2, "positions": 64, "vocab_size": 200}
SMALL = ["model=bert", "data.tokenizer_cache=null", *(f"model.{name}={size}" for name, size in SIZES.items())]
QUICK = ["tracker=disk", "progress=false", "cache=off", "optimizer=adam", "log_every=40"]
WORDS = {
    "no": ["bad", "awful", "dull", "poor"],
    "yes": ["good", "great", "fine", "fun"],
    "?": ["so", "is", "it", "was"],
}


def fine_tune(folder, *overrides):
    """Run a job as the command line would, in this process."""
    register_resolvers()
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*QUICK, *overrides])
    run_job(cfg, folder, list(overrides), None)
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return folder


def some(count, seed):
    """Texts of 3 to 20 words, a few of them with an opinion, and the label that has more."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        words = [str(rng.choice(WORDS[str(rng.choice(["no", "yes", "?"]))])) for _ in range(rng.integers(3, 20))]
        lead = sum((word in WORDS["yes"]) - (word in WORDS["no"]) for word in words)
        if lead:
            found.append((" ".join(words), "yes" if lead > 0 else "no", lead))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files with the columns opinion, text, lead."""
    folder = tmp_path_factory.mktemp("texts")
    for seed, (name, count) in enumerate((("train", 60), ("val", 10), ("test", 30))):
        lines = [f"{label}\t{text}\t{lead}" for text, label, lead in some(count, seed)]
        (folder / f"{name}.tsv").write_text("\n".join(["opinion\ttext\tlead", *lines]) + "\n")
    return folder


def columns(files):
    return [
        f"data.{key}={files / f'{name}.tsv'}"
        for key, name in (("path", "train"), ("val_path", "val"), ("test_path", "test"))
    ]


@pytest.fixture(scope="module")
def job(files):
    return fine_tune(
        files / "job",
        "data=text",
        *SMALL,
        *columns(files),
        "data.label=opinion",
        "strategy=scratch",
        "finetune_steps=40",
        "lr_fine=0.02",
    )


@pytest.fixture
def predict_cli(monkeypatch, capsys):
    """Call the command line in this process, where another one is not the claim."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        predict.main()
        return capsys.readouterr().out

    return call


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_reproduce_the_recorded_metrics(job, files, tmp_path, predict_cli):
    """The labels are those of the highest probability, and hit as often as the job has recorded."""
    printed = predict_cli(f"checkpoint={job}", f"input={files / 'test.tsv'}", f"output={tmp_path / 'out.csv'}")
    rows, known = table(tmp_path / "out.csv"), some(30, 2)
    assert list(rows[0]) == ["text", "label", "probability_no", "probability_yes"]
    assert [row["text"] for row in rows] == [text for text, _, _ in known]  # in the input's order
    shares = np.array([[float(row["probability_no"]), float(row["probability_yes"])] for row in rows])
    assert [row["label"] for row in rows] == [["no", "yes"][i] for i in shares.argmax(1)]
    np.testing.assert_allclose(shares.sum(1), 1.0, atol=1e-6)
    metrics = summary(job)["metrics"]
    right = np.array([row["label"] == label for row, (_, label, _) in zip(rows, known, strict=True)])
    assert right.mean() == pytest.approx(metrics["test_accuracy"], abs=1e-6)
    assert right.mean() > 0.6  # it has learned something
    truth = [["no", "yes"].index(label) for _, label, _ in known]
    losses = -np.log(shares[np.arange(30), truth])
    assert losses.mean() == pytest.approx(metrics["test_loss"], rel=1e-4)
    count = sum(row["label"] == "no" for row in rows)
    assert printed == f"30 texts, no: {count}, yes: {30 - count}; written to {tmp_path / 'out.csv'}\n"


def test_the_record_keeps_what_new_texts_need(job):
    assert summary(job)["data"]["labels"] == ["no", "yes"]
    assert json.loads((job / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"


def test_formats_give_the_same_predictions(job, tmp_path, predict_cli):
    """CSV, TSV, JSONL and lines, of texts with commas, quotes and letters of other scripts."""
    texts = ['it is "so" good, fine', "так good", "bad, awful"]
    page = io.StringIO()
    csv.writer(page).writerows([["n", "text"], *([str(i), text] for i, text in enumerate(texts))])
    contents = {
        "a.csv": page.getvalue(),
        "a.tsv": "text\tn\n" + "".join(f"{text}\t1\n" for text in texts),
        "a.jsonl": "".join(json.dumps({"text": text, "more": [1]}) + "\n" for text in texts),
        "a.lines": "\n".join(texts),
    }
    pages = set()
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        out = tmp_path / f"{name}.out.jsonl"
        form = ["format=lines"] if name == "a.lines" else []
        predict_cli(f"checkpoint={job}", f"input={tmp_path / name}", f"output={out}", *form)
        pages.add(out.read_text(encoding="utf-8"))
    (one,) = pages
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert list(rows[0]) == ["text", "label", "probabilities"]
    assert list(rows[0]["probabilities"]) == ["no", "yes"]
    out = tmp_path / "out.csv"
    predict_cli(f"checkpoint={job}", f"input={tmp_path / 'a.lines'}", f"output={out}", "format=lines")
    assert [row["text"] for row in table(out)] == texts
    assert [float(row["probability_no"]) for row in table(out)] == [row["probabilities"]["no"] for row in rows]


def test_truncated_texts_are_counted(job, tmp_path, predict_cli):
    """The job's rows are at most 64 tokens long, its model's positions; a text alone is what it is among others."""
    texts = ["good " * 100, "bad it is", "fine " * 62, "dull " * 63]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    printed = predict_cli(
        f"checkpoint={job}", f"input={tmp_path / 'a.txt'}", "format=lines", f"output={tmp_path / 'a.jsonl'}"
    )
    assert "2 of them truncated to 64 tokens" in printed
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    predictor = load_predictor(job)
    for text, own in zip(texts, rows, strict=True):
        (alone,) = predictor.predict([text], None).rows
        assert alone["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5)


def test_the_command_line_reads_stdin(job, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "src.predict", f"checkpoint={job}", "input=-", f"output={out}"],
        cwd=ROOT,
        input=b"good great fun\nbad awful poor\n",
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == ["yes", "no"]
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.slow
def test_adapter_parameters_are_applied_when_predicting(job, files, tmp_path, predict_cli):
    """LoRA on a checkpoint: without its leaves the numbers would be others."""
    export_job(job, tmp_path / "base", job)
    lora = fine_tune(
        tmp_path / "job",
        "data=text",
        "model=bert",
        f"model.checkpoint={tmp_path / 'base'}",
        *columns(files),
        "data.label=opinion",
        "strategy=lora",
        "strategy.rank=2",
        "strategy.targets=['block_0/attention/(query|value)']",
        "finetune_steps=15",
        "lr_fine=0.05",
    )
    assert any(path.endswith("lora_b") for path in read_tensors(lora / "model.safetensors")[0])
    predict_cli(f"checkpoint={lora}", f"input={files / 'test.tsv'}", f"output={tmp_path / 'out.csv'}")
    rows, known = table(tmp_path / "out.csv"), some(30, 2)
    losses = [-math.log(float(row[f"probability_{label}"])) for row, (_, label, _) in zip(rows, known, strict=True)]
    assert np.mean(losses) == pytest.approx(summary(lora)["metrics"]["test_loss"], rel=1e-4)
    predictor = load_predictor(lora)
    for path in [path for path in predictor.params if path.endswith("lora_b")]:
        predictor.params[path] = np.zeros_like(predictor.params[path])
    without = predictor.predict([text for text, _, _ in known], None).rows
    other = [-math.log(one["probabilities"][label]) for one, (_, label, _) in zip(without, known, strict=True)]
    assert abs(np.mean(other) - np.mean(losses)) > 1e-3


@pytest.mark.slow
def test_values_are_in_the_units_of_the_files(files, tmp_path, predict_cli):
    """The recorded loss is in standard deviations of the targets to train on; what is written is in their units."""
    job = fine_tune(
        tmp_path / "job",
        "data=text",
        *SMALL,
        *columns(files),
        "data.label=lead",
        "data.kind=regression",
        "strategy=scratch",
        "finetune_steps=20",
        "lr_fine=0.02",
    )
    predict_cli(f"checkpoint={job}", f"input={files / 'test.tsv'}", f"output={tmp_path / 'out.csv'}")
    rows = np.array([float(row["value"]) for row in table(tmp_path / "out.csv")])
    lead = np.array([lead for _, _, lead in some(30, 2)])
    deviation = np.std([lead for _, _, lead in some(60, 0)])
    assert np.mean((rows - lead) ** 2) / deviation**2 == pytest.approx(summary(job)["metrics"]["test_loss"], rel=1e-4)


def test_tags_of_words(tmp_path, predict_cli):
    """Packed in training, one a row here; entity scores of what is written are the recorded ones."""
    rng, sentences = np.random.default_rng(0), []
    for _ in range(40):
        words = [str(rng.choice(["Ann", "Bob", "Rome", "met", "saw", "in"])) for _ in range(rng.integers(2, 9))]
        sentences.append([(w, {"Ann": "B-PER", "Bob": "B-PER", "Rome": "B-LOC"}.get(w, "O")) for w in words])
    path = tmp_path / "a.conll"
    path.write_text("\n\n".join("\n".join(" ".join(pair) for pair in one) for one in sentences) + "\n")
    job = fine_tune(
        tmp_path / "job",
        "data=conll",
        *SMALL,
        "model.head=tokens",
        f"data.path={path}",
        f"data.test_path={path}",
        "data.max_seq_len=48",
        "data.examples=4",
        "strategy=scratch",
        "finetune_steps=15",
        "lr_fine=0.03",
    )
    predict_cli(f"checkpoint={job}", f"input={path}", f"output={tmp_path / 'out.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["words"] for one in rows] == [[word for word, _ in sentence] for sentence in sentences]
    scores = entity_scores([[tag for _, tag in one] for one in sentences], [one["tags"] for one in rows])["micro"]
    assert scores.f1 == pytest.approx(summary(job)["metrics"]["test_entity_f1"])
    assert scores.f1 > 0.5
    (tmp_path / "a.txt").write_text("Ann saw Bob\n" + "Rome " * 60 + "\n")
    printed = predict_cli(
        f"checkpoint={job}", f"input={tmp_path / 'a.txt'}", "format=lines", f"output={tmp_path / 'out.csv'}"
    )
    rows = table(tmp_path / "out.csv")
    assert [(row["sentence"], row["word"]) for row in rows] == [
        *(("1", w) for w in ("Ann", "saw", "Bob")),
        *[("2", "Rome")] * 60,
    ]
    assert [row["tag"] == "" for row in rows[3:]] == [False] * 46 + [True] * 14  # 48 tokens, two of them special
    assert "1 of them truncated to 48 tokens" in printed


@pytest.mark.slow
def test_answers_to_questions(tmp_path, predict_cli):
    """Exact match and F1 of what is written are the recorded ones, with the questions' ids."""
    rng, paragraphs = np.random.default_rng(0), []
    for number in range(14):
        words = [str(rng.choice([w for own in WORDS.values() for w in own])) for _ in range(rng.integers(20, 50))]
        place = int(rng.integers(0, len(words)))
        answer = {"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}
        qas = [{"id": f"q{number}", "question": f"{words[place]} ?", "answers": [answer]}]
        paragraphs.append({"context": " ".join(words), "qas": qas})
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"title": "a", "paragraphs": paragraphs}]}))
    job = fine_tune(
        tmp_path / "job",
        "data=squad",
        *SMALL,
        "model.head=spans",
        f"data.path={path}",
        "data.max_seq_len=32",
        f"data.test_path={path}",
        "data.question_length=8",
        "data.stride=16",
        "strategy=scratch",
        "finetune_steps=20",
        "lr_fine=0.02",
    )
    predict_cli(f"checkpoint={job}", f"input={path}", f"output={tmp_path / 'out.csv'}")
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "question", "answer"]
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(14)]
    truth = [[own["qas"][0]["answers"][0]["text"]] for own in paragraphs]
    scores = squad_scores([row["answer"] for row in rows], truth)
    metrics = summary(job)["metrics"]
    assert scores == pytest.approx({name: metrics[f"test_{name}"] for name in ("exact_match", "f1")})
    lines = "\n".join(f"{own['qas'][0]['question']}\t{own['context']}" for own in paragraphs)
    (tmp_path / "a.txt").write_text(lines + "\n")
    predict_cli(f"checkpoint={job}", f"input={tmp_path / 'a.txt'}", "format=lines", f"output={tmp_path / 'lines.csv'}")
    assert [row["answer"] for row in table(tmp_path / "lines.csv")] == [row["answer"] for row in rows]


def test_user_errors_are_one_sentence(job, files, tmp_path, predict_cli):
    new, texts = f"output={tmp_path / 'new.csv'}", tmp_path / "a.txt"
    texts.write_text("good\n\nbad\n")
    (tmp_path / "other.csv").write_text("txet,n\na,1\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "there.csv").write_text("kept")
    known = [f"checkpoint={job}", new]
    for arguments, message in (
        ([new, "input=-"], "checkpoint is missing: give it as checkpoint=..."),
        (
            ["checkpont=a"],
            r"there is no argument 'checkpont' \(did you mean 'checkpoint'\?\); allowed: checkpoint=..., ",
        ),
        (["a"], r"there is no argument 'a'; allowed: "),
        ([*known, "input=-", "format=xml"], "format: Invalid value 'xml', expected one of .*jsonl"),
        ([f"checkpoint={tmp_path}", new, "input=-"], "is no job's folder"),
        ([f"checkpoint={job}", "input=-", "output=a.xlsx"], r"output=a.xlsx ends in '.xlsx'; allowed: .csv, .jsonl"),
        (
            [f"checkpoint={job}", "input=-", f"output={tmp_path / 'there.csv'}"],
            "exists already; allowed: a new file",
        ),
        (
            [*known, f"input={texts}"],
            r"ends in '.txt'; allowed: .csv, .tsv, .*, or with it format=csv",
        ),
        ([*known, "input=nowhere.csv"], "input=nowhere.csv: there is no such file"),
        ([*known, f"input={tmp_path / 'other.csv'}"], r"no column 'text' \(did you mean 'txet'\?\); it has txet, n"),
        ([*known, f"input={texts}", "format=lines"], "has 1 empty texts, the first in line 2; allowed: a word in each"),
        ([*known, f"input={tmp_path / 'empty.txt'}", "format=lines"], "has no texts; allowed: at least one"),
        ([*known, f"input={tmp_path / 'latin.txt'}", "format=lines"], r"byte 3 of .*latin.txt \(0xe9\) is not UTF-8"),
        ([*known, "input=a.json"], "has format=squad, and the job has data=text; allowed: "),
        (
            [*known, f"input={files / 'test.tsv'}", "second_text=lead"],
            "the job was trained on single texts",
        ),
    ):
        with pytest.raises(UserError, match=message) as found:
            predict_cli(*arguments)
        assert "\n" not in str(found.value)
    assert (tmp_path / "there.csv").read_text() == "kept"
    assert not (tmp_path / "new.csv").exists()
    predict_cli(
        f"checkpoint={job}", f"input={files / 'test.tsv'}", f"output={tmp_path / 'there.csv'}", "overwrite=true"
    )
    assert len(table(tmp_path / "there.csv")) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: _edit(job, status="diverged"), "is diverged; allowed: a completed job"),
        (lambda job: (job / "tokenizer.json").unlink(), "has no tokenizer.json"),
    ],
)
def test_jobs_without_predictions_are_refused(job, tmp_path, change, message):
    copied = tmp_path / "job"
    (copied / ".hydra").mkdir(parents=True)
    for name in ("summary.json", "tokenizer.json", ".hydra/config.yaml"):
        (copied / name).write_bytes((job / name).read_bytes())
    assert read_job(copied).record.status == "completed"
    change(copied)
    with pytest.raises(UserError, match=message):
        load_predictor(copied)


def _edit(folder, **changes):
    (folder / "summary.json").write_text(json.dumps(summary(folder) | changes))


def test_tables_are_refused(tmp_path):
    job = fine_tune(tmp_path / "job", "pretrain_steps=1", "finetune_steps=1")
    with pytest.raises(UserError, match=r"has data=diabetes; allowed: a job of a model of text on data=conll, "):
        load_predictor(job)
    assert "labels" not in summary(job)["data"]
