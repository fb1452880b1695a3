"""Job ids: which keys change them, which do not."""

from pathlib import Path

from omegaconf import OmegaConf, open_dict

from src.config.identity import job_folder, job_id, resolved
from tests.config.test_config import composed


def identity(*overrides):
    return job_id(resolved(composed(*overrides)))


def test_keys_that_change_numbers_change_the_id():
    jobs = ["seed=1", "lr_fine=0.1", "strategy=full", "optimizer.clip_norm=1", "data.split_seed=1", "model.widths=[9]"]
    assert len({identity(), *(identity(job) for job in jobs)}) == len(jobs) + 1


def test_names_trackers_and_reports_do_not_change_the_id():
    for same in ("tracker=disk", "name=study", "report=crossover", "progress=false", "seed=0", "lr_fine=5e-2"):
        assert identity(same) == identity()


def test_the_id_is_the_same_in_another_process_and_folder(tmp_path, monkeypatch):
    before = identity()
    monkeypatch.chdir(tmp_path)
    assert Path.cwd() == tmp_path
    assert identity() == before == "291758cc6586b4bb"  # if it changes, jobs of earlier versions run again: tell users


def test_a_folder_s_name_is_readable_and_needs_no_quoting():
    cfg = composed("lr_fine=0.1", "strategy=masked", "strategy.trainable=[Dense_1/.*]")
    with open_dict(cfg):
        cfg.hydra = OmegaConf.create(
            {"overrides": {"task": ["strategy=masked", "lr_fine=0.1", "strategy.trainable=[Dense_1/.*]", "name=x"]}}
        )
    name = job_folder(cfg)
    assert name.startswith("lr_fine_0.1_strategy.trainable_Dense_1_.")
    assert name.endswith(job_id(resolved(cfg))[:10])
    assert not set(name) & set(" =,/[]*'\"$")
