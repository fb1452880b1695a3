"""A strategy of one's own is one file and one YAML: the example of docs/strategies.md, run."""

import re
import shutil

from tests import commands
from tests.commands import ROOT, rows, summary, train


def test_the_documented_strategy_works(tmp_path, monkeypatch):
    project = tmp_path / "a project with a space"
    for part in ("src", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs/strategies.md").read_text()
    code, yaml = (re.search(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "yaml"))
    assert code
    assert yaml
    (project / "src/strategies/head_and_biases.py").write_text(code[1])
    (project / "conf/strategy/head_and_biases.yaml").write_text(yaml[1])
    monkeypatch.setattr(commands, "ROOT", project)
    done = train(tmp_path / "run", "strategy=head_and_biases", "strategy.bias_lr_scale=0.5")
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["parameters"] == {"trainable": 9 + 8, "total": 89}
    assert "0.5 x lr_fine" in done.stdout
    assert rows(tmp_path / "run")
    wrong = train(tmp_path / "wrong", "strategy=head_and_biases", "strategy.bias_lr_scale=0")
    assert "strategy.bias_lr_scale is 0.0; allowed: a finite number > 0" in wrong.stderr
