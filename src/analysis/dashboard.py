"""A W&B workspace that compares strategies: bars, learning rates, parallel coordinates and loss curves."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from ..errors import UserError


def build_workspace(project: str, entity: str = "", group: str | None = None, name: str = "Fine-tuning") -> Any:
    """Return a ``wandb_workspaces.workspaces.Workspace``, without a login or a network.

    ``entity`` is a user or team, "" the logged-in user's default; ``group`` (usually a sweep) limits the runs.

    Raises:
        UserError: the package wandb-workspaces is not installed.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("the dashboard needs the extra 'dashboard': pip install 'thaw-jax[dashboard]'")
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    strategy, rate = wr.Config("strategy.name"), wr.Config("lr_fine")  # keys in the configuration of the runs
    loss, test = wr.SummaryMetric("val_loss"), wr.SummaryMetric("test_loss")
    columns = [
        Column(strategy, display_name="strategy"),
        Column(rate, display_name="fine-tuning learning rate", log=True),
        Column(wr.Config("seed"), display_name="seed"),
        Column(loss, display_name="validation loss"),
        Column(test, display_name="test loss"),
    ]
    grouped = {"groupby": strategy, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    title = "Test loss by strategy (mean over runs, bars: smallest to largest)"
    finals = [
        wr.BarPlot(title=title, metrics=[test], **grouped),
        wr.ScatterPlot(title="Validation loss against the learning rate", x=rate, y=loss, log_x=True),
        wr.ParallelCoordinatesPlot(title="Every run", columns=columns),
    ]
    stages = (("pretrain", "Pre-training", "loss", "loss"), ("finetune", "Fine-tuning", "val_loss", "validation loss"))
    curves = [
        wr.LinePlot(
            title=f"{title} by strategy",
            x=f"{stage}/step",
            y=[f"{stage}/{value}"],
            title_x="updates",
            title_y=label,
            **grouped,
        )
        for stage, title, value, label in stages
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Strategies and learning rates", panels=finals, is_open=True),
            ws.Section(name="Loss curves by strategy", panels=curves, is_open=True),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),  # the default of 10 is less than most sweeps have
        runset_settings=ws.RunsetSettings(filters=ws.And(ws.Metric("Group") == group) if group else ""),
    )


def workspace_json(workspace: Any) -> str:
    """Return the JSON that would be sent to W&B, indented."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=2)


def save_workspace(workspace: Any) -> str:
    """Create the workspace on W&B and return its URL; a :class:`UserError` has the server's reason to refuse it."""
    import wandb

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        return workspace.save().url
    except (wandb.Error, ValueError, OSError) as error:
        raise UserError(f"W&B did not accept the workspace: {' '.join(str(error).split())}") from error
