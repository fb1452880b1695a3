"""Networks written as checkpoints of Hugging Face: names, shapes and numbers, without torch."""

import json

import jax
import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from src.checkpoints.huggingface import build_model, read_checkpoint
from src.checkpoints.huggingface_export import export, padding_id
from src.errors import UserError
from src.finished.conversion import export_job
from src.models import bert
from src.models.bert import Bert
from tests.checkpoints.exported import CASES, SIZES, batch, logits, make_job
from tests.checkpoints.test_huggingface import FIXTURES, OUTPUTS, network
from tests.commands import script

EVERY = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize(
    "name", ["bert_classify", "bert_tokens", "bert_spans", "bert_masked", "gpt2_causal", "gpt2_classify"]
)
def test_reading_and_exporting_round_trips(tmp_path, name):
    """Hugging Face's own files, read and written: the same names, shapes and values, and what its config says."""
    head = name.split("_")[1]
    model = network(FIXTURES / name, head)
    export(model, read_checkpoint(model, OUTPUTS[head]), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (FIXTURES / name, tmp_path / "out"))
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        np.testing.assert_array_equal(after[tensor], values.astype(np.float32))
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (FIXTURES / name, tmp_path / "out"))
    assert {key: other[key] for key in one} == one


@EVERY
@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_an_exported_job_read_again_gives_the_same_logits(tmp_path, name, lora):
    node, outputs = CASES[name]
    model, params = make_job(tmp_path / "job", node, outputs, lora)
    export_job(tmp_path / "job", tmp_path / "out", pad_token_id=0)
    sizes = dict.fromkeys(SIZES) | ({"types": None} if node["name"] == "bert" else {})
    again = build_model(OmegaConf.create({**node, **sizes, "checkpoint": str(tmp_path / "out")}))
    found = again.apply(read_checkpoint(again, outputs), batch(), outputs)
    np.testing.assert_allclose(found, logits(model, params, outputs), atol=1e-5)
    assert np.ptp(np.asarray(found)[..., 0]) > 0.1


def test_tokenizer_is_copied_and_gives_the_padding_id(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7, "content": "[PAD]"}]}))
    (tokenizer / "secret.txt").write_text("not copied")
    make_job(tmp_path / "job", *CASES["gpt2 classify"], tokenizer=str(tokenizer))
    assert export_job(tmp_path / "job", tmp_path / "out") == "GPT2ForSequenceClassification"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 7
    (tokenizer / "tokenizer.json").write_text(json.dumps({"padding": {"pad_id": 3}, "added_tokens": []}))
    assert padding_id(tokenizer) == 3
    assert padding_id(None) is None


def test_networks_without_a_hugging_face_class_are_refused(tmp_path):
    node, outputs = CASES["bert classify"]
    model, params = make_job(tmp_path / "job", node, outputs, lora=False)
    with pytest.raises(UserError, match=r"holds block_0/down/ia3 beside its own parameters.*and strategy=lora"):
        export(model, params | {"block_0/down/ia3": np.ones(16)}, tmp_path / "out")
    less = {path: leaf for path, leaf in params.items() if not path.startswith("pooler")}
    with pytest.raises(UserError, match="lacks pooler/bias, pooler/kernel of its own"):
        export(model, less, tmp_path / "out")
    mean = Bert(**SIZES, pooling=bert.BertPooling.mean)
    with pytest.raises(UserError, match=r"model\.pooling is mean, .*; allowed: pooler"):
        export(mean, mean.init(jax.random.PRNGKey(0), (3, 1), 3), tmp_path / "out")
    gpt2, params = make_job(tmp_path / "gpt2", *CASES["gpt2 classify"], lora=False)
    with pytest.raises(UserError, match=r"the padding's id is unknown; give it as --pad-token-id"):
        export(gpt2, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already; allowed: a new or an empty folder"):
        export(gpt2, params, tmp_path / "out", pad_token_id=0)
    with pytest.raises(UserError, match="is no job's folder"):
        export_job(tmp_path / "nowhere", tmp_path / "new")
    make_job(tmp_path / "other", *CASES["bert tokens"])
    path = tmp_path / "other" / ".hydra" / "config.yaml"
    path.write_text("model: {name: mlp}\nstrategy: {name: full}\n")
    with pytest.raises(UserError, match="has model=mlp; allowed: bert, gpt2, resnet, vit"):
        export_job(tmp_path / "other", tmp_path / "new")


def test_the_command_line(tmp_path):
    make_job(tmp_path / "job", *CASES["bert tokens"])
    done, again = (script("export_hf", tmp_path / "job", "--out", tmp_path / "out") for _ in range(2))
    assert done.returncode == 0, done.stderr
    assert "transformers.BertForTokenClassification.from_pretrained" in done.stdout
    assert (tmp_path / "out" / "config.json").is_file()
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert len(again.stderr.splitlines()) == 1
