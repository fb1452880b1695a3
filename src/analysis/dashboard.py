"""The same comparison as a W&B workspace: bars, learning rates, parallel coordinates and loss curves."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from ..errors import UserError

STRATEGY = "strategy.name"  # configuration keys as the runs log them


def build_workspace(project: str, entity: str = "", group: str | None = None, name: str = "Fine-tuning") -> Any:
    """Describe the workspace; needs neither a login nor a network.

    Args:
        project: W&B project that holds the runs.
        entity: user or team; "" is the default of whoever is logged in.
        group: show only the runs of this group, such as one sweep.
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
            ws.Section(name="Which strategy, which learning rate", panels=comparison_panels(), is_open=True),
            ws.Section(name="Loss curves by strategy", panels=curve_panels(), is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),  # a panel shows 10 by default, fewer than most sweeps have
        runset_settings=ws.RunsetSettings(filters=ws.And(ws.Metric("Group") == group) if group else ""),
    )


def comparison_panels() -> list[Any]:
    """Return the panels over final metrics."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    columns = [
        (wr.Config(STRATEGY), "strategy"),
        (wr.Config("lr_fine"), "fine-tuning learning rate"),
        (wr.Config("seed"), "seed"),
        (wr.SummaryMetric("val_loss"), "validation loss"),
        (wr.SummaryMetric("test_loss"), "test loss"),
    ]
    return [
        wr.BarPlot(
            title="Test loss by strategy (mean over runs, bars: smallest to largest)",
            metrics=[wr.SummaryMetric("test_loss")],
            groupby=wr.Config(STRATEGY),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        ),
        wr.ScatterPlot(
            title="Validation loss against the learning rate",
            x=wr.Config("lr_fine"),
            y=wr.SummaryMetric("val_loss"),
            log_x=True,
        ),
        wr.ParallelCoordinatesPlot(
            title="Every run",
            columns=[
                ParallelCoordinatesPlotColumn(metric, display_name=title, log=title.endswith("rate") or None)
                for metric, title in columns
            ],
        ),
    ]


def curve_panels() -> list[Any]:
    """Return the panels over steps, one a stage, grouped by strategy."""
    import wandb_workspaces.reports.v2 as wr

    stages = {"pretrain": ("Pre-training", "loss"), "finetune": ("Fine-tuning", "val_loss")}
    return [
        wr.LinePlot(
            title=f"{title} by strategy",
            x=f"{stage}/step",
            y=[f"{stage}/{value}"],
            groupby=wr.Config(STRATEGY),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            title_x="updates",
            title_y="validation loss" if value == "val_loss" else "loss",
        )
        for stage, (title, value) in stages.items()
    ]


def workspace_json(workspace: Any) -> str:
    """Return what would be sent to W&B, as indented JSON."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=2)


def save_workspace(workspace: Any) -> str:
    """Create the workspace on W&B and return its address.

    Raises:
        UserError: nobody is logged in, or the server refused.
    """
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        return workspace.save().url
    except (wandb.Error, ValueError, OSError) as error:
        raise UserError(f"W&B did not take the workspace: {' '.join(str(error).split())}") from error
