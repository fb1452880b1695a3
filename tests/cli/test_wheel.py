"""A wheel, installed where the checkout is not on the path: it installs ``thaw``, and ``thaw`` runs a sweep."""

import json
import os
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import version

import pytest

import src
from tests.commands import ROOT

pytest.importorskip("hatchling", reason="building a wheel needs hatchling: make install-dev")


def execute(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    execute(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel, whose other packages are those of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    execute(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    execute(*pip, "install", "--no-index", "--no-deps", wheel)
    purelib = execute(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # The .pth files of a folder that is added like this are not read, so an editable installation there has no effect.
    paths = [path for path in sys.path if path.endswith("site-packages")]
    with open(f"{purelib}/running.pth", "w") as file:  # noqa: PTH123
        file.write("\n".join(paths))
    return folder / "bin"


def test_a_wheel_contains_one_package_and_the_launcher(wheel):
    assert wheel.name.startswith(f"thaw_jax-{src.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"thaw", "hydra_plugins", f"thaw_jax-{src.__version__}.dist-info"}
    assert "hydra_plugins/__init__.py" not in names
    files = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".typed")]
    assert {f"thaw/{path.relative_to(ROOT / 'src').as_posix()}" for path in files} <= set(names)
    configs = (ROOT / "conf").rglob("*.yaml")
    assert {f"thaw/{path.relative_to(ROOT).as_posix()}" for path in configs} <= set(names)


@pytest.mark.parametrize("launcher", [pytest.param("fused", marks=pytest.mark.slow), "isolated"])
def test_thaw_runs_a_sweep_from_any_folder(environment, tmp_path, launcher):
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    grid, jobs = {"fused": (["strategy=frozen,full", "lr_fine=0.01,0.1"], 4), "isolated": (["seed=0,1"], 2)}[launcher]
    command = (environment / "thaw", "-m", f"hydra/launcher={launcher}", *grid, "name=study", "finetune_steps=20")
    execute(*command, cwd=tmp_path, env=clean)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/study/*/summary.json")]
    assert [record["status"] for record in records] == ["completed"] * jobs
    assert len(list(tmp_path.glob("outputs/sweeps/study/*/wandb/offline-run-*/*.wandb"))) == len(records)
    assert list((tmp_path / "outputs/cache").glob("*.stage"))
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_only_thaw_can_be_imported(environment, tmp_path):
    code = """
import importlib.metadata, importlib.util, json, thaw
from thaw.recipe import pretrain_then_finetune
print(json.dumps([thaw.__version__, importlib.metadata.version("thaw-jax"), bool(importlib.util.find_spec("src"))]))
"""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = json.loads(execute(environment / "python", "-c", code, cwd=tmp_path, env=clean))
    assert found == [src.__version__, src.__version__, False]


def test_a_checkout_has_both_names():
    thaw, environment = import_module("thaw"), import_module("thaw.environment")
    assert thaw.__version__ == src.__version__ == version("thaw-jax")
    assert environment.PACKAGE == "thaw"
