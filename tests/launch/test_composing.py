"""Cached composition against Hydra's: the same values, the same errors, the same bytes in ``.hydra``."""

import copy

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import ConfigCompositionException
from hydra.types import HydraContext, RunMode
from omegaconf import open_dict

from src.config.identity import job_id, register_resolvers, resolved
from src.config.schema import CONF, register_schema
from src.launch.composing import CachingConfigLoader

JOBS = [
    ["lr_fine=0.1", "strategy=frozen", "seed=0"],
    ["lr_fine=1", "strategy=frozen", "seed=7"],
    ["lr_fine=1e-3", "strategy=discriminative", "strategy.decay=1"],
    ["lr_fine=1e-3", "strategy=discriminative", "strategy.decay=0.5"],
    ["batch_size=null", "optimizer.clip_norm=3"],
    ["batch_size=16", "optimizer.clip_norm=null"],
    ["model.activation=tanh", "progress=false", "name='0123'"],
    ["model.activation=gelu", "progress=true", "name=yes"],
    ["model.widths=[8,4]", "data=synthetic", "data.similarity=1"],
    ["model.widths=[8,4]", "data=synthetic", "data.similarity=0.25"],
    ["optimizer.weight_decay=${lr_fine}", "lr_fine=0.3"],
    ["optimizer.weight_decay=${lr_fine}", "lr_fine=0.4"],
    ["experiment=digits", "lr_pre=0.01"],
    ["experiment=digits", "lr_pre=0.02"],
    ["tracker.project='a project with a name that is so long that YAML will fold it at a space or two'"],
    ["tracker.project=x", "lr_fine=0.2"],
]


@pytest.fixture
def loaded(tmp_path):
    register_resolvers()
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        folder = tmp_path / "a sweep with spaces in its name, which is long enough that YAML folds it somewhere"
        master = loader.load_configuration(
            "config", [f"hydra.sweep.dir='{folder}'", "tracker=disk"], run_mode=RunMode.MULTIRUN
        )
        yield loader, master, folder


def test_the_same_bytes_as_hydra_s_own_launcher(loaded):
    loader, master, folder = loaded
    composer = CachingConfigLoader(loader)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    for number, job in enumerate(JOBS):
        cfg = loader.load_sweep_config(copy.deepcopy(master), list(job))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(cfg)
        done = run_job(
            hydra_context=context,
            task_function=lambda _: 0.0,
            config=cfg,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )
        assert done.return_value == 0.0
        (written,) = {path.parent for path in folder.glob("*/.hydra")} - {p.parent for p in folder.glob("*/seen")}
        (written / "seen").touch()
        composed = composer.compose(master, job)
        assert composed.config == resolved(cfg)
        assert job_id(composed.config) == job_id(resolved(cfg))
        for name, text in composed.composition.yaml_files(composed, number, str(written)).items():
            assert text == (written / ".hydra" / name).read_text(), (job, name)


def test_hydra_composes_once_a_structure(loaded, monkeypatch):
    loader, master, _ = loaded
    composer = CachingConfigLoader(loader)
    calls = []
    original = composer.compose_fully
    monkeypatch.setattr(composer, "compose_fully", lambda *a: calls.append(a) or original(*a))
    for strategy in ("frozen", "full"):
        for rate in range(1, 30):
            composed = composer.compose(master, [f"lr_fine={rate / 100}", f"strategy={strategy}"])
            assert composed.config["lr_fine"] == rate / 100
            assert composed.config["strategy"]["name"] == strategy
    assert len(calls) == 2


@pytest.mark.parametrize("job", [["lr_fine=abc"], ["seed=1.5"], ["model.nothing=1"], ["lr_fine=0.1", "batch_size=two"]])
def test_the_same_errors(loaded, job):
    loader, master, _ = loaded
    composer = CachingConfigLoader(loader)
    composer.compose(master, [line.split("=")[0] + "=1" for line in job if "nothing" not in line])
    with pytest.raises(ConfigCompositionException) as ours:
        composer.compose(master, job)
    with pytest.raises(ConfigCompositionException) as theirs:
        loader.load_sweep_config(master, job)
    assert str(ours.value) == str(theirs.value)
    assert str(ours.value.__cause__) == str(theirs.value.__cause__)
