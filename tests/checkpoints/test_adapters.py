"""Extract, apply, merge, unmerge: against float64 NumPy, and against each other."""

import math
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.checkpoints.adapters import (
    LORA_OPTIONS,
    LoraAdapter,
    add_adapter,
    extract,
    fingerprint,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from src.errors import UserError
from src.models.base import PLAIN, same_bits
from src.models.layers import scale
from tests.checkpoints.networks import HEAD, IMAGES, SmallNet, adapter, dense, fresh_head, leaves, network

MIXED = {"Conv_0": 2, "Conv_1": 5, "Dense_0": 3}
SCALES = {"Conv_0": 0.5, "Conv_1": 2.0, "Dense_0": 1.25}


def outputs(params, how=PLAIN):
    with jax.default_matmul_precision("highest"):
        return np.asarray(SmallNet().apply(params, IMAGES, params["Dense_1/bias"].size, how), np.float64)


def far(x, y):
    return np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()


def test_scales_of_the_papers():
    assert scale(16, 8) == 2.0
    assert scale(16, 4, rank_stabilised=True) == 8.0


@pytest.mark.parametrize("rank", range(1, 6))
def test_applied_and_merged_models_compute_the_same(rank):
    base, own = network(), adapter({**MIXED, "Conv_1": rank}, rank, SCALES)
    applied = add_adapter(own, base)
    side, merged = outputs(applied, LORA_OPTIONS), outputs(merge(applied))
    assert far(side, merged) < 1e-5 * max(1.0, np.abs(side).max())
    assert far(side, outputs({**base, **own.head})) > 0.1  # the deltas do something


def test_a_merged_kernel_is_kernel_plus_s_a_b():
    base, own = network(), adapter(MIXED, 1, SCALES)
    merged = merge(add_adapter(own, base))
    for module, (a, b) in own.factors.items():
        expected = base[f"{module}/kernel"].astype(np.float64) + SCALES[module] * dense(a, b)
        np.testing.assert_allclose(merged[f"{module}/kernel"], expected, rtol=1e-6, atol=1e-6)
        assert merged[f"{module}/kernel"].dtype == np.float32
    assert merged.keys() == base.keys()
    untouched = [p for p in base if not p.endswith("kernel") and p not in HEAD]
    assert len(untouched) == 6
    assert all(same_bits(merged[p], base[p]) for p in untouched)
    assert all(same_bits(merged[p], own.head[p]) for p in HEAD)


def test_fine_tuned_parameters_merge_with_their_scales():
    base = network()
    tuned = {**base, **leaves(MIXED, 1), **fresh_head(1)}
    once = merge(tuned, SCALES)
    other = merge(add_adapter(adapter(MIXED, 1, SCALES), base))
    assert all(far(once[path], other[path]) < 1e-6 for path in base)
    assert far(merge(tuned, 0.5)["Dense_0/kernel"], once["Dense_0/kernel"]) > 0.1


def test_merging_twice_changes_nothing():
    once = merge(add_adapter(adapter(MIXED, 1, SCALES), network()))
    twice = merge(once, SCALES)
    assert once.keys() == twice.keys()
    assert all(same_bits(once[path], twice[path]) for path in once)


def test_unmerging():
    base, own = network(), adapter(MIXED, 1, SCALES)
    back = unmerge(merge(add_adapter(own, base)), own)
    assert all(far(back[path], base[path]) < 1e-5 for path in base if path not in HEAD)
    assert all(same_bits(back[path], own.head[path]) for path in HEAD)
    with pytest.raises(UserError, match="nothing to unmerge: lora_a and lora_b are beside Conv_0"):
        unmerge(add_adapter(own, base), own)


def test_adding_replaces_another_adapter():
    base = network()
    first, second = adapter(MIXED, 1), adapter({"Dense_0": 4}, 2)
    swapped, direct = add_adapter(second, add_adapter(first, base)), add_adapter(second, base)
    assert swapped.keys() == direct.keys()
    assert all(same_bits(swapped[path], direct[path]) for path in direct)


def test_extract_is_the_inverse_of_add_adapter():
    own = adapter(MIXED, 1, SCALES)
    again = extract(add_adapter(own, network()), HEAD, alpha=2.0)
    assert (again.base, again.ranks) == (own.base, MIXED)
    assert again.meta == {"alpha": 2.0, "rank": 5, "rank_stabilised": False}
    assert again.scaling == {module: 2.0 / rank for module, rank in MIXED.items()}
    for module in MIXED:
        assert far(again.delta_weight(module) / again.scaling[module], own.delta_weight(module)) < 1e-6
    assert all(same_bits(again.head[path], own.head[path]) for path in HEAD)


def test_bfloat16():
    base = {path: jnp.asarray(value, jnp.bfloat16) for path, value in network().items()}
    own = adapter(MIXED, 1, SCALES, base=base, head=False, dtype=jnp.bfloat16, size=0.3)
    applied = add_adapter(own, base)
    merged = merge(applied)
    x = jnp.asarray(IMAGES, jnp.bfloat16)
    found = SmallNet().apply(applied, x, 3, LORA_OPTIONS)
    assert found.dtype == SmallNet().apply(base, x, 3).dtype == jnp.bfloat16
    whole = {path: np.asarray(leaf, np.float32) for path, leaf in applied.items()}
    assert far(found, outputs(whole, LORA_OPTIONS)) < 0.03 * np.abs(outputs(whole, LORA_OPTIONS)).max()
    for module, (a, b) in own.factors.items():
        kernel = np.asarray(merged[f"{module}/kernel"])
        exact = np.asarray(base[f"{module}/kernel"], np.float64) + SCALES[module] * dense(a, b)
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_allclose(kernel.astype(np.float64), exact, rtol=2**-8, atol=1e-6)  # rounded once, no more
    back = unmerge(merged, own)
    assert far(back["Conv_0/kernel"], base["Conv_0/kernel"]) < 2**-7 * np.abs(merged["Conv_0/kernel"]).max()


# --- the fingerprint -----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_names_shapes_types_and_bits():
    base = network()
    known = fingerprint(base, HEAD)
    assert len(known) == 16
    assert int(known, 16) >= 0
    assert fingerprint(dict(reversed(base.items())), HEAD) == known
    assert fingerprint({**base, **fresh_head(4, outputs=9), **leaves(MIXED, 1)}, HEAD) == known
    assert fingerprint({path: jnp.asarray(value) for path, value in base.items()}, HEAD) == known
    kernel = base["Dense_0/kernel"]
    nudged = kernel.copy()
    nudged[0, 0] = np.nextafter(nudged[0, 0], np.float32(9))
    others = [nudged, kernel.reshape(7, 4), kernel.view(np.int32), kernel.T.copy().reshape(4, 7)]
    changed = [{**base, "Dense_0/kernel": other} for other in others]
    changed += [{**base, "BatchNorm_0/mean": base["BatchNorm_0/mean"] + 1}, {**base, "Dense_9/kernel": kernel}, base]
    found = [fingerprint(params, HEAD) for params in changed[:-1]] + [fingerprint(base), known]
    assert len(set(found)) == len(found)


def test_another_base_is_refused():
    own, other = adapter(MIXED, 1), network(seed=1)
    with pytest.raises(UserError, match="allowed: the same base") as error:
        add_adapter(own, other)
    assert own.base in str(error.value)
    assert fingerprint(other, HEAD) in str(error.value)
    merged = merge(add_adapter(own, network()))
    with pytest.raises(UserError, match="allowed: the same base"):  # so nothing is added twice
        add_adapter(own, merged)


# --- what is refused -----------------------------------------------------------------------------------------------


def test_all_misfits_are_reported_together():
    base = network()
    own = adapter(MIXED, 1)
    del base["Conv_1/kernel"]
    base["Dense_0/kernel"] = np.zeros((4, 8), np.float32)
    words = r"there is no Conv_1/kernel, Dense_0/kernel is \(4, 8\) and the adapter's \(4, 7\)"
    for attempt in (add_adapter, lambda a, p: unmerge(p, a), lambda a, p: merge({**p, **a.params})):
        with pytest.raises(UserError, match=words):
            attempt(own, base)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("path", ["Conv_0/lora_a", "Dense_0/lora_b", "Dense_1/bias"])
def test_numbers_that_are_not_finite(path, value):
    tuned = {**network(), **leaves(MIXED, 1), **fresh_head(1)}
    tuned[path] = np.full_like(tuned[path], value)
    with pytest.raises(UserError, match=f"not finite in {path}; allowed"):
        extract(tuned, HEAD, 1.0)
    if "lora" in path:
        with pytest.raises(UserError, match=f"not finite in {path}; allowed"):
            merge(tuned)


def test_scales_must_exist_and_be_finite():
    tuned = {**network(), **leaves(MIXED, 1)}
    with pytest.raises(UserError, match="not finite in the scale of Conv_0, the scale of Conv_1, the scale of Dense_0"):
        extract(tuned, HEAD, math.nan)
    with pytest.raises(UserError, match="is inconsistent: Conv_1: no scale, Dense_0: no scale"):
        replace(adapter(MIXED, 1), scaling={"Conv_0": 1.0})


def test_changes_that_are_not_low_rank_sums_are_refused():
    tuned = {**network(), **leaves(MIXED, 1)}
    with pytest.raises(UserError, match="hold no adapter"):
        extract(network(), HEAD, 1.0)
    with pytest.raises(UserError, match="incomplete: Conv_0/lora_a missing"):
        extract({path: leaf for path, leaf in tuned.items() if path != "Conv_0/lora_a"}, HEAD, 1.0)
    with pytest.raises(UserError, match="Dense_0/magnitude beside lora_a and lora_b: the change is not a sum"):
        merge({**tuned, "Dense_0/magnitude": np.ones(7, np.float32)})
    with pytest.raises(UserError, match=r"Dense_0: A \(4, 3\) and B \(2, 7\)"):
        LoraAdapter({"Dense_0": (np.ones((4, 3)), np.ones((2, 7)))}, {"Dense_0": 1.0}, {}, "")
    with pytest.raises(UserError, match="Dense_1/bias: not one of the head's paths"):
        LoraAdapter({}, {}, {"Dense_1/bias": np.ones(3)}, "")


def test_parameters_beside_the_head_may_be_saved_in_full():
    base = network()
    tuned = {**base, **leaves(MIXED, 1), **fresh_head(1)}
    tuned["Dense_0/bias"] = tuned["Dense_0/bias"] + 1e-3
    tuned["BatchNorm_0/mean"] = tuned["BatchNorm_0/mean"] * 2
    whole = extract(tuned, (*HEAD, "Dense_0/bias", "BatchNorm_0/mean"), alpha=1.0)
    whole = replace(whole, scaling=dict.fromkeys(MIXED, 1.0))
    assert far(outputs(add_adapter(whole, base), LORA_OPTIONS), outputs(tuned, LORA_OPTIONS)) == 0


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_file_round_trip_is_bit_identical(tmp_path, dtype):
    own = adapter(MIXED, 1, SCALES, dtype=dtype)
    a, b = own.factors["Dense_0"]
    turned = LoraAdapter(
        {**own.factors, "Dense_0": (np.asfortranarray(a), b)}, own.scaling, own.head, own.base, HEAD, {"k": [1]}
    )
    save_adapter(turned, tmp_path / "new" / "one.safetensors")
    again = load_adapter(tmp_path / "new" / "one.safetensors")
    assert again.params.keys() == own.params.keys()
    assert all(same_bits(again.params[path], own.params[path]) for path in own.params)
    assert all(same_bits(again.head[path], own.head[path]) for path in HEAD)
    assert (again.scaling, again.base, again.head_paths, again.meta) == (SCALES, own.base, HEAD, {"k": [1]})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.safetensors"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    save_adapter(adapter(MIXED, 1), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_adapter(adapter(MIXED, 2), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match=r"none.safetensors' cannot be read: No such file"):
        load_adapter(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("import os")
    with pytest.raises(UserError, match="text' is damaged or no safetensors file"):
        load_adapter(tmp_path / "text")
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "other")
    with pytest.raises(UserError, match="other' is a safetensors file, but no adapter"):
        load_adapter(tmp_path / "other")
    own = adapter(MIXED, 1)
    save_adapter(own, tmp_path / "one")
    content = (tmp_path / "one").read_bytes()
    bits = own.factors["Dense_0"][0].tobytes()
    bad = np.full_like(own.factors["Dense_0"][0], np.nan).tobytes()
    assert content.count(bits) == 1
    (tmp_path / "one").write_bytes(content.replace(bits, bad))
    with pytest.raises(UserError, match="not finite in Dense_0/lora_a"):
        load_adapter(tmp_path / "one")
