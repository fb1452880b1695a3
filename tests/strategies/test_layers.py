"""Roles of groups, the check of block counts, and the multipliers of layer-wise learning-rate decay."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from src.errors import UserError
from src.models.bert import Bert
from src.models.cnn import Cnn
from src.models.resnet import Resnet
from src.models.vit import Vit
from src.strategies import layer_scales
from src.strategies.blocks import check_num_blocks, group_roles
from tests.strategies.networks import BERT


@pytest.mark.parametrize(
    ("names", "bottom", "blocks", "top"),
    [
        (("embeddings", "a", "head"), ("embeddings",), ("a",), ("head",)),
        (("stem", "a", "b", "head"), ("stem",), ("a", "b"), ("head",)),
        (("a", "stem", "head"), (), ("a", "stem"), ("head",)),  # a bottom group is the first one
        (("a", "b", "pooler", "head"), (), ("a", "b"), ("head", "pooler")),
        (("embeddings", "pooler", "head"), ("embeddings",), (), ("head", "pooler")),
        (("stem", "head"), ("stem",), (), ("head",)),
        (("classifier",), (), (), ("classifier",)),  # the last group is the head, whatever its name
    ],
)
def test_roles_of_groups(names, bottom, blocks, top):
    assert group_roles([(name, f"{name}/.*") for name in names]) == (bottom, blocks, top)


@pytest.mark.parametrize(
    ("model", "bottom", "blocks", "top"),
    [
        (Bert(layers=3), ("embeddings",), 3, ("head", "pooler")),
        (Vit(layers=2), ("embeddings",), 2, ("head",)),
        (Resnet(depth=18), ("stem",), 8, ("head",)),
        (Cnn((4, 4)), (), 2, ("head",)),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "groups") else "",
)
def test_roles_in_the_models(model, bottom, blocks, top):
    assert group_roles(model.groups()) == (bottom, tuple(f"block_{i}" for i in range(blocks)), top)


def test_a_number_of_blocks_up_to_all_is_allowed():
    for wanted in range(3):
        check_num_blocks("blocks", wanted, ("a", "b"))
    with pytest.raises(UserError, match=r"^strategy\.top is 3; allowed: 0 to 2"):
        check_num_blocks("top", 3, ("a", "b"))


def test_layer_scales_are_timm_s():
    """``timm.optim.param_groups_layer_decay``, ViT of 12 blocks, 0.75: patches .75**13, block i .75**(12-i), head 1."""
    scales = layer_scales(14, 0.75)
    assert scales == [float(Fraction(3, 4) ** n) for n in range(13, -1, -1)]  # exact: 3**13 has 21 bits
    assert scales[0] == pytest.approx(0.02375726, abs=1e-8)
    assert layer_scales(BERT.groups(), 0.75) == scales


@pytest.mark.parametrize(("groups", "expected"), [(0, []), (1, [1.0]), (("a", "b", "c"), [0.25, 0.5, 1.0])])
def test_layer_scales_of_few_groups(groups, expected):
    assert layer_scales(groups, 0.5) == expected


def test_layer_scales_are_floats_also_of_a_whole_decay():
    assert all(isinstance(scale, float) for scale in layer_scales(3, 1))
    assert layer_scales(5, 1 / 2.6)[0] == pytest.approx(1 / 45.6976)  # ULMFiT: lr / 2.6**4 for the first of five


def test_layer_scales_of_a_traced_decay():
    """One program for every decay, against float64."""
    scales = jax.jit(lambda decay: layer_scales(14, decay))
    for decay in (0.5, 0.9):
        np.testing.assert_allclose(scales(decay), np.float64(decay) ** np.arange(13, -1, -1), rtol=3e-6)
    assert scales._cache_size() == 1
