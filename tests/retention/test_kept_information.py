"""The Fisher information among the kept stages: computed once, named by what decides its bits, the same bits back."""

import dataclasses
import os

import numpy as np
import pytest

from src.config.hparams import static_part
from src.data.digits import Digits
from src.models.cnn import Cnn
from src.models.mlp import Mlp
from src.objectives.kinds import for_kind
from src.optim.optimizers import Adam, Momentum
from src.optim.schedules import Constant
from src.pretraining.base import Supervised
from src.recipe.spec import Recipe
from src.retention import ewc
from src.retention.base import SourceModel
from src.retention.ewc import Ewc, FisherSpec, OnlineEwc
from src.retention.fisher import Estimator
from src.retention.l2_sp import L2Sp
from src.strategies.discriminative import Discriminative
from src.strategies.full import Full, Scratch
from src.training import stage_cache
from src.training.stage_cache import CacheMode, Entry, StageCache, finding_key, sources
from src.training.vectorize import RunAxis
from tests.commands import rows, script, summary, sweep, train
from tests.runs import pretrain, pretrain_once, retention_states, run_finetuning

BASE = Recipe(
    model=Mlp((8,)),
    strategy=Full(),
    retention=Ewc(strength=3.0),
    pretrain_steps=5,
    finetune_steps=6,
    log_every=3,
    batch_size=32,
)


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


@pytest.fixture(scope="module")
def pre(digits):
    return pretrain([BASE], digits)[0]


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def open_cache(tmp_path, warnings):
    return lambda mode=CacheMode.use: StageCache(tmp_path / "cache", mode, 10**7, warnings.append)


class EvalSplits(StageCache):
    """A cache that has everything, and remembers what it was asked for."""

    def __init__(self):
        self.keys = []

    def get(self, key):
        """Return an entry."""
        self.keys.append(key)
        return Entry({}, [], {})


@pytest.fixture
def computed(monkeypatch):
    """How often a Fisher information has been computed: a list of which."""
    calls, real = [], ewc._diagonal
    monkeypatch.setattr(ewc, "_diagonal", lambda which, *args: (calls.append(which), real(which, *args))[1])
    return calls


# --- names -------------------------------------------------------------------------------------------------------


def name(data, params, **changes):
    """Return what a recipe's Fisher information is called."""
    asked = EvalSplits()
    retention_states([dataclasses.replace(BASE, **changes)], data, [params], asked)
    (key,) = asked.keys
    return key


def test_nothing_of_fine_tuning_is_in_the_name(digits, pre):
    same = [
        {},
        {"retention": Ewc(strength=0.0)},
        {"retention": OnlineEwc(strength=7.0, gamma=0.5)},
        {"retention": Ewc(samples=10**6)},  # of all rows, in words
        {"lr_fine": 0.3},
        {"finetune_steps": 70},
        {"optimizer": Adam()},
        {"strategy": Discriminative()},
    ]
    assert len({name(digits, pre.params, **changes) for changes in same}) == 1
    fewer = Digits(train_rows=50).load()  # of the target
    assert fewer.fingerprint != digits.fingerprint
    assert name(fewer, pre.params) == name(digits, pre.params)


def test_whatever_decides_its_bits_is_in_the_name(digits, pre, monkeypatch):
    names = [name(digits, pre.params), name(Digits(source_val_fraction=0.2).load(), pre.params)]
    names += [name(digits, pre.params, retention=Ewc(fisher=one)) for one in Estimator if one is not Estimator.exact]
    names += [name(digits, pre.params, retention=Ewc(samples=count)) for count in (100, 101)]
    names += [name(digits, pre.params, retention=Ewc(chunk=10)), name(digits, pre.params, seed=1)]
    kept = dataclasses.replace(digits, new_head=False)  # then the head is anchored, and is among the paths
    names += [name(kept, pre.params)]
    other = {path: np.array(leaf) for path, leaf in pre.params.items()}
    other["Dense_0/bias"][3] = np.nextafter(other["Dense_0/bias"][3], np.float32(1))
    names += [name(digits, other)]
    names += [name(digits, pretrain([dataclasses.replace(BASE, **more)], digits)[0].params) for more in OTHER_STAGES]
    monkeypatch.setattr("src.recipe.run.platform", lambda: {"platform": "another"})
    names += [name(digits, pre.params)]
    monkeypatch.undo()
    versions = stage_cache.versions()
    monkeypatch.setattr(stage_cache, "versions", lambda: versions | {"jaxlib": "0.0.1"})
    names += [name(digits, pre.params)]
    assert len(set(names)) == len(names)


OTHER_STAGES = [{"pretrain_steps": 6}, {"lr_pre": 0.01}, {"pretrain": Supervised(Momentum(), Constant())}]


def information(model, **changes):
    task = SourceModel(static_part(model), 5, for_kind("classification"))
    return dataclasses.replace(FisherSpec(task, Estimator.exact, 100, 256, True), **changes)


def test_the_network_and_the_sources_count():
    params = {"w": np.ones((2, 3), np.float32)}
    mlp, cnn = information(Mlp((8,))), information(Cnn())
    assert finding_key(mlp, params, "rows") == finding_key(information(Mlp((8,))), {"w": params["w"] + 0}, "rows")
    others = [params | {"w": params["w"].T}, {"v": params["w"]}, {"w": params["w"].astype(np.float64)}]
    keys = [finding_key(mlp, params, "rows"), finding_key(cnn, params, "rows"), finding_key(mlp, params, "others")]
    keys += [finding_key(mlp, other, "rows") for other in others]
    assert len(set(keys)) == len(keys)
    through = {f"src/{file}.py" for file in ("retention/ewc", "retention/fisher", "retention/base", "models/mlp")}
    assert through < sources(mlp).keys()
    assert not {"src/retention/l2_sp.py", "src/strategies/full.py", "src/models/cnn.py"} & sources(mlp).keys()
    assert "src/models/cnn.py" in sources(cnn)


# --- what comes back ---------------------------------------------------------------------------------------------


def fine_tuned(digits, pre, cache, *strengths):
    """Return rows, metrics and parameters of a lane each."""
    recipes = [dataclasses.replace(BASE, retention=Ewc(strength=s)) for s in strengths]
    watched = [[] for _ in recipes]
    lanes = RunAxis.none if len(recipes) == 1 else RunAxis.map
    ends = run_finetuning(recipes, digits, [pre] * len(recipes), [own.append for own in watched], lanes, cache)
    bits = [{path: np.asarray(leaf).tobytes() for path, leaf in end.params.items()} for end in ends]
    return [(own, end.metrics, one) for own, end, one in zip(watched, ends, bits, strict=True)]


def test_with_and_without_a_cache_the_bits_are_the_same(digits, pre, open_cache, computed, warnings):
    direct = fine_tuned(digits, pre, None, 3.0)
    first = fine_tuned(digits, pre, open_cache(), 3.0)
    assert len(computed) == 2
    kept = fine_tuned(digits, pre, open_cache(), 3.0)
    lanes = fine_tuned(digits, pre, open_cache(), 0.3, 3.0)
    assert len(computed) == 2  # read, twice
    assert direct == first == kept == lanes[1:]
    assert lanes[0] != lanes[1]
    assert warnings == []
    (entry,) = open_cache().entries()
    rows = len(digits.source["train"].x)
    assert entry.label.startswith(f"Fisher information (exact, {rows} rows) of Mlp(widths=8, activation=relu), Class")
    direct_arrays = retention_states([BASE], digits, [pre.params])[0]["own"]["importance"]
    arrays = open_cache().get(entry.key).params
    assert arrays.keys() == direct_arrays.keys()
    for path, leaf in direct_arrays.items():
        np.testing.assert_array_equal(arrays[path], leaf, strict=True)


def test_modes_do_what_they_do_for_pretraining(digits, pre, open_cache, computed):
    def counts(mode):
        before = len(computed)
        fine_tuned(digits, pre, open_cache(mode), 3.0)
        pretrain_once([BASE], digits, open_cache(mode))
        return len(computed) - before, len(open_cache().entries())

    assert counts(CacheMode.off) == (1, 0)
    assert counts(CacheMode.read) == (1, 0)
    assert counts(CacheMode.refresh) == (1, 2)
    assert counts(CacheMode.refresh) == (1, 2)
    assert counts(CacheMode.read) == (0, 2)
    assert counts(CacheMode.use) == (0, 2)
    assert counts(CacheMode.off) == (1, 2)


def test_a_damaged_one_is_computed_again(digits, pre, open_cache, computed, warnings):
    before = fine_tuned(digits, pre, open_cache(), 3.0)
    (kept,) = open_cache().entries()
    entry = open_cache().get(kept.key)
    file = open_cache().folder / f"{kept.key}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fine_tuned(digits, pre, open_cache(), 3.0) == before
    assert len(computed) == 2
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    again = open_cache().get(kept.key)
    assert again.facts == entry.facts
    assert {path: leaf.tobytes() for path, leaf in again.params.items()} == {
        path: leaf.tobytes() for path, leaf in entry.params.items()
    }


def test_what_is_cheap_or_of_no_stage_is_not_kept(digits, pre, open_cache):
    retention_states([dataclasses.replace(BASE, retention=L2Sp())], digits, [pre.params], open_cache())
    retention_states([dataclasses.replace(BASE, strategy=Scratch())], digits, [pre.params], open_cache())
    assert open_cache().entries() == []


# --- the command line --------------------------------------------------------------------------------------------


def test_another_process_finds_it(tmp_path):
    folder = tmp_path / "cache"
    small = ["data=digits", "strategy=full", "model.widths=[8]", "pretrain_steps=5", "finetune_steps=6", "log_every=3"]
    small += [f"cache_folder={folder}"]

    def files():
        return {file.name: (file.stat().st_ino, file.read_bytes()) for file in folder.glob("*.safetensors")}

    assert train(tmp_path / "one", *small, "retention=ewc").returncode == 0
    kept = files()
    assert len(kept) == 2  # the pre-training, and what was found out about it
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    done = sweep(tmp_path / "sweep", *small, "retention=ewc,online_ewc", "hydra/launcher=isolated")
    assert done.returncode == 0, done.stderr
    assert files() == kept  # neither written again nor joined by others
    assert all(file.stat().st_mtime > 0 for file in folder.iterdir())  # but used
    assert train(tmp_path / "alone", *small, "retention=ewc", "cache=off").returncode == 0
    found = [tmp_path / "one", tmp_path / "alone", *(path.parent for path in tmp_path.glob("sweep/*/summary.json"))]
    assert len(found) == 4  # of one task, online EWC is EWC
    for job in found[1:]:
        assert rows(job) == rows(found[0])
        assert summary(job)["metrics"] == summary(found[0])["metrics"]
    listed = script("cache", "ls", "--folder", folder)
    assert listed.returncode == 0, listed.stderr
    assert "Fisher information (exact, 721 rows) of Mlp(widths=8, activation=relu)" in listed.stdout
