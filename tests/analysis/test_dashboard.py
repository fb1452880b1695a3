import importlib.util
import json

import pytest

from src.analysis.dashboard import build_workspace, workspace_json
from src.errors import UserError

# wandb-workspaces still uses what pydantic 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


def panels(text: str) -> dict[str, dict]:
    sections = json.loads(text)["spec"]["section"]["panelBankConfig"]["sections"]
    return {panel["config"]["chartTitle"]: panel for section in sections for panel in section["panels"]}


def test_the_panels_ask_for_the_keys_that_are_logged():
    found = panels(workspace_json(build_workspace("thaw")))
    assert [panel["viewType"] for panel in found.values()] == [
        "Bar Chart",
        "Scatter Plot",
        "Parallel Coordinates Plot",
        "Run History Line Plot",
        "Run History Line Plot",
    ]
    curve = found["Fine-tuning by strategy"]["config"]
    assert (curve["xAxis"], curve["metrics"]) == ("finetune/step", ["finetune/val_loss"])
    assert curve["groupBy"] == "strategy.value.name"  # W&B's own spelling of config.strategy.name
    scatter = found["Validation loss against the learning rate"]["config"]
    assert (scatter["xAxis"], scatter["yAxis"], scatter["xAxisLogScale"]) == (
        "config:lr_fine.value",
        "summary:val_loss",
        True,
    )
    columns = [column["accessor"] for column in found["Every run"]["config"]["columns"]]
    assert columns == [
        "config:strategy.value.name",
        "config:lr_fine.value",
        "config:seed.value",
        "summary:val_loss",
        "summary:test_loss",
    ]


def test_a_group_filters_the_runs():
    spec = json.loads(workspace_json(build_workspace("thaw", "team", "sweep-1", "Mine")))
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "thaw", "Mine")
    (condition,) = spec["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (condition["key"]["name"], condition["op"], condition["value"]) == ("group", "=", "sweep-1")


def test_without_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb_workspaces" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"thaw-jax\[dashboard\]"):
        build_workspace("thaw")
