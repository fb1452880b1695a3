"""Evaluation of one finished run: the target task, and the source task after fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..models.base import head_paths
from ..training.calls import Evaluate, Predict, Steps
from ..training.feature_cache import Inputs
from ..types import Params
from .finetune import Finetuned
from .resolve import ResolvedRun


def evaluate_target(run: ResolvedRun, fine: Finetuned) -> Steps[dict[str, float]]:
    """Return the metrics of every part of the target task, ``val_loss`` and so on.

    For texts also the scores that need the words behind the numbers, such as ``val_entity_f1``.
    """
    stage, params, inputs = fine.last
    metrics: dict[str, float] = yield Evaluate(stage, params, inputs)
    if run.data.scored:
        parts = tuple(name for name in ("val", "test") if name in inputs.splits)
        outputs: dict[str, np.ndarray] = yield Predict(stage, params, inputs, parts)
        for name in parts:
            metrics |= {f"{name}_{key}": value for key, value in run.data.scores(name, outputs[name]).items()}
    return metrics


def evaluate_source(run: ResolvedRun, pretrained: Params, fine: Finetuned) -> Steps[dict[str, float]]:
    """Return the source task's metrics after fine-tuning: ``source_after_loss`` and so on.

    They are computed with the source's own head where fine-tuning replaced it. For a retention method that isolates
    the tasks, without the parameters that the strategy added, and with the source's head.
    """
    source, data = run.pretrain_stage, run.data.source
    if not run.starts_from_source or "test" not in data:
        return {}
    names = {"test": "source_after", "val": "source_val_after"}
    parts = {names[part]: data[part] for part in names if part in data}
    isolated, stage = run.recipe.retention.isolates, run.phases[-1]
    tuned = replace(stage, model=source.model, outputs=source.outputs, objective=source.objective)
    own_head = head_paths(source.model, pretrained) if run.replaces_head or isolated else ()
    adapters = () if isolated else stage.strategy.adapter_params
    params = {
        path: leaf
        for path, leaf in fine.fit.params.items()
        if path in pretrained or path.rpartition("/")[2] in adapters
    }
    params |= {path: pretrained[path] for path in own_head}
    return (yield Evaluate(source if isolated else tuned, params, Inputs(parts)))
