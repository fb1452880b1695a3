"""Strategies that freeze by the block: exactly which leaves move, on three networks, and what is refused."""

import pytest

from src.config.schema import typed
from src.errors import UserError
from src.strategies.blocks import FreezeBottom, FreezeMiddle, TopK
from src.strategies.full import Scratch
from tests.strategies.networks import BERT, MLP, NETWORKS, moving, where

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


@EVERY_NETWORK
def test_freeze_bottom_freezes_what_lies_below(name):
    groups, paths, blocks = NETWORKS[name]
    for frozen in range(1, blocks + 1):
        assert moving(FreezeBottom(frozen).table(groups), name) == where(paths, lambda d, k=frozen: d > k)
    assert moving(FreezeBottom(0).table(groups), name) == set(paths)


@EVERY_NETWORK
def test_top_k_moves_what_lies_above(name):
    groups, paths, blocks = NETWORKS[name]
    for top in range(blocks + 1):
        expected = where(paths, lambda d, k=top: d > blocks - k)
        assert moving(TopK(top).table(groups), name) == expected
        assert not any(path.startswith(("embeddings", "conv_stem", "bn_stem")) for path in expected)


@EVERY_NETWORK
def test_freeze_middle_moves_both_ends(name):
    groups, paths, blocks = NETWORKS[name]
    for bottom in range(blocks):
        for top in range(blocks - bottom):
            expected = where(paths, lambda d, b=bottom, t=top: d > blocks - t or (b and d <= b))
            assert moving(FreezeMiddle(bottom, top).table(groups), name) == expected


def test_layer_1_is_not_layer_10():
    """The trap of prefixes: by literal names, not by the expressions of the groups."""
    groups, paths, _ = NETWORKS["bert"]
    still = set(paths) - moving(FreezeBottom(1).table(groups), "bert")
    assert {path.split("/")[1] for path in still if path.startswith("encoder")} == {"layer_1"}
    assert {path.split("/")[0] for path in still} == {"encoder", "embeddings"}
    top = moving(TopK(3).table(groups), "bert")
    assert {path.split("/")[1] for path in top if path.startswith("encoder")} == {"layer_10", "layer_11", "layer_12"}


def test_batch_statistics_stay_with_their_block():
    groups, _, _ = NETWORKS["resnet"]
    statistics = {path for path in moving(TopK(1).table(groups), "resnet") if path.endswith(("mean", "var"))}
    assert statistics == {f"stage_3/block_{i}/bn/{leaf}" for i in range(2) for leaf in ("mean", "var")}


@pytest.mark.parametrize(
    ("strategy", "groups", "message"),
    [
        (FreezeBottom(13), BERT, "strategy.blocks is 13; allowed: 0 to 12, the number of the model's blocks"),
        (TopK(7), MLP, "strategy.blocks is 7; allowed: 0 to 6, the number of the model's blocks"),
        (FreezeMiddle(7, 0), MLP, "strategy.bottom is 7; allowed: 0 to 6"),
        (FreezeMiddle(0, 7), MLP, "strategy.top is 7; allowed: 0 to 6"),
        (
            FreezeMiddle(4, 2),
            MLP,
            "strategy.bottom is 4 and strategy.top is 2; allowed: together less than 6, the number of the model",
        ),
    ],
)
def test_more_blocks_than_there_are(strategy, groups, message):
    with pytest.raises(UserError, match=f"^{message}"):
        strategy.table(groups.groups())


@pytest.mark.parametrize(("cls", "key"), [(FreezeBottom, "blocks"), (TopK, "blocks"), (FreezeMiddle, "top")])
def test_a_negative_number_of_blocks_is_refused(cls, key):
    with pytest.raises(UserError, match=f"strategy.{key} is -1; allowed: a whole number >= 0"):
        typed(cls, {key: -1}, "strategy")


@EVERY_NETWORK
def test_scratch_moves_everything_and_asks_for_no_pretraining(name):
    groups, paths, _ = NETWORKS[name]
    assert moving(Scratch().table(groups), name) == set(paths)
    assert not Scratch.pretrained
    assert FreezeBottom.pretrained
