"""Which parameters are trained: an ordered table of rules over flat paths, and the split into trainable and frozen.

A rule is ``(pattern, lr_scale)``. The pattern is a group's name (``head``, ``block_0``, or ``trunk`` for everything but
the head) or a regular expression that must match a whole path (``Dense_1/.*``). ``lr_scale`` multiplies the learning
rate; :data:`FROZEN` freezes the parameter. The first matching rule decides. Every parameter must be matched, and every
rule must match a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UserError, did_you_mean, listed

FROZEN = None
Rule = tuple[str, Any]  # (pattern, lr_scale or FROZEN)
Groups = Sequence[tuple[str, str]]  # (name, regular expression), bottom to top, the head last


class ParamLabels(NamedTuple):
    """The learning-rate scale of every parameter, in the role of ``param_labels`` in ``optax.multi_transform``."""

    lr_scale: dict[str, Any]  # path -> learning-rate scale or FROZEN
    matched: tuple[tuple[str, Any, tuple[str, ...]], ...]  # each rule with the paths that it decided

    @property
    def trainable(self) -> tuple[str, ...]:
        """The paths of the trained parameters, in the parameters' order."""
        return tuple(path for path, value in self.lr_scale.items() if value is not FROZEN)


def match_rules(table: Iterable[Rule], paths: Iterable[str], groups: Groups, part: bool = False) -> ParamLabels:
    """Apply an ordered table to parameter paths. ``part``: whether these are some of the model's only.

    Raises:
        UserError: a rule matches no parameter (unless ``part``), a parameter matches no rule, an invalid regular
            expression, or nothing is trained. The message lists the paths.
    """
    paths = list(paths)
    lr_scale: dict[str, Any] = {}
    matched = []
    for pattern, value in table:
        expression = compile_pattern(pattern, groups)
        all_hits = [path for path in paths if expression.fullmatch(path)]
        hits = tuple(path for path in all_hits if path not in lr_scale)
        if not all_hits and not part:
            names = ["trunk", *(name for name, _ in groups)]
            raise UserError(
                f"strategy: the pattern '{pattern}' matches no parameter{did_you_mean(pattern, [*names, *paths])}; "
                f"groups: {listed(names)}; parameters: {listed(paths)}"
            )
        lr_scale.update(dict.fromkeys(hits, value))
        matched.append((pattern, value, hits))
    left = [path for path in paths if path not in lr_scale]
    if left:
        raise UserError(f"strategy: no rule of the table covers {listed(left)}; end it with '.*'")
    labels = ParamLabels({path: lr_scale[path] for path in paths}, tuple(matched))
    if not labels.trainable and not part:
        raise UserError(f"strategy: the table leaves nothing to train; parameters: {listed(paths)}")
    return labels


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
    """Return the regular expression of a pattern: a group's name, ``trunk``, or an expression on whole paths."""
    expressions = dict(groups)
    head = groups[-1][0]
    expressions["trunk"] = "|".join(e for name, e in groups if name != head) or "(?!)"
    try:
        return re.compile(expressions.get(pattern, pattern))
    except re.error as error:
        raise UserError(f"strategy: '{pattern}' is not a regular expression: {error}") from error
