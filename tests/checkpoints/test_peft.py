"""Adapters in PEFT's format: the logits of PEFT itself, and messages about folders that do not fit. Without torch."""

import functools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from src.checkpoints.adapters import LORA_OPTIONS, add_adapter, load_adapter, save_adapter
from src.checkpoints.huggingface import load_config, read_checkpoint
from src.checkpoints.peft import merge_peft, read_peft, write_peft
from src.errors import UserError
from src.finished.conversion import checkpoint_model, convert_from_peft, convert_to_peft, job_to_peft
from src.finished.jobs import read_job
from src.finished.weighted_adapters import add_weighted_adapter
from src.models.bert import Bert, BertPooling
from src.strategies.dora import Dora
from tests.checkpoints.damage import change, configure
from tests.checkpoints.exported import CASES
from tests.checkpoints.test_huggingface import FIXTURES, REAL, X, network
from tests.checkpoints.tuned import DORA, JOBS, LORA, MIXED, logits, make_named, make_tuned
from tests.commands import script

PEFT = FIXTURES.parent / "peft"
THEIRS = load_file(PEFT / "expected.safetensors")
BASES = {"bert_lora": "bert_classify", "bert_patterns": "bert_classify", "bert_dora": "bert_classify"}
BASES |= {"gpt2_lora": "gpt2_causal"}
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def read(name):
    """A fixture's network, the number of its outputs, its base and its tuning."""
    model = checkpoint_model(str(FIXTURES / BASES[name]), None)
    base = read_checkpoint(model)
    return model, 3 if name.startswith("bert") else 100, base, read_peft(PEFT / name, model, base)


def real(values):
    """Without padding, where outputs are of tokens and mean nothing there."""
    return values[REAL] if values.ndim == 3 else values


@pytest.fixture
def folder(tmp_path):
    """A copy of PEFT's folder, to be damaged."""
    return shutil.copytree(PEFT / "bert_lora", tmp_path / "peft")


@pytest.fixture(scope="module")
def classify():
    return network(FIXTURES / "bert_classify", "classify")


damage = functools.partial(change, file="adapter_model.safetensors")


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_merged_logits_are_those_of_peft(name):
    model, outputs, base, tuning = read(name)
    found = np.asarray(model.apply(merge_peft(tuning, base), X, outputs))
    np.testing.assert_allclose(real(found), real(THEIRS[name]), atol=1e-5, rtol=0)
    assert np.abs(real(THEIRS[name] - THEIRS[f"{name}/base"])).max() > 1  # the adapter is what makes them


@pytest.mark.parametrize("name", ["bert_lora", "bert_patterns", "gpt2_lora"])
def test_side_by_side_logits_are_those_of_peft(name):
    model, outputs, base, tuning = read(name)
    found = np.asarray(model.apply(add_adapter(tuning.adapter, base), X, outputs, LORA_OPTIONS))
    np.testing.assert_allclose(real(found), real(THEIRS[name]), atol=1e-5, rtol=0)


def test_dora_beside_the_kernels_gives_the_logits_of_peft():
    """The strategy that trains it, on what was read: s is alpha / r, 8 / 4, as the configuration says."""
    model, outputs, base, tuning = read("bert_dora")
    found = logits(model, Dora(rank=4, alpha=8.0), {**base, **tuning.params()}, outputs, X)
    np.testing.assert_allclose(found, THEIRS["bert_dora"], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"DoRA adapter, .* not a sum of low-rank changes; allowed: LoRA, or merging"):
        _ = tuning.adapter


def test_scales_by_rank_and_alpha_patterns():
    """Computed by hand from the configuration: rsLoRA, alpha 6 and rank 4 unless a pattern says otherwise."""
    scales = {
        "block_0/attention/query": 6 / math.sqrt(2),
        "block_0/attention/value": 9 / math.sqrt(4),
        "block_0/attention/output": 3 / math.sqrt(4),
        "block_0/down": 6 / math.sqrt(4),
        "block_1/attention/query": 6 / math.sqrt(2),
        "block_1/attention/value": 6 / math.sqrt(4),
        "block_1/attention/output": 3 / math.sqrt(4),
        "block_1/down": 6 / math.sqrt(3),
    }
    lora = read("bert_patterns")[-1].adapter
    assert lora.scaling == pytest.approx(scales, rel=1e-12)
    assert lora.ranks["block_0/attention/query"] == 2
    assert lora.ranks["block_1/down"] == 3


def test_names_without_the_trunk_s_prefix_are_read_too(folder, classify):
    expected = read_peft(folder, classify).params()

    def shorten(tensors):
        for name in list(tensors):
            tensors[name.replace("model.bert.", "model.")] = tensors.pop(name)

    damage(folder, shorten)
    found = read_peft(folder, classify).params()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in found)
    damage(folder, lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((4, 32), np.float32)}))
    with pytest.raises(UserError, match="one tensor twice"):
        read_peft(folder, classify)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_peft_files_round_trip(tmp_path, name):
    model, _, base, tuning = read(name)
    write_peft(tmp_path / "out", tuning, model, base, "anything")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (PEFT / name, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    again = read_peft(tmp_path / "out", model, base)
    assert again.lora.scaling == pytest.approx(tuning.lora.scaling, rel=1e-12)
    assert again.lora.base == tuning.lora.base
    one, other = (json.loads((path / "adapter_config.json").read_text()) for path in (PEFT / name, tmp_path / "out"))
    for key in ("peft_type", "task_type", "fan_in_fan_out", "use_dora", "use_rslora", "bias", "inference_mode"):
        assert other[key] == one[key]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_written_and_read_again_gives_the_same_logits(tmp_path, name):
    model, strategy, params, outputs = make_named(tmp_path / "job", name)
    base_out = tmp_path / "base"
    assert job_to_peft(tmp_path / "job", tmp_path / "out", base_out, pad_token_id=0) == str(base_out)
    again = checkpoint_model(str(base_out), model.head_name)
    base = read_checkpoint(again, outputs)
    found = again.apply(merge_peft(read_peft(tmp_path / "out", again, base), base), X % 50, outputs)
    expected = logits(model, strategy, params, outputs, X % 50)
    np.testing.assert_allclose(real(np.asarray(found)), real(expected), atol=2e-5)
    bare = {path: leaf for path, leaf in params.items() if "lora" not in path and "dora" not in path}
    assert np.abs(real(np.asarray(model.apply(bare, X % 50, outputs)) - expected)).max() > 0.05


def test_the_configuration_that_is_written(tmp_path):
    make_tuned(tmp_path / "job", *CASES["bert classify"], MIXED)
    job_to_peft(tmp_path / "job", tmp_path / "out", tmp_path / "base")
    found = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert found["r"] == 3  # of the 12 kernels in blocks, 6 in block 0
    layer = "bert.encoder.layer.1"
    attention = [f"{layer}.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
    mlp = [f"{layer}.intermediate.dense", f"{layer}.output.dense"]
    assert found["rank_pattern"] == dict.fromkeys(attention, 2) | dict.fromkeys(mlp, 1)
    assert (found["lora_alpha"], found["alpha_pattern"]) == (6, {})  # the scales have it under a root
    assert len(found["target_modules"]) == 12
    assert found["modules_to_save"] == ["classifier"]
    assert (found["use_rslora"], found["lora_dropout"]) == (True, 0.1)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert not any("classifier.lora" in name for name in tensors)
    assert tensors[f"{QUERY}.lora_A.weight"].shape == (3, 16)


def test_gpt2_s_fused_kernel_and_its_last_normalisation(tmp_path):
    make_tuned(tmp_path / "job", *CASES["gpt2 causal"], LORA | {"targets": ["block_.*/attention/qkv"]})
    job_to_peft(tmp_path / "job", tmp_path / "out", tmp_path / "base")
    found = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert found["fan_in_fan_out"] is True
    assert found["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert found["modules_to_save"] == ["transformer.ln_f"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].shape == (48, 2)
    assert "base_model.model.transformer.ln_f.bias" in tensors


def on_checkpoint(folder, strategy=LORA, checkpoint="bert_classify"):
    """A job that began with a checkpoint."""
    node = {"name": "bert", "checkpoint": str(FIXTURES / checkpoint)}
    base = read_checkpoint(load_config(Bert(checkpoint=node["checkpoint"])))
    return make_tuned(folder, node, 3, strategy, base)


def test_base_of_a_job_that_started_from_a_checkpoint(tmp_path, classify):
    """And its adapter is the one of the same base for our own tools."""
    model, strategy, params = on_checkpoint(tmp_path / "job")
    assert job_to_peft(tmp_path / "job", tmp_path / "out") == str(FIXTURES / "bert_classify")
    tuning = read_peft(tmp_path / "out", classify)
    base = read_checkpoint(classify)
    np.testing.assert_allclose(
        classify.apply(merge_peft(tuning, base), X, 3), logits(model, strategy, params, 3, X), atol=1e-5
    )
    assert all(np.array_equal(leaf, params[path]) for path, leaf in tuning.params().items())
    convert_from_peft(tmp_path / "out", str(FIXTURES / "bert_classify"), tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").base == read_job(tmp_path / "job").adapter.base


def test_a_pooler_that_the_checkpoint_lacks_is_saved_in_full(tmp_path):
    model, strategy, params = on_checkpoint(tmp_path / "job", LORA | {"targets": ["block_.*/.*"]}, "bert_masked")
    job_to_peft(tmp_path / "job", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    again = network(FIXTURES / "bert_masked", "classify")
    base = read_checkpoint(again)
    found = again.apply(merge_peft(read_peft(tmp_path / "out", again), base), X, 3)
    np.testing.assert_allclose(found, logits(model, strategy, params, 3, X), atol=1e-5)


def test_base_that_peft_cannot_load_is_refused(tmp_path):
    params = on_checkpoint(tmp_path / "job")[-1]
    save_file({**params, "block_0/up/bias": params["block_0/up/bias"] + 1}, tmp_path / "job" / "model.safetensors")
    with pytest.raises(UserError, match=r"not its checkpoint .*changed block_0/up/bias; allowed with --base-out"):
        job_to_peft(tmp_path / "job", tmp_path / "out")
    make_tuned(tmp_path / "new", *CASES["bert classify"], LORA)
    with pytest.raises(UserError, match=r"started from no checkpoint.*allowed with --base-out"):
        job_to_peft(tmp_path / "new", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_tuned(tmp_path / "full", *CASES["bert classify"], {"name": "ia3", "targets": ["block_.*/(value|up)"]})
    with pytest.raises(UserError, match="strategy=ia3; allowed: lora, dora"):
        job_to_peft(tmp_path / "full", tmp_path / "out")


def test_unwritable_adapters_are_refused(tmp_path, classify):
    base = read_checkpoint(classify)
    tuning = read_peft(PEFT / "bert_lora", classify, base)
    with pytest.raises(UserError, match="trained on the base"):
        write_peft(tmp_path / "out", tuning, classify, {**base, "pooler/bias": base["pooler/bias"] + 1}, "base")
    with pytest.raises(UserError, match=r"has no head: classifier/bias, classifier/kernel missing"):
        write_peft(tmp_path / "out", replace(tuning.lora, head={}), classify, base, "base")
    pooled = replace(classify, pooling=BertPooling.mean)
    with pytest.raises(UserError, match=r"model\.pooling is mean"):
        write_peft(tmp_path / "out", tuning, pooled, base, "base")
    gpt2 = network(FIXTURES / "gpt2_classify", "classify")
    head = {"classifier/kernel": tuning.lora.head["classifier/kernel"]}
    with pytest.raises(UserError, match=r"does not fit .*no block_0/attention/query/kernel"):
        write_peft(tmp_path / "out", replace(tuning.lora, head=head), gpt2, base, "base")
    with pytest.raises(UserError, match=r"does not fit .*: classifier/bias of another shape"):
        write_peft(tmp_path / "out", tuning, gpt2, base, "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="holds something already"):
        write_peft(tmp_path / "out", tuning, classify, base, "base")


# --- folders that do not fit -----------------------------------------------------------------------------------------


def refused(folder, model, *words):
    """One sentence that names the folder."""
    with pytest.raises(UserError) as caught:
        read_peft(folder, model)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type is 'IA3'; allowed: LORA"]),
        ({"peft_type": ["LORA"]}, ["peft_type is ['LORA']"]),
        ({"task_type": "CAUSAL_LM"}, ["task_type is 'CAUSAL_LM'; allowed: FEATURE_EXTRACTION, SEQ_CLS"]),
        ({"bias": "lora_only"}, ["bias is 'lora_only'; allowed: none"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa'"]),
        ({"lora_bias": True}, ["lora_bias", "not computed here"]),
        ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
        ({"a_setting_of_tomorrow": 1}, ["a_setting_of_tomorrow"]),
        ({"loftq_config": {"loftq_bits": 4}, "kasa_config": {"x": 1}}, ["asks for kasa_config,"]),
        ({"use_dora": "yes"}, ["use_dora is 'yes'"]),
        ({"r": 0}, ["the rank of 'r' is 0"]),
        ({"r": True}, ["the rank of 'r' is True"]),
        ({"r": 3}, [f"{QUERY[17:]}.lora_A.weight is (4, 32) instead of (3, 32)"]),
        ({"rank_pattern": {"r": 1}, "r": "4"}, ["the rank of 'r' is '4'"]),
        ({"rank_pattern": {"query": 2}}, ["(4, 32) instead of (2, 32)"]),
        ({"rank_pattern": [1]}, ["rank_pattern is [1]"]),
        ({"alpha_pattern": {"que(ry": 2}}, ["'que(ry', which is no regular expression"]),
        ({"lora_alpha": math.nan}, ["the alpha of 'lora_alpha' is nan"]),
        ({"lora_alpha": 10**400}, ["the alpha of 'lora_alpha'"]),
        ({"use_dora": True}, ["query.lora_magnitude_vector is missing"]),
        ({"target_modules": ["query", "value", "key"]}, ["attention.self.key.lora_A.weight is missing"]),
    ],
)  # fmt: skip
def test_settings_that_are_not_computed_are_refused(folder, classify, keys, words):
    configure(folder, "adapter_config.json", **keys)
    refused(folder, classify, *words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("base_model.model.classifier.weight"), ["classifier.weight is missing"]),
        (lambda t: t.pop("base_model.model.classifier.bias"), ["classifier.bias is missing"]),
        (lambda t: t.pop(f"{QUERY}.lora_B.weight"), ["query.lora_B.weight is missing"]),
        (lambda t: [t.pop(name) for name in list(t) if "lora" in name], ["it has no lora_A and lora_B"]),
        (lambda t: t[f"{QUERY}.lora_A.weight"].fill(np.nan), ["not finite in", f"{QUERY}.lora_A.weight"]),
        (lambda t: t["base_model.model.classifier.bias"].fill(np.inf), ["not finite in", "classifier.bias"]),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": np.zeros((4, 31), np.float32)}),
            ["query.lora_A.weight is (4, 31) instead of (4, 32)"],
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_B.weight": np.zeros((32, 4), np.int32)}),
            ["query.lora_B.weight holds I32"],
        ),
        (
            lambda t: t.update({"base_model.model.classifier.bias": np.zeros(4, np.float32)}),
            ["classifier.bias is (4,) instead of (3,)"],
        ),
        (
            lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 32))}),
            ["layers.0.self_attn.q_proj.lora_A.weight is unexpected"],
        ),
        (lambda t: t.update({f"{QUERY}.lora_embedding_A": np.zeros((4, 32))}), ["lora_embedding_A is unexpected"]),
        (lambda t: t.update({f"{QUERY}.lora_magnitude_vector": np.zeros(32)}), ["magnitude_vector is unexpected"]),
        (lambda t: t.update({"base_model.model.cls.predictions.decoder.bias": np.zeros(9)}), ["bias is unexpected"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, classify, edit, words):
    damage(folder, edit)
    refused(folder, classify, *words)


def test_another_network_is_refused(tmp_path, folder):
    refused(folder, network(FIXTURES / "bert_tokens", "tokens"), "task_type is 'SEQ_CLS'")
    refused(folder, network(FIXTURES / "gpt2_classify", "classify"), f"{QUERY}.lora_A.weight is unexpected")


def test_tied_copy_must_be_equal(tmp_path):
    """A causal head's lm_head is the embedding of words; PEFT stores it where a user saves it in full."""
    folder = shutil.copytree(PEFT / "gpt2_lora", tmp_path / "peft")
    model = network(FIXTURES / "gpt2_causal", "causal")
    words = np.array(read_checkpoint(model)["embeddings/word/embedding"])
    damage(folder, lambda t: t.update({"base_model.model.lm_head.weight": words}))
    assert read_peft(folder, model).lora.head == {}
    tuned = words + 1
    damage(folder, lambda t: t.update({"base_model.model.transformer.wte.weight": tuned}))
    refused(folder, model, "lm_head.weight differs from wte.weight, to which the head is tied")
    damage(folder, lambda t: t.update({"base_model.model.lm_head.weight": tuned}))
    tuning = read_peft(folder, model)
    write_peft(tmp_path / "out", tuning, model, read_checkpoint(model), "base")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["lm_head", "transformer.wte"]
    np.testing.assert_array_equal(read_peft(tmp_path / "out", model).lora.head["embeddings/word/embedding"], tuned)
    damage(folder, lambda t: t.pop("base_model.model.lm_head.weight"))
    refused(folder, model, "wte.weight is saved in full, and its copy lm_head.weight is not")
    damage(folder, lambda t: t.pop("base_model.model.transformer.wte.weight"))
    damage(folder, lambda t: t.update({"base_model.model.lm_head.weight": tuned}))
    refused(folder, model, "lm_head.weight differs from wte.weight, to which the head is tied")


def test_files_that_are_missing_damaged_or_pickled_are_refused(folder, classify):
    (folder / "adapter_model.safetensors").write_bytes(b"not a safetensors file")
    refused(folder, classify, "damaged or no safetensors file")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, classify, "holds no adapter_model.safetensors")
    (folder / "adapter_model.bin").touch()
    refused(folder, classify, "a pickle, which can run code")
    (folder / "adapter_config.json").write_text("[]")
    (folder / "adapter_model.safetensors").touch()
    refused(folder, classify, "holds no JSON object")
    (folder / "adapter_config.json").unlink()
    refused(folder, classify, "holds no adapter_config.json")


# --- what our own tools load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert_dora", "gpt2_lora"])
def test_peft_adapter_becomes_a_merged_checkpoint(tmp_path, name):
    convert_from_peft(PEFT / name, str(FIXTURES / BASES[name]), tmp_path / "start")
    model = checkpoint_model(str(tmp_path / "start"), None)
    outputs = 3 if name.startswith("bert") else 100
    found = np.asarray(model.apply(read_checkpoint(model, outputs), X, outputs))
    np.testing.assert_allclose(real(found), real(THEIRS[name]), atol=1e-5, rtol=0)


def test_a_sum_of_adapters_goes_to_peft(tmp_path):
    """Scales of modules differ, and no alpha was ever set."""
    model, _, base, tuning = read("bert_patterns")
    both = add_weighted_adapter([(tuning.adapter, 0.5), (read("bert_lora")[-1].adapter, -1.0)], head=0)
    save_adapter(both, tmp_path / "both.safetensors")
    convert_to_peft(tmp_path / "both.safetensors", str(FIXTURES / "bert_classify"), tmp_path / "out")
    again = read_peft(tmp_path / "out", model, base)
    for module in both.factors:
        np.testing.assert_allclose(again.lora.delta_weight(module), both.delta_weight(module), rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="trained on the base"):
        convert_to_peft(tmp_path / "both.safetensors", str(FIXTURES / "bert_tokens"), tmp_path / "new", "classify")


def test_checkpoint_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="a model of type 'llama'; allowed: bert, gpt2"):
        checkpoint_model(str(tmp_path), None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"--head is missing, and .*; allowed: classify, tokens"):
        checkpoint_model(str(tmp_path), None)
    with pytest.raises(UserError, match=r"--head is 'causal', and .*; allowed: classify, tokens, spans, masked"):
        checkpoint_model(str(FIXTURES / "bert_classify"), "causal")
    assert checkpoint_model(str(FIXTURES / "bert_classify"), "tokens").head_name == "tokens"


def test_the_command_line(tmp_path):
    make_tuned(tmp_path / "job", *CASES["bert classify"], DORA)
    run = functools.partial(script, "convert_peft")
    done = run(tmp_path / "job", "--out", tmp_path / "out", "--base-out", tmp_path / "base")
    assert done.returncode == 0, done.stderr
    assert "peft.PeftModel.from_pretrained" in done.stdout
    done = run(tmp_path / "out", "--base", tmp_path / "base", "--out", tmp_path / "a.safetensors")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: this is a DoRA adapter")
    done = run(tmp_path / "job", "--base", "x", "--out", tmp_path / "new")
    assert done.stderr.startswith("error: --base is given, and")
