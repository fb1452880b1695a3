"""Which parameters move: an ordered table of patterns over flat paths, and the split that follows from it.

A line of the table is ``(pattern, multiplier)``. The pattern is a group's name (``head``, ``block_0``, or ``trunk`` for
everything but the head) or a regular expression that must match a whole path (``Dense_1/.*``; so ``Dense_1`` never
takes ``Dense_10`` with it). The multiplier scales the learning rate; :data:`FROZEN` means that the parameter does not
move. The first line that matches decides, every parameter must be matched, and every line must match something.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UserError, did_you_mean, listed

FROZEN = None
Rule = tuple[str, Any]  # (pattern, multiplier or FROZEN)
Groups = Sequence[tuple[str, str]]  # (name, regular expression), bottom to top, the head last


class ParamLabels(NamedTuple):
    """What a table says of a set of parameters."""

    multiplier: dict[str, Any]  # path -> multiplier or FROZEN
    matched: tuple[tuple[str, Any, tuple[str, ...]], ...]  # each line with the paths that it decided

    @property
    def trainable(self) -> tuple[str, ...]:
        """The paths of the parameters that move, in the parameters' order."""
        return tuple(path for path, value in self.multiplier.items() if value is not FROZEN)


def match_rules(table: Iterable[Rule], paths: Iterable[str], groups: Groups, part: bool = False) -> ParamLabels:
    """Apply an ordered table to parameter paths.

    Args:
        table: its lines.
        paths: of the parameters.
        groups: what names of groups in patterns mean.
        part: whether these are only some of the model's parameters, so that a line may find nothing.

    Raises:
        UserError: a line that no parameter was left for, a parameter that no line covers, an invalid regular
            expression, or nothing left to train. The message lists the paths.
    """
    paths = list(paths)
    multiplier: dict[str, Any] = {}
    matched = []
    for pattern, value in table:
        expression = compile_pattern(pattern, groups)
        all_hits = [path for path in paths if expression.fullmatch(path)]
        hits = tuple(path for path in all_hits if path not in multiplier)
        if not all_hits and not part:
            names = ["trunk", *(name for name, _ in groups)]
            raise UserError(
                f"strategy: the pattern '{pattern}' matches no parameter{did_you_mean(pattern, [*names, *paths])}; "
                f"groups: {listed(names)}; parameters: {listed(paths)}"
            )
        multiplier.update(dict.fromkeys(hits, value))
        matched.append((pattern, value, hits))
    left = [path for path in paths if path not in multiplier]
    if left:
        raise UserError(f"strategy: no line of the table covers {listed(left)}; end it with '.*'")
    placement = ParamLabels({path: multiplier[path] for path in paths}, tuple(matched))
    if not placement.trainable and not part:
        raise UserError(f"strategy: the table leaves nothing to train; parameters: {listed(paths)}")
    return placement


def split(params: Mapping[str, Any], trainable: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``(trainable, frozen)`` halves of a flat dict; :func:`join` is the inverse."""
    chosen = set(trainable)
    return (
        {path: value for path, value in params.items() if path in chosen},
        {path: value for path, value in params.items() if path not in chosen},
    )


def join(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the two halves as one flat dict."""
    return {**trainable, **frozen}


def compile_pattern(pattern: str, groups: Groups) -> re.Pattern[str]:
    """Return the regular expression behind a group's name, ``trunk``, or an expression on whole paths.

    Raises:
        UserError: the expression is invalid.
    """
    expressions = dict(groups)
    head = groups[-1][0]
    expressions["trunk"] = "|".join(e for name, e in groups if name != head) or "(?!)"
    try:
        return re.compile(expressions.get(pattern, pattern))
    except re.error as error:
        raise UserError(f"strategy: '{pattern}' is not a regular expression: {error}") from error
