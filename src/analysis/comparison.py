"""Compare the arms of a sweep: tune each arm on validation data, report it on test data, pair differences by seed.

An *arm* is one of the alternatives, usually a strategy. Its tuned values (usually the learning rate) are those with the
best mean validation metric over seeds; the reported test metric played no part in that choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from ..errors import UserError, did_you_mean, listed
from .export import varies
from .formatting import count_of, in_words, show, show_choice, show_interval, too_few
from .statistics import ConfidenceInterval, mean_interval, paired_difference

LOWER = {"loss", "mse", "rmse", "mae", "nll", "error", "perplexity", "ppl", "bpd", "forgetting"}
HIGHER = {"accuracy", "acc", "r2", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "transfer", "match"}
# Test metrics that a task is judged by: the first that its jobs recorded, or else the loss (regression).
JUDGED = ("test_entity_f1", "test_exact_match", "test_accuracy", "test_macro_f1")
LOST = ("diverged", "failed", "unfinished")
HOW = (
    "For each arm at each level, {tuned} is chosen by the mean {select} over seeds; {metric} is reported at that "
    "choice. ± is the 95 % Student-t interval over seeds. Differences are paired by seed; \\* marks an interval that "
    "excludes 0 (not corrected for the number of comparisons). Identical differences have no interval."
)


@dataclass(frozen=True)
class ComparisonSpec:
    """What to compare and how; names are those of columns."""

    metric: str  # reported
    select: str  # chooses the tuned values
    higher: bool  # whether a higher `metric` is better
    select_higher: bool  # whether a higher `select` is better
    tune: tuple[str, ...]  # columns whose values are chosen for each arm
    factors: tuple[str, ...]  # columns whose values define the arms
    pair: str | None  # column that pairs the jobs of two arms, usually the seed
    reference: str | None = None  # label of the arm that the others are compared with


@dataclass(frozen=True)
class Arm:
    """The result of one arm at its chosen point."""

    label: str
    chosen: dict[str, Any] | None  # tuned values by column; None if at no point every seed completed
    edges: tuple[str, ...]  # tuned columns whose chosen value is the smallest or the largest that was tried
    validation: ConfidenceInterval  # of the selection metric
    test: ConfidenceInterval  # of the reported metric
    difference: ConfidenceInterval | None  # `test` minus that of the reference arm, paired; None without a pair
    values: dict[Any, float]  # the reported metric by seed
    jobs: pd.DataFrame  # rows of the table
    level: tuple[Any, ...] = ()  # values of the columns that the arms are compared within (`factors.py`)
    under: str = ""  # the level in words

    @property
    def choice(self) -> str:
        """The tuned values as a table shows them."""
        return ", ".join(show(value) for value in (self.chosen or {}).values()) or "-"

    def minus(self, other: Arm) -> ConfidenceInterval:
        """Return the reported metric minus that of another arm, paired by seed."""
        return paired_difference(self.values, other.values)

    def by_seed(self, column: str) -> dict[Any, float]:
        """Return a column of the chosen jobs by seed."""
        return dict(zip(self.jobs["seed"], self.jobs[column].astype(float), strict=True))

    def mean_of(self, column: str) -> ConfidenceInterval:
        """Return the mean of a column over the chosen jobs; NaN if the table has no such column."""
        return mean_interval(self.jobs[column].astype(float) if column in self.jobs else [])

    def cost(self, column: str, largest: bool = False) -> float:
        """Return the mean (or the largest value) of a column over the chosen jobs that have it; NaN if none has."""
        if column not in self.jobs:
            return math.nan
        values = self.jobs[column].astype(float)
        return float(values.max() if largest else values.mean())


@dataclass(frozen=True)
class Comparison:
    """The compared arms.

    ``points`` has a row for each arm and combination of tuned values: ``arm``, the tuned columns, ``mean``, ``low`` and
    ``high`` (extremes) of the finite selection metrics over seeds, the number of jobs by status, ``eligible`` and
    ``chosen``.
    """

    spec: ComparisonSpec
    arms: list[Arm]  # the best mean validation metric first
    points: pd.DataFrame
    notes: list[str]  # sentences about jobs that were lost and choices at the edge of the grid

    @property
    def labels(self) -> list[str]:
        """The labels of the arms."""
        return list(dict.fromkeys(arm.label for arm in self.arms))

    @property
    def levels(self) -> list[tuple[Any, ...]]:
        """The levels in ascending order."""
        return sorted({arm.level for arm in self.arms})

    @property
    def metric(self) -> str:
        """The reported metric in words."""
        return in_words(self.spec.metric)

    @property
    def how(self) -> str:
        """How the arms were tuned and compared."""
        tuned = ", ".join(self.spec.tune) or "nothing"
        return HOW.format(tuned=tuned, select=in_words(self.spec.select), metric=self.metric)

    @property
    def axis_label(self) -> str:
        """Label of an axis that shows the reported metric."""
        unit = " (share of rows)" if self.spec.metric.endswith("accuracy") else ""
        return f"{self.metric}{unit}\n{'higher' if self.spec.higher else 'lower'} is better"

    def at(self, *level: Any) -> dict[str, Arm]:
        """Return the arms at a level by their label, the best mean validation metric first."""
        return {arm.label: arm for arm in self.arms if arm.level == level}

    def against(self, reference: str | None = None) -> Comparison:
        """Return the comparison with each arm's difference from the reference arm (default: the best) of its level."""

        def difference(arm: Arm) -> ConfidenceInterval | None:
            peers = self.at(*arm.level)
            first = next(iter(peers.values())) if reference is None else peers.get(reference)
            return None if first is None or first is arm else arm.minus(first)

        arms = [replace(arm, difference=difference(arm)) for arm in self.arms]
        return replace(self, spec=replace(self.spec, reference=reference), arms=arms)

    def verdict(self, difference: ConfidenceInterval | None) -> int:
        """Return 1 if a difference shows that the first arm is better, -1 if it shows it worse, else 0."""
        if difference is None or not difference.excludes_zero:
            return 0
        return 1 if (difference.mean > 0) == self.spec.higher else -1

    def side_by_side(self, labels: Sequence[str]) -> dict[str, Callable[[tuple[Any, ...]], str]]:
        """Return the columns of a table with one row for each level: the metric of each arm, with its choice."""
        names = {arm.level: arm.under for arm in self.arms}

        def cell(level: tuple[Any, ...], label: str) -> str:
            arm = self.at(*level).get(label)
            return "-" if arm is None else f"{show_interval(arm.test)} ({arm.choice})"

        return {"level": names.__getitem__, **{label: partial(cell, label=label) for label in labels}}

    def summarize(self) -> str:
        """Return which arms are better, worse or undecided against the reference arm, and at which levels."""
        others = [arm for arm in self.arms if arm.difference is not None]
        reference = self.spec.reference
        n = min((arm.difference.n for arm in others if arm.difference), default=0)
        if n < 2:
            return too_few(n, "common seed")
        over = f"paired 95 % intervals at {n} seeds, each arm at its own choice"
        found: dict[int, dict[str, list[str]]] = {1: {}, -1: {}, 0: {}}
        for arm in others:
            found[self.verdict(arm.difference)].setdefault(arm.label, []).append(arm.under)
        if not found[1] and not found[-1]:
            labels = listed(found[0])
            return f"Undecided: on {self.metric} no difference between {reference} and {labels} is shown ({over})."
        levels = len({arm.level for arm in self.arms})
        parts = []
        for verdict, word in ((1, "better"), (-1, "worse"), (0, "undecided")):
            names = [
                label if len(under) == levels else f"{label} under {' and '.join(under)}"
                for label, under in found[verdict].items()
            ]
            parts += [f"{word}: {', '.join(names)}"] if names else []
        return f"Compared with {reference} on {self.metric}, {'; '.join(parts)} ({over})."

    @property
    def recommendation(self) -> str:
        """One sentence that states the result."""
        spec, usable = self.spec, [arm for arm in self.arms if arm.chosen is not None]
        if not usable:
            return "No arm has a point at which every job completed, so there is no recommendation."
        best, *others = usable
        name = f"{best.label} ({show_choice(best.chosen)})" if best.chosen else best.label
        extreme = "highest" if spec.select_higher else "lowest"
        better = "higher" if spec.higher else "lower"
        if not others:
            return f"{name} has a {spec.metric} of {best.test.mean:.4g}; there is no other arm to compare it with."
        first = f"{name} has the {extreme} {spec.select}"
        differences = [(arm, arm.minus(best)) for arm in others]
        n = min(difference.n for _, difference in differences)
        if all(difference.n < 2 for _, difference in differences):
            few = f"{n} common {spec.pair}" if spec.pair else "nothing that pairs the jobs"
            return f"Undecided: {first}, but with {few} there is no interval; run more seeds."
        if contrary := [arm.label for arm, difference in differences if self.verdict(difference) > 0]:
            return (
                f"Undecided: {first}, but the {spec.metric} of {listed(contrary)} is {better} (paired 95 % interval "
                "excludes 0): validation and test disagree, so use more validation data."
            )
        tied = [arm for arm, difference in differences if not difference.excludes_zero]
        if not tied:
            arm, least = min(differences, key=lambda pair: abs(pair[1].mean))
            return (
                f"Use {name}: it has the {extreme} {spec.select}, and its {spec.metric} is {better} than that of every "
                f"other arm (paired 95 % intervals exclude 0 at {n} seeds); the closest arm, {arm.label}, differs by "
                f"{abs(least.mean):.2g}."
            )
        costs = {arm.label: arm.cost("trainable_parameters") for arm in (best, *tied)}
        cheapest = min(costs, key=lambda label: costs[label])
        differ = len(set(costs.values())) > 1 and math.isfinite(costs[cheapest])
        cheap = f"; of these {cheapest} trains the fewest parameters ({costs[cheapest]:,.0f})" if differ else ""
        same = f"{', '.join([best.label, *(arm.label for arm in tied[:-1])])} and {tied[-1].label}"
        return f"{first}, but on {spec.metric} {same} are indistinguishable at {n} seeds{cheap}."


def config_columns(table: pd.DataFrame) -> list[str]:
    """Return the names of the configuration columns, which lie between ``status`` and ``objective``."""
    names = list(table.columns)
    require(table, ["job", "status", "objective"])
    return names[names.index("status") + 1 : names.index("objective")]


def require(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Check that a table has columns; a :class:`UserError` names a missing one and the existing ones."""
    for name in names:
        if name not in table:
            guess = did_you_mean(name, table.columns)
            raise UserError(f"the table has no column '{name}'{guess}; it has {listed(table.columns, limit=40)}")


def is_higher_better(name: str) -> bool | None:
    """Return whether a higher value of a metric is better, judging by its name; None if the name does not show it."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return None if bool(words & LOWER) == bool(words & HIGHER) else bool(words & HIGHER)


def judged_metric(table: pd.DataFrame) -> str:
    """Return the test metric that the jobs are judged by: entity F1, exact match or accuracy, else the loss."""
    return next((name for name in JUDGED if name in table and table[name].notna().any()), "test_loss")


def make_spec(
    table: pd.DataFrame,
    *,
    metric: str | None = None,
    select: str | None = None,
    tune: Sequence[str] | None = None,
    factors: Sequence[str] | None = None,
    pair: str | None = None,
    higher: bool | None = None,
) -> ComparisonSpec:
    """Complete a specification with defaults.

    The metric is by default :func:`judged_metric`; ``select`` is ``val_x`` for ``test_x``, or else ``val_loss``;
    ``tune`` is ``lr_fine`` and ``pair`` is ``seed`` if the table has them; the factors are :func:`default_factors`. The
    names of the metrics decide whether higher is better, unless ``higher`` is given.

    Raises:
        UserError: a column is missing or not numeric, or the direction of a metric is unknown.
    """
    metric = metric or judged_metric(table)
    twin = "val_" + metric.removeprefix("test_")
    select = select or (twin if metric.startswith("test_") and twin in table else "val_loss")
    tune = tuple(tune if tune is not None else [name for name in ("lr_fine",) if name in table])
    pair = pair or ("seed" if "seed" in table else None)
    require(table, [metric, select, *tune, *filter(None, [pair]), *(factors or [])])
    for name in (metric, select):
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].notna().any():
            raise UserError(f"the column '{name}' does not hold numbers")
    directions = {name: is_higher_better(name) for name in (select, metric)}
    if higher is not None:
        # The override is for the reported metric; the selection metric follows it only if its own name is unclear.
        own = directions[select] if select.removeprefix("val_") != metric.removeprefix("test_") else None
        directions = {select: higher if own is None else own, metric: higher}
    for name, direction in directions.items():
        if direction is None:
            raise UserError(f"it is unknown whether a higher '{name}' is better; give --higher or --lower")
    if factors is None:
        factors = default_factors(table, tune, pair)
    return ComparisonSpec(
        metric, select, bool(directions[metric]), bool(directions[select]), tune, tuple(factors), pair
    )


def default_factors(table: pd.DataFrame, tune: Sequence[str], pair: str | None) -> list[str]:
    """Return the configuration columns that distinguish the jobs, ``strategy`` first, without redundant ones."""
    recorded = table[~table["status"].isin(["unfinished", "damaged"])]
    recorded = recorded if len(recorded) else table
    keys = [*tune, *filter(None, [pair])]
    names = [name for name in config_columns(table) if name not in keys and varies(recorded[name])]
    # An option is never a function of its own settings.
    others = {name: [key for key in keys if not key.startswith(f"{name}.")] for name in names}
    names = [name for name in names if not any(is_function_of(recorded[name], recorded[key]) for key in others[name])]
    kept = distinguishing(recorded, sorted(names, key=lambda name: name != "strategy"))
    return kept or [name for name in ("strategy",) if name in table]


def distinguishing(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Return those of the columns, in order, that split the rows further than the columns before them."""
    kept: list[str] = []
    groups = 1
    for name in names:
        count = len(table[[*kept, name]].drop_duplicates())
        if count > groups:
            kept, groups = [*kept, name], count
    return kept


def is_function_of(values: pd.Series, key: pd.Series) -> bool:
    """Return whether a column copies another or is a function of it, such as ``pretrain.seed: ${seed}``."""
    if list(values) == list(key):
        return True
    groups = values.groupby(key, dropna=False)
    return bool(groups.size().max() > 1 and groups.nunique(dropna=False).max() == 1)


def label_arms(table: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """Return the label of each job's arm: text as it is, other values as ``name=value``."""
    last = [name.split(".")[-1] for name in factors]
    short = dict(zip(factors, last if len(set(last)) == len(last) else factors, strict=True))

    def label(row: tuple[Any, ...]) -> str:
        known = [(name, value) for name, value in zip(factors, row, strict=True) if not pd.isna(value)]
        words = [v if isinstance(v, str) else f"{short[name]}={show(v)}" for name, v in known]
        return ", ".join(words) or "none"

    if not factors:
        return pd.Series("all jobs", table.index)
    return pd.Series([label(row) for row in table[list(factors)].itertuples(index=False)], table.index)


def one_job_each(table: pd.DataFrame, spec: ComparisonSpec) -> pd.DataFrame:
    """Return one job for each arm, tuned point and seed: of repeated jobs, the completed one that started last.

    Raises:
        UserError: two such jobs differ in their configuration, so the specification misses a column.
    """
    if spec.pair is None:
        return table
    keys = ["arm", *spec.tune, spec.pair]
    for _, group in table[table.duplicated(keys, keep=False)].groupby(keys, dropna=False):
        for name in config_columns(table):
            if name not in keys and varies(group[name]):
                first, second = group["job"].iloc[:2]
                raise UserError(
                    f"jobs '{first}' and '{second}' are one arm, choice and {spec.pair} but differ in "
                    f"'{name}': compare it with --arm {name}, or tune it with --tune {name}"
                )
    order = table.assign(_done=table["status"] == "completed", _start=table.get("started", ""))
    order = order.sort_values(["_done", "_start"], kind="stable", na_position="first")
    return table.loc[order.drop_duplicates(keys, keep="last").index.sort_values()]


def tabulate_points(table: pd.DataFrame, spec: ComparisonSpec) -> pd.DataFrame:
    """Return one row for each arm and combination of tuned values; see :class:`Comparison`."""
    rows = []
    for arm, jobs in table.groupby("arm", sort=False):
        seeds = set(jobs[spec.pair]) if spec.pair else set()
        for key, group in jobs.groupby(list(spec.tune) or "arm", dropna=False):
            values = group[spec.select].astype(float)
            finite = values[values.map(math.isfinite) & (group["status"] == "completed")]
            every_seed = spec.pair is None or set(group[spec.pair]) == seeds
            point = {"arm": arm, **(dict(zip(spec.tune, key, strict=True)) if spec.tune else {})}
            point |= {"mean": finite.mean(), "low": finite.min(), "high": finite.max(), "jobs": len(group)}
            point |= {"seeds": len(seeds) or len(group), "eligible": len(finite) == len(group) and every_seed}
            rows.append(point | {name: int((group["status"] == name).sum()) for name in ("completed", *LOST)})
    points = pd.DataFrame(rows)
    # Points come in ascending order of the tuned values: a tie goes to the smallest rate.
    means = points.loc[points["eligible"], "mean"].groupby(points["arm"])
    best = means.idxmax() if spec.select_higher else means.idxmin()
    return points.assign(chosen=points.index.isin(best))


def compare(table: pd.DataFrame, spec: ComparisonSpec, reference: str | None = None) -> Comparison:
    """Compare the arms of a sweep with a reference: by default ``frozen`` if there is one, else the first.

    Raises:
        UserError: there is no arm ``reference``, or jobs differ in a column that the specification does not mention.
    """
    found = tune_arms(table, spec)
    labels = list(dict.fromkeys(found.points["arm"]))
    reference = reference or ("frozen" if "frozen" in labels else labels[0])
    if reference not in labels:
        guess = did_you_mean(reference, labels)
        raise UserError(f"no arm is called '{reference}'{guess}; the arms are {listed(labels)}")
    if spec.pair is None:
        return replace(found, spec=replace(spec, reference=reference))
    found = found.against(reference)
    notes = list(found.notes)
    for arm in found.arms:
        if arm.difference is not None and arm.difference.identical:
            same = "are identical" if arm.difference.mean == 0 else "differ by the same amount"
            notes.append(f"{arm.label} and {reference}: the values of {spec.metric} {same} at every {spec.pair}.")
    return replace(found, notes=notes)


def tune_arms(table: pd.DataFrame, spec: ComparisonSpec) -> Comparison:
    """Choose the tuned values of each arm; the arms have no differences yet. For errors, see :func:`compare`."""
    jobs = table[table["status"] != "damaged"].reset_index(drop=True)
    if jobs.empty:
        raise UserError("the table has no jobs that could be read")
    jobs = one_job_each(jobs.assign(arm=label_arms(jobs, spec.factors)), spec)
    points = tabulate_points(jobs, spec)
    chosen = jobs.merge(points.loc[points["chosen"], ["arm", *spec.tune]], on=["arm", *spec.tune])
    arms = [
        make_arm(label, chosen[chosen["arm"] == label], points[points["arm"] == label], spec)
        for label in dict.fromkeys(jobs["arm"])
    ]
    sign = -1 if spec.select_higher else 1
    arms.sort(key=lambda arm: sign * arm.validation.mean if arm.chosen is not None else math.inf)
    notes = take_notes(arms, points, spec)
    if damaged := int((table["status"] == "damaged").sum()):
        notes.append(f"{count_of(damaged, 'job')} with a damaged record left out.")
    return Comparison(spec, arms, points, notes)


def make_arm(label: str, jobs: pd.DataFrame, points: pd.DataFrame, spec: ComparisonSpec) -> Arm:
    """Return the result of one arm from the jobs at its chosen point, and all its points."""
    values = dict(zip(jobs[spec.pair or "job"], jobs[spec.metric].astype(float), strict=True))
    choice = {name: jobs[name].iloc[0] for name in spec.tune} if len(jobs) else None
    edges = []
    for name, value in (choice or {}).items():
        tried = points[name].dropna().unique()
        if pd.api.types.is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
            edges.append(name)
    validation, test = mean_interval(jobs[spec.select].astype(float)), mean_interval(values.values())
    return Arm(label, choice, tuple(edges), validation, test, None, values, jobs)


def take_notes(arms: Sequence[Arm], points: pd.DataFrame, spec: ComparisonSpec) -> list[str]:
    """Return sentences about lost jobs, arms without a result and choices at the edge of the grid."""
    pair = spec.pair or "job"

    def places(rows: pd.DataFrame, status: str) -> str:
        return listed(
            f"{row['arm']} at {show_choice({name: row[name] for name in spec.tune})} "
            f"({row[status]} of {row['seeds']} {pair}s)"
            for _, row in rows.iterrows()
        )

    notes = []
    for status in LOST:
        hit = points[points[status] > 0]
        if len(hit):
            count = count_of(int(hit[status].sum()), "job")
            notes.append(f"{count} {status}; such a point cannot be chosen: {places(hit, status)}.")
    lacking = points[~points["eligible"] & (points["completed"] == points["jobs"])]
    if len(lacking):
        what = f"a {pair} or a finite {spec.select} is missing"
        notes.append(f"Where {what}, a point cannot be chosen: {places(lacking, 'completed')}.")
    lost = [arm.label for arm in arms if arm.chosen is None]
    notes += [f"{label}: at no point did every {pair} complete, so it has no result." for label in lost]
    edges = [
        f"{arm.label} ({show_choice({name: (arm.chosen or {})[name] for name in arm.edges})})"
        for arm in arms
        if arm.edges
    ]
    if edges:
        notes.append(f"Chosen at the edge of the grid, so widen it: {listed(edges, limit=5)}.")
    return notes
