"""The stage cache: an entry's name changes with whatever decides its numbers; what comes back is what was kept."""

import dataclasses
import errno
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from src.data.diabetes import Diabetes
from src.errors import UserError
from src.models.mlp import Activation, Mlp
from src.objectives.supervised import Classification
from src.optim.optimizers import Adam, Adamw, Momentum
from src.optim.schedules import Constant, WarmupCosine, WarmupLinear
from src.pretraining.base import Supervised
from src.recipe.spec import Recipe
from src.strategies.discriminative import Discriminative
from src.strategies.frozen import Frozen
from src.training import stage_cache
from src.training.stage_cache import CacheMode, Entry, StageCache, parse_size, stage_key, stage_label
from tests.runs import finetuned, pretrain_once, pretraining_stage

ROOT = Path(__file__).parents[2]
KEY, OTHER, THIRD = "0" * 24, "1" * 24, "2" * 24
MB = 1_000_000


@pytest.fixture(scope="module")
def data():
    return Diabetes().load()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def open_cache(tmp_path, warnings):
    def make(mode=CacheMode.use, limit_bytes=MB, folder=tmp_path / "cache"):
        return StageCache(folder, mode, limit_bytes, warnings.append)

    return make


def entry(value=1.0, size=8, **facts):
    params = {"Dense_0/kernel": np.full((size, 2), value, np.float32), "Dense_0/bias": np.zeros(2, np.float32)}
    return Entry(params, [{"step": 10, "loss": value}], {"stage": "a stage", "diverged": False, **facts})


def file_of(cache, key=KEY):
    return cache.folder / f"{key}.safetensors"


def assert_same_bits(found, expected):
    assert list(found.params) == list(expected.params)
    for path, value in expected.params.items():
        assert (found.params[path].dtype, found.params[path].shape) == (value.dtype, value.shape)
        assert found.params[path].tobytes() == value.tobytes()
    assert repr(found.rows) == repr(expected.rows)  # repr tells -0.0 from 0.0, 1 from 1.0, and finds NaN equal
    assert repr(found.facts) == repr(expected.facts)


# --- names -------------------------------------------------------------------------------------------------------


def base_recipe(**changes):
    recipe = Recipe(pretrain=Supervised(Adam(), WarmupLinear()), batch_size=32)
    return dataclasses.replace(recipe, **changes)


def key_of(data, fingerprint="fingerprint", platform="cpu", **changes):
    return stage_key(pretraining_stage(base_recipe(**changes), data), fingerprint, {"platform": platform})


ONE_ULP = float(np.nextafter(np.float32(0.05), np.float32(1)))

OTHER_STAGES = {
    "seed": {"seed": 1},
    "rate": {"lr_pre": 0.1},
    "rate, one ulp": {"lr_pre": ONE_ULP},
    "steps": {"pretrain_steps": 201},
    "batch": {"batch_size": 33},
    "no batch": {"batch_size": None},
    "log_every": {"log_every": 11},
    "widths": {"model": Mlp((9,))},
    "depth": {"model": Mlp((8, 8))},
    "activation": {"model": Mlp(activation=Activation.tanh)},
    "optimizer": {"pretrain": Supervised(Adamw(weight_decay=0.0), WarmupLinear())},
    "traced setting": {"pretrain": Supervised(Adam(weight_decay=0.1), WarmupLinear())},
    "static setting": {"pretrain": Supervised(Adam(b2=0.99), WarmupLinear())},
    # In float32 these are one number, but Adam's 1 - b2 is taken in float64, and then they are not.
    "static setting, less than a float32's ulp": {"pretrain": Supervised(Adam(b2=0.999 + 1e-9), WarmupLinear())},
    "clipping": {"pretrain": Supervised(Adam(clip_norm=1.0), WarmupLinear())},
    "schedule": {"pretrain": Supervised(Adam(), WarmupCosine())},
    "warm-up": {"pretrain": Supervised(Adam(), WarmupLinear(0.2))},
}


def test_every_difference_makes_another_name(data):
    names = {"base": key_of(data)} | {what: key_of(data, **changes) for what, changes in OTHER_STAGES.items()}
    names["data"] = key_of(data, fingerprint="another")
    names["platform"] = key_of(data, platform="gpu")
    stage = pretraining_stage(base_recipe(), data)
    others = {
        "outputs": dataclasses.replace(stage, outputs=2),
        "objective": dataclasses.replace(stage, objective=Classification()),
        **{str(s): dataclasses.replace(stage, strategy=s) for s in (Frozen(), Discriminative(), Discriminative(0.8))},
    }
    names |= {what: stage_key(other, "fingerprint", {"platform": "cpu"}) for what, other in others.items()}
    assert len(names) == len(OTHER_STAGES) + 3 + len(others)
    assert len(set(names.values())) == len(names)
    assert all(stage_cache.ENTRY.fullmatch(f"{name}.safetensors") for name in names.values())


def test_the_same_stage_has_the_same_name(data):
    assert key_of(data) == key_of(data)
    assert key_of(data, lr_pre=0.05) == key_of(data, lr_pre=np.float32(0.05)) == key_of(data, lr_pre=0.05 + 1e-12)
    assert key_of(data, seed=0, pretrain_steps=200) == key_of(data, seed=np.int64(0), pretrain_steps=np.int32(200))
    # What only fine-tuning uses is no part of pre-training.
    assert key_of(data) == key_of(data, lr_fine=0.3, finetune_steps=7, strategy=Discriminative(), optimizer=Momentum())


@pytest.mark.parametrize("library", ["jax", "jaxlib", "flax", "optax", "numpy"])
def test_a_library_s_version_counts(data, monkeypatch, library):
    before, found = key_of(data), stage_cache.versions()
    monkeypatch.setattr(stage_cache, "versions", lambda: {**found, library: "0.0.1"})
    assert key_of(data) != before
    monkeypatch.setattr(stage_cache, "versions", lambda: {**found, "thaw": "99", "hydra-core": "99"})
    assert key_of(data) == before


def test_what_has_no_lasting_name_is_refused(data):
    stage = pretraining_stage(base_recipe(), data)
    with pytest.raises(TypeError, match="no lasting name"):
        stage_key(dataclasses.replace(stage, batch_size=object()), "f")
    interactive = type("Constant", (Constant,), {"__module__": "typed_at_a_prompt"})
    with pytest.raises(TypeError, match=r"typed_at_a_prompt\.Constant has no source file"):
        stage_key(dataclasses.replace(stage, schedule=interactive()), "f")


EDITS = """
import sys
from pathlib import Path
import numpy as np
from src.engine import stage_cache
from src.engine.stage import Split
from src.data.base import Transfer
from src.recipe import Recipe, pretraining_stage
from src.models.layered import Layered

rows = Split(np.zeros((4, 2), np.float32), np.zeros(4, np.float32))
data = Transfer("regression", {"train": rows}, {"train": rows}, 1, 1, new_head=False)

def key():
    stage_cache._source.cache_clear()  # as another process would have it
    return stage_cache.stage_key(pretraining_stage(Recipe(model=Layered()), data), "fingerprint")

first = key()
for name in sys.argv[1:]:
    file = Path("src", name)
    text = file.read_text()
    file.write_text(text + "# edited")
    changed = key() != first
    stage_cache_holds = key() == key()
    file.write_text(text)
    assert key() == first and stage_cache_holds
    print(name, changed)
"""


def test_an_edit_of_what_a_stage_runs_through_counts_and_no_other(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    models = tmp_path / "src" / "models"
    # A model whose layers are elsewhere, imported in the ways that Python has.
    (models / "layers_a.py").write_text("")
    (models / "layers_b.py").write_text("from . import layers_c\n")
    (models / "layers_c.py").write_text("def late():\n    import src.models.layers_d\n")
    (models / "layers_d.py").write_text("")
    (models / "layered.py").write_text(
        "from dataclasses import dataclass\nfrom src.models import layers_a\nfrom .layers_b import layers_c\n"
        "from src.models.mlp import Mlp\n@dataclass(frozen=True)\nclass Layered(Mlp):\n    pass\n"
    )
    counting = [f"models/{name}.py" for name in ("layered", "layers_a", "layers_b", "layers_c", "layers_d", "mlp")]
    counting += [f"engine/{name}.py" for name in ("loop", "partition", "optimizers", "schedules")]
    counting += ["models/base.py", "objectives/supervised.py", "strategies/full.py", "strategies/base.py"]
    others = ["strategies/frozen.py", "results/report.py", "tracking/console.py", "data/csv.py", "train.py"]
    others += ["engine/stage_cache.py", "sweeps/identity.py", "__init__.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", EDITS, *counting, *others], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said == dict.fromkeys(counting, "True") | dict.fromkeys(others, "False")


def test_a_label_says_what_the_stage_is(data):
    stage = pretraining_stage(Recipe(model=Mlp((64, 32), Activation.gelu), seed=3), data)
    assert stage_label(stage) == "Mlp(widths=64x32, activation=gelu), Regression, Sgd, lr 0.05, 200 steps, seed 3"


# --- what comes back ---------------------------------------------------------------------------------------------


def test_a_round_trip_keeps_every_bit(open_cache, warnings):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, 64, dtype=np.uint16)
    params = {
        "z/float32": rng.standard_normal((3, 5)).astype(np.float32),
        "a/every kind of float32": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32),
        "nan with a payload": np.array([0x7FC01234], np.uint32).view(np.float32),
        "bfloat16": bits.view(ml_dtypes.bfloat16).reshape(8, 8),
        "float8": rng.integers(0, 2**8, 16, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
        "float16": bits.view(np.float16),
        "float64": rng.standard_normal(3),
        "int": np.arange(-3, 3),
        "uint8": np.arange(256, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "0-d": np.array(3.5, np.float32),
        "0-d bfloat16": np.array(3.5, ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "empty bfloat16": np.zeros((2, 0), ml_dtypes.bfloat16),
        "transposed": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.int32)[::3],
        'quoted "sha256":"' + "0" * 64 + '"': np.ones(1, np.float32),
        "sha256": np.ones(1, np.float32),
    }
    kept = Entry(params, [], {"sha256": '"sha256":"' + "0" * 64 + '"'})
    open_cache().put(KEY, kept)
    assert_same_bits(open_cache().get(KEY), kept)
    open_cache().put(OTHER, Entry({}, [], {}))
    assert_same_bits(open_cache().get(OTHER), Entry({}, [], {}))
    assert warnings == []


def test_rows_and_facts_come_back_as_they_were(open_cache):
    rows = [
        {"step": 0, "val_loss": 0.1 + 0.2},
        {"step": 10, "loss": math.inf, "grad_norm": -math.inf, "lr": math.nan, "r2": -0.0, "tiny": 5e-324},
        {"step": 20, "loss": float(np.float32(0.1)), "numpy": np.float64(0.1)},
    ]
    facts = {"diverged": True, "last_finite_step": 13, "flops_per_step": math.nan, "metrics": {"loss": 1e300},
             "word": "NaN", "umlaut": "für", "nothing": None}  # fmt: skip
    open_cache().put(KEY, Entry({}, rows, facts))
    rows[2]["numpy"] = 0.1
    assert_same_bits(open_cache().get(KEY), Entry({}, rows, facts))


def test_facts_may_be_of_numpy_but_not_of_anything(open_cache):
    cache = open_cache()
    cache.put(KEY, Entry({}, [], {"float32": np.float32(0.1), "int": np.int64(3), "bool": np.bool_(True)}))
    assert cache.get(KEY).facts == {"float32": float(np.float32(0.1)), "int": 3, "bool": True}
    with pytest.raises(TypeError, match="JSON cannot say"):
        cache.put(OTHER, Entry({}, [], {"what": object()}))
    assert [kept.key for kept in cache.entries()] == [KEY]


def test_a_file_is_one_that_other_tools_read(open_cache):
    from safetensors import safe_open

    open_cache().put(KEY, entry(3.0))
    with safe_open(file_of(open_cache()), "np") as file:
        np.testing.assert_array_equal(file.get_tensor("Dense_0/kernel"), entry(3.0).params["Dense_0/kernel"])


def test_a_dtype_that_the_format_lacks_costs_a_warning(open_cache, warnings):
    open_cache().put(KEY, Entry({"x": np.zeros(2, ml_dtypes.int4)}, [], {}))
    assert len(warnings) == 1
    assert "could not keep" in warnings[0]
    assert "int4" in warnings[0]
    assert open_cache().entries() == []


# --- a whole stage -----------------------------------------------------------------------------------------------


def test_fine_tuning_from_a_kept_stage_gives_the_same_bits(data, open_cache):
    recipe = Recipe(pretrain_steps=25, finetune_steps=15, batch_size=32)
    rows = [[], [], []]
    direct = pretrain_once([recipe], data, None, watch=rows[0].append)[0]
    computed = pretrain_once([recipe], data, open_cache(), watch=rows[1].append)[0]
    kept = pretrain_once([recipe], data, open_cache(), watch=rows[2].append)[0]
    assert rows[0] == rows[1] == rows[2]
    assert kept.seconds == 0.0 < computed.seconds
    assert kept.metrics == computed.metrics == direct.metrics
    expected = finetuned(recipe, data, direct.params).params
    for start in (computed, kept):
        found = finetuned(recipe, data, start.params).params
        for path in expected:
            np.testing.assert_array_equal(found[path], expected[path])


# --- damage ------------------------------------------------------------------------------------------------------


def assert_damaged(cache, warnings):
    """One sentence that names the file, which is gone then."""
    assert cache.get(KEY) is None
    assert len(warnings) == 1
    assert str(file_of(cache)) in warnings[0]
    assert "damaged" in warnings[0]
    assert "\n" not in warnings[0]
    assert not file_of(cache).exists()
    warnings.clear()


def test_every_flipped_byte_is_noticed(open_cache, warnings):
    cache = open_cache()
    cache.put(KEY, entry(size=2))
    whole = file_of(cache).read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x29, 0x80):  # 0x29 makes a space a tab, which JSON would not mind
            damaged = bytearray(whole)
            damaged[place] ^= flip
            file_of(cache).write_bytes(damaged)
            assert_damaged(cache, warnings)
    file_of(cache).write_bytes(whole)
    assert_same_bits(cache.get(KEY), entry(size=2))


def test_a_file_of_another_length_is_noticed(open_cache, warnings):
    cache = open_cache()
    cache.put(KEY, entry(size=2))
    whole = file_of(cache).read_bytes()
    for content in [*(whole[:length] for length in range(0, len(whole), 3)), whole + b"\0", whole + whole]:
        file_of(cache).write_bytes(content)
        assert_damaged(cache, warnings)


def test_a_file_that_is_no_entry_is_noticed(open_cache, warnings):
    from safetensors.numpy import save

    cache = open_cache()
    cache.put(OTHER, entry())
    other = file_of(cache, OTHER).read_bytes()
    sealed = b'{"sha256":"' + b"0" * 64 + b'"} but no safetensors'
    digest = stage_cache.hashlib.sha256(sealed).hexdigest().encode()
    sealed = sealed.replace(b"0" * 64, digest)
    strange = save({"x": np.zeros(3)}), save({"x": np.zeros(3)}, {"sha256": "0" * 64})
    for content in (other, b"", b"not an entry", os.urandom(2000), *strange, sealed):
        file_of(cache).write_bytes(content)
        assert_damaged(cache, warnings)
    assert_same_bits(cache.get(OTHER), entry())


# --- modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "reads", "writes"), [
    (CacheMode.use, True, True), (CacheMode.off, False, False),
    (CacheMode.read, True, False), (CacheMode.refresh, False, True),
])  # fmt: skip
def test_modes(open_cache, warnings, mode, reads, writes):
    open_cache().put(KEY, entry(1.0))
    cache = open_cache(mode)
    assert (cache.get(KEY) is not None) == reads
    cache.put(KEY, entry(2.0))
    cache.put(OTHER, entry(2.0))
    assert open_cache().get(KEY).rows == entry(2.0 if writes else 1.0).rows
    assert (open_cache().get(OTHER) is not None) == writes
    assert warnings == []


def test_reading_only_changes_nothing_in_the_folder(open_cache, warnings):
    open_cache().put(KEY, entry())
    open_cache().put(OTHER, entry())
    file_of(open_cache(), OTHER).write_bytes(b"damaged")
    os.utime(file_of(open_cache()), (1e9, 1e9))
    before = {path: path.stat().st_mtime_ns for path in open_cache().folder.iterdir()}
    cache = open_cache(CacheMode.read, limit_bytes=1)
    assert cache.get(KEY) is not None
    assert cache.get(OTHER) is None
    assert len(warnings) == 1
    cache.put(THIRD, entry())
    assert {path: path.stat().st_mtime_ns for path in cache.folder.iterdir()} == before


def test_a_key_is_a_key(open_cache):
    for use in (open_cache().get, lambda key: open_cache().put(key, entry())):
        with pytest.raises(ValueError, match="no key"):
            use("../elsewhere")


# --- room --------------------------------------------------------------------------------------------------------


def keys(cache):
    return [kept.key for kept in cache.entries()]


def at(cache, key, seconds):
    """Make an entry's last use that many seconds after a day in 2020."""
    os.utime(file_of(cache, key), (1.6e9 + seconds, 1.6e9 + seconds))


def test_the_least_recently_used_entry_goes_first(open_cache):
    cache = open_cache()
    for age, key in enumerate((KEY, OTHER, THIRD)):
        cache.put(key, entry())
        at(cache, key, age)
    assert keys(cache) == [KEY, OTHER, THIRD]
    size = cache.entries()[0].bytes
    assert cache.get(KEY) is not None  # used now: the youngest
    assert keys(cache) == [OTHER, THIRD, KEY]
    open_cache(limit_bytes=3 * size).put("3" * 24, entry())
    assert keys(cache) == [THIRD, KEY, "3" * 24]
    open_cache(limit_bytes=2 * size - 1).put("4" * 24, entry())
    assert keys(cache) == ["4" * 24]


def test_what_was_just_written_stays_however_large(open_cache):
    cache = open_cache(limit_bytes=1)
    cache.put(KEY, entry())
    assert keys(cache) == [KEY]
    cache.put(OTHER, entry(size=1000))
    assert keys(cache) == [OTHER]


def test_a_limit_of_0_keeps_nothing(open_cache, warnings):
    open_cache().put(KEY, entry())
    cache = open_cache(limit_bytes=0)
    cache.put(OTHER, entry())
    assert keys(cache) == []
    assert warnings == []


def test_prune_says_what_it_removed(open_cache):
    cache = open_cache()
    for age, key in enumerate((KEY, OTHER, THIRD)):
        cache.put(key, entry(metrics={"loss": 0.5}))
        at(cache, key, age)
    size = cache.entries()[0].bytes
    removed = cache.prune(2 * size)
    assert [(kept.key, kept.bytes, kept.label) for kept in removed] == [(KEY, size, "a stage")]
    assert removed[0].last_used.timestamp() == 1.6e9
    assert removed[0].facts["metrics"] == {"loss": 0.5}
    assert [kept.key for kept in cache.prune()] == [OTHER, THIRD]
    assert cache.prune() == []


def test_other_files_are_left_alone(open_cache):
    cache = open_cache()
    cache.put(KEY, entry())
    names = ["model.safetensors", f"{OTHER}.txt", f"{OTHER}.safetensors.bak", f".{OTHER}.safetensors.young", "README"]
    for name in names:
        (cache.folder / name).write_bytes(b"x" * MB)
    (cache.folder / f"{THIRD}.safetensors").mkdir()
    half_written = cache.folder / f".{OTHER}.safetensors.abandoned"
    half_written.write_bytes(b"x")
    os.utime(half_written, (time.time() - 7200,) * 2)
    assert keys(cache) == [KEY]
    assert cache.get(THIRD) is None
    assert [kept.key for kept in cache.prune()] == [KEY]
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted([*names, f"{THIRD}.safetensors"])


def test_files_may_vanish_at_any_time(open_cache, monkeypatch, warnings):
    cache = open_cache()
    for key in (KEY, OTHER):
        cache.put(key, entry())
    real = stage_cache._kept

    def evicted_first(path, stat):
        path.unlink()
        return real(path, stat)

    monkeypatch.setattr(stage_cache, "_kept", evicted_first)
    open_cache(limit_bytes=1).put(THIRD, entry())
    monkeypatch.undo()
    assert keys(cache) == [THIRD]
    monkeypatch.setattr(stage_cache.os, "utime", lambda path: (_ for _ in ()).throw(FileNotFoundError(str(path))))
    assert_same_bits(cache.get(THIRD), entry())
    assert warnings == []


def test_a_damaged_entry_is_listed_and_pruned(open_cache):
    cache = open_cache()
    cache.put(KEY, entry())
    file_of(cache).write_bytes(b"\xff" * 100)
    assert [(kept.key, kept.label, kept.facts) for kept in cache.entries()] == [(KEY, "damaged", {})]
    assert len(cache.prune()) == 1


# --- a folder that does not work ---------------------------------------------------------------------------------


def test_a_file_where_the_folder_should_be(tmp_path, open_cache, warnings):
    (tmp_path / "cache").write_text("in the way")
    cache = open_cache()
    assert cache.get(KEY) is None
    assert cache.entries() == cache.prune() == warnings == []
    cache.put(KEY, entry())
    assert len(warnings) == 1
    assert "could not keep" in warnings[0]
    assert str(file_of(cache)) in warnings[0]
    assert (tmp_path / "cache").read_text() == "in the way"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_is_full_or_shut_costs_one_warning(open_cache, warnings, monkeypatch, code):
    cache = open_cache()
    cache.put(KEY, entry(1.0))

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)  # the last step of writing
    cache.put(KEY, entry(2.0))
    assert len(warnings) == 1
    assert warnings[0].endswith(os.strerror(code))
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]  # nothing half-written
    assert_same_bits(cache.get(KEY), entry(1.0))


def test_what_cannot_be_removed_stays_without_a_word(open_cache, warnings, monkeypatch):
    cache = open_cache()
    cache.put(KEY, entry())
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert cache.prune() == []
    monkeypatch.undo()
    assert keys(cache) == [KEY]
    monkeypatch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError()))
    assert cache.get(KEY) is None
    assert warnings == []


# --- several processes -------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from src.engine.stage_cache import CacheMode, Entry, StageCache

def fail(text):
    raise SystemExit(text)

folder, limit, writer, count, *keys = sys.argv[1:]
cache = StageCache(Path(folder), CacheMode.use, int(limit), fail)
print("ready", flush=True)
for i in range(int(count)):
    mark = int(writer) * 1_000_000 + i
    params = {name: np.full(500 + 100 * (i % 7), mark, np.int64) for name in "ab"}
    cache.put(keys[i % len(keys)], Entry(params, [{"step": mark}], {"mark": mark}))
    found = cache.get(keys[i % len(keys)])
    assert found is None or found.facts["mark"] % 1_000_000 < int(count)
print("jax" in sys.modules or "hydra" in sys.modules or "wandb" in sys.modules)
"""


def hammer(cache, count, *names):
    """Two processes write the same keys at once; return what a reader finds meanwhile, and what they say."""
    command = [sys.executable, "-W", "error", "-c", WRITER, cache.folder, str(cache.limit_bytes)]
    writers = [
        subprocess.Popen([*command, str(i), str(count), *names], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    found = []
    while any(writer.poll() is None for writer in writers):
        found += [cache.get(name) for name in names]
        cache.entries()
    said = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert said == ["False\n", "False\n"]  # nothing heavy is imported, though the key needs JAX
    return [whole for whole in found if whole is not None]


def assert_whole(found):
    mark = found.facts["mark"]
    assert found.rows == [{"step": mark}]
    length = 500 + 100 * (mark % 1_000_000 % 7)
    for value in found.params.values():
        np.testing.assert_array_equal(value, np.full(length, mark))


def test_a_reader_never_sees_half_of_what_two_writers_write(open_cache, warnings):
    cache = open_cache()
    found = hammer(cache, 400, KEY)
    assert len({whole.facts["mark"] for whole in found}) > 10
    for whole in found:
        assert_whole(whole)
    assert_whole(cache.get(KEY))
    assert warnings == []
    assert [path.name for path in cache.folder.iterdir()] == [file_of(cache).name]


def test_processes_evict_one_another_s_entries_in_peace(open_cache, warnings):
    cache = open_cache(limit_bytes=30_000)
    for whole in hammer(cache, 150, KEY, OTHER, THIRD, "3" * 24):
        assert_whole(whole)
    assert warnings == []
    assert sum(kept.bytes for kept in cache.entries()) <= cache.limit_bytes


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [
    ("0", 0), ("500", 500), ("12B", 12), ("500MB", 500 * 10**6), ("500 mb", 500 * 10**6), ("2GiB", 2 * 2**30),
    ("1.5kB", 1500), ("3K", 3000), ("1Ti", 2**40), (" 1 TB ", 10**12),
])  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "much", "-1MB", "5 parsecs", "1e3", "1,5GB", "1iB", "٣MB", "1 M B", "nan"])
def test_no_sizes(text):
    with pytest.raises(UserError, match=r"^--limit is '.*'; allowed: a size such as 500MB, 2GiB or 0$"):
        parse_size(text, "--limit")
