"""The pattern table: first match wins, everything is covered, whole paths only."""

import pytest

from src.errors import UserError
from src.optim.partition import FROZEN, join, match_rules, split

PATHS = ["Dense_0/kernel", "Dense_1/kernel", "Dense_10/kernel", "Dense_10/bias"]
GROUPS = (("block_0", "Dense_0/.*"), ("block_1", "Dense_1/.*"), ("head", "Dense_10/.*"))


def test_the_first_line_that_matches_decides():
    placed = match_rules((("Dense_1/.*", 0.5), ("Dense_.*", 1.0)), PATHS, GROUPS)
    assert placed.lr_scale == dict(zip(PATHS, [1.0, 0.5, 1.0, 1.0], strict=True))
    assert [hits for _, _, hits in placed.matched] == [
        ("Dense_1/kernel",),
        ("Dense_0/kernel", "Dense_10/kernel", "Dense_10/bias"),
    ]


def test_a_pattern_matches_whole_paths():
    """``Dense_1/.*`` must not take ``Dense_10`` with it, nor ``Dense_1`` its own children."""
    placed = match_rules((("Dense_1/.*", 1.0), (".*", FROZEN)), PATHS, GROUPS)
    assert placed.trainable == ("Dense_1/kernel",)
    with pytest.raises(UserError, match="'Dense_1' matches no parameter"):
        match_rules((("Dense_1", 1.0), (".*", FROZEN)), PATHS, GROUPS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("head", PATHS[2:]), ("block_1", PATHS[1:2]), ("trunk", PATHS[:2])],
)
def test_groups_are_patterns_too(name, expected):
    assert list(match_rules(((name, 1.0), (".*", FROZEN)), PATHS, GROUPS).trainable) == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((("Dnse_0/.*", 1.0), (".*", FROZEN)), "matches no parameter.*Dense_0/kernel"),
        ((("head", 1.0),), "no rule of the table covers Dense_0/kernel, Dense_1/kernel"),
        (((".*", FROZEN),), "nothing to train"),
        ((("(", 1.0),), "not a regular expression"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        match_rules(table, PATHS, GROUPS)


def test_join_is_the_inverse_of_split():
    params = {path: i for i, path in enumerate(PATHS)}
    trainable, frozen = split(params, PATHS[1:3])
    assert list(trainable) == PATHS[1:3]
    assert join(trainable, frozen) == params
