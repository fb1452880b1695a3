"""The two stages of one run, for tests that look at one of them."""

from src.recipe.run import finetune, initial_params, pretrain
from src.training.stage import Stage
from src.training.vectorize import Lanes
from src.types import ignore


def pretrained(recipe, data):
    """Return the parameters after pre-training."""
    return pretrain([recipe], data)[0].params


def finetuned(recipe, data, params, watch=ignore):
    """Return what fine-tuning ends with."""
    return finetune([recipe], data, [params], [watch]).fits[0]


def first_params(stage: Stage, data):
    """Return a stage's initial parameters."""
    return initial_params([stage], data, Lanes.one)[0]
