"""The two stages of one run, for tests that look at one of them."""

from src.engine.lanes import Lanes
from src.engine.loop import ignore
from src.engine.stage import Stage
from src.recipe import finetune, initial_params, pretrain


def pretrained(recipe, data):
    """Return the parameters after pre-training."""
    return pretrain([recipe], data)[0].params


def finetuned(recipe, data, params, watch=ignore):
    """Return what fine-tuning ends with."""
    return finetune([recipe], data, [params], [watch]).fits[0]


def first_params(stage: Stage, data):
    """Return a stage's initial parameters."""
    return initial_params([stage], data, Lanes.one)[0]
