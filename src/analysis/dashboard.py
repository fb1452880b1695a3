"""A W&B workspace that compares strategies: bars, learning rates, parallel coordinates and loss curves."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from ..errors import UserError

STRATEGY = "strategy.name"  # key in the configuration of the runs


def build_workspace(project: str, entity: str = "", group: str | None = None, name: str = "Fine-tuning") -> Any:
    """Describe the workspace, without a login or a network.

    Args:
        project: W&B project of the runs.
        entity: user or team; "" is the default of the logged-in user.
        group: show only the runs of this group, usually a sweep.
        name: title of the workspace.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        UserError: the package wandb-workspaces is not installed.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("the dashboard needs the extra 'dashboard': pip install 'thaw-jax[dashboard]'")
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Strategies and learning rates", panels=comparison_panels(), is_open=True),
            ws.Section(name="Loss curves by strategy", panels=curve_panels(), is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),  # the default of 10 is less than most sweeps have
        runset_settings=ws.RunsetSettings(filters=ws.And(ws.Metric("Group") == group) if group else ""),
    )


def comparison_panels() -> list[Any]:
    """Return the panels of final metrics."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    loss, rate, test = wr.SummaryMetric("val_loss"), wr.Config("lr_fine"), wr.SummaryMetric("test_loss")
    columns = [
        Column(wr.Config(STRATEGY), display_name="strategy"),
        Column(rate, display_name="fine-tuning learning rate", log=True),
        Column(wr.Config("seed"), display_name="seed"),
        Column(loss, display_name="validation loss"),
        Column(test, display_name="test loss"),
    ]
    grouped = {"groupby": wr.Config(STRATEGY), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    title = "Test loss by strategy (mean over runs, bars: smallest to largest)"
    return [
        wr.BarPlot(title=title, metrics=[test], **grouped),
        wr.ScatterPlot(title="Validation loss against the learning rate", x=rate, y=loss, log_x=True),
        wr.ParallelCoordinatesPlot(title="Every run", columns=columns),
    ]


def curve_panels() -> list[Any]:
    """Return a panel of loss curves for each stage, grouped by strategy."""
    import wandb_workspaces.reports.v2 as wr

    grouped = {"groupby": wr.Config(STRATEGY), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    panels = (("pretrain", "Pre-training", "loss", "loss"), ("finetune", "Fine-tuning", "val_loss", "validation loss"))
    return [
        wr.LinePlot(
            title=f"{title} by strategy",
            x=f"{stage}/step",
            y=[f"{stage}/{value}"],
            title_x="updates",
            title_y=label,
            **grouped,
        )
        for stage, title, value, label in panels
    ]


def workspace_json(workspace: Any) -> str:
    """Return the JSON that would be sent to W&B, indented."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=2)


def save_workspace(workspace: Any) -> str:
    """Create the workspace on W&B and return its URL.

    Raises:
        UserError: nobody is logged in, or the server refused.
    """
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        return workspace.save().url
    except (wandb.Error, ValueError, OSError) as error:
        raise UserError(f"W&B did not accept the workspace: {' '.join(str(error).split())}") from error
