"""Which arm of a sweep is best: tuned on validation, reported on test, compared pair by pair.

An *arm* is what is compared, usually a strategy. Each arm gets the tuned values (usually the learning rate)
with the best mean validation metric over seeds; what is reported is the test metric at that choice, which the
tuning has not flattered.
"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportOperatorIssue=false

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ..errors import UserError, did_you_mean, listed
from .export import varies
from .statistics import Interval, mean_interval, paired_difference

LOWER = {"loss", "mse", "rmse", "mae", "nll", "error", "perplexity", "ppl", "bpd", "forgetting"}
HIGHER = {"accuracy", "acc", "r2", "f1", "auc", "auroc", "precision", "recall", "bleu", "rouge", "transfer"}

LOST = ("diverged", "failed", "unfinished")


@dataclass(frozen=True)
class Question:
    """What is asked of a sweep; every name is a column of its table, `reference` the label of an arm."""

    metric: str
    select: str
    higher: bool
    select_higher: bool
    tune: tuple[str, ...]
    arms: tuple[str, ...]
    pair: str | None
    reference: str | None = None


@dataclass(frozen=True)
class Arm:
    """One arm's answer.

    Attributes:
        chosen: the tuned values by column; None where there is no point at which every seed completed.
        edges: the tuned columns whose chosen value is the smallest or the largest that was tried.
        validation: the selection metric at the choice.
        test: the reported metric at the choice.
        difference: `test` minus the reference arm's, paired; None for the reference itself or without a pair.
        values: the reported metric by pair value (seed).
        jobs: the chosen jobs' rows of the sweep's table.
    """

    label: str
    chosen: dict[str, Any] | None
    edges: tuple[str, ...]
    validation: Interval
    test: Interval
    difference: Interval | None
    values: dict[Any, float]
    jobs: pd.DataFrame

    def cost(self, column: str) -> float:
        """Return the mean of a cost column over the chosen jobs; NaN where the table has none."""
        return float(self.jobs[column].astype(float).mean()) if column in self.jobs else math.nan


@dataclass(frozen=True)
class Analysis:
    """The answer: the arms from the best validation metric on, and every point of the grid.

    `points` has a row for each arm and choice of tuned values: `arm`, the tuned columns, `mean`, `low`
    (least) and `high` (greatest) of the finite selection metrics over seeds, the number of jobs by status,
    `eligible` and `chosen`.
    """

    question: Question
    arms: list[Arm]
    points: pd.DataFrame
    notes: list[str]
    recommendation: str


def config_columns(table: pd.DataFrame) -> list[str]:
    """Return the names of the configuration's columns: those between `status` and `objective`."""
    names = list(table.columns)
    require(table, ["job", "status", "objective"])
    return names[names.index("status") + 1 : names.index("objective")]


def require(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Check that a table has columns.

    Raises:
        UserError: it lacks one; the message names it and the columns there are.
    """
    for name in names:
        if name not in table:
            guess = did_you_mean(name, table.columns)
            raise UserError(f"the table has no column '{name}'{guess}; it has {listed(table.columns, limit=40)}")


def is_higher_better(name: str) -> bool | None:
    """Tell from a metric's name whether higher is better; None where the name does not say."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return None if bool(words & LOWER) == bool(words & HIGHER) else bool(words & HIGHER)


def make_question(
    table: pd.DataFrame,
    metric: str = "test_loss",
    select: str | None = None,
    tune: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    pair: str | None = None,
    higher: bool | None = None,
) -> Question:
    """Fill in what the user left open.

    Args:
        table: a sweep's table, see :func:`src.analysis.export.jobs_table`.
        metric: reported.
        select: chooses the tuned values; by default ``test_x``'s own ``val_x``, else ``val_loss``.
        tune: columns to choose; by default ``lr_fine`` where the table has it.
        arms: columns whose values are compared; by default every configuration column that varies, save tuned
            and paired ones and those that follow from others.
        pair: what pairs the jobs of two arms; by default ``seed`` where the table has it.
        higher: whether higher is better; by default the metrics' names decide.

    Raises:
        UserError: a column is missing or is not a number, or the name does not say which direction is better.
    """
    select = select or ("val_" + metric.removeprefix("test_") if metric.startswith("test_") else "val_loss")
    tune = tuple(tune if tune is not None else [name for name in ("lr_fine",) if name in table])
    pair = pair or ("seed" if "seed" in table else None)
    require(table, [metric, select, *tune, *filter(None, [pair]), *(arms or [])])
    for name in (metric, select):
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].notna().any():
            raise UserError(f"the column '{name}' does not hold numbers")
    directions = {name: is_higher_better(name) for name in (select, metric)}
    if higher is not None:
        # The override is about the reported metric; it speaks for another only where its name is silent.
        own = directions[select] if select.removeprefix("val_") != metric.removeprefix("test_") else None
        directions = {select: higher if own is None else own, metric: higher}
    for name, direction in directions.items():
        if direction is None:
            raise UserError(f"is a higher or a lower '{name}' better? Say --higher or --lower")
    if arms is None:
        arms = default_arms(table, tune, pair)
    return Question(metric, select, bool(directions[metric]), bool(directions[select]), tune, tuple(arms), pair)


def default_arms(table: pd.DataFrame, tune: Sequence[str], pair: str | None) -> list[str]:
    """Return the configuration columns that tell the jobs apart, `strategy` first, none that adds nothing.

    ``strategy.decay`` says nothing that ``strategy`` does not, unless one strategy was run with two decays.
    """
    told = table[~table["status"].isin(["unfinished", "damaged"])]
    told = told if len(told) else table
    keys = [*tune, *filter(None, [pair])]
    names = [name for name in config_columns(table) if name not in keys and varies(told[name])]
    # An option does not follow from its own settings, though each may have been run with values of its own.
    others = {name: [key for key in keys if not key.startswith(f"{name}.")] for name in names}
    names = [name for name in names if not any(follows(told[name], told[key]) for key in others[name])]
    arms: list[str] = []
    told_apart = 1
    for name in sorted(names, key=lambda name: name != "strategy"):
        count = len(told[[*arms, name]].drop_duplicates())
        if count > told_apart:
            arms, told_apart = [*arms, name], count
    return arms or [name for name in ("strategy",) if name in table]


def follows(values: pd.Series, key: pd.Series) -> bool:
    """Tell whether a column copies another or is a function of it, as ``pretrain.seed: ${seed}`` is."""
    if list(values) == list(key):
        return True
    groups = values.groupby(key, dropna=False)
    return bool(groups.size().max() > 1 and groups.nunique(dropna=False).max() == 1)


def label_arms(table: pd.DataFrame, arms: Sequence[str]) -> pd.Series:
    """Name each job's arm: text stands for itself, another value comes with its column's last word."""
    last = [name.split(".")[-1] for name in arms]
    short = dict(zip(arms, last if len(set(last)) == len(last) else arms, strict=True))

    def label(row: tuple[Any, ...]) -> str:
        known = [(name, value) for name, value in zip(arms, row, strict=True) if not pd.isna(value)]
        words = [v if isinstance(v, str) else f"{short[name]}={show(v)}" for name, v in known]
        return ", ".join(words) or "none"

    if not arms:
        return pd.Series("all jobs", table.index)
    return pd.Series([label(row) for row in table[list(arms)].itertuples(index=False)], table.index)


def show(value: Any) -> str:
    """Write a configuration's value shortly; a setting that a job does not have is a dash."""
    if value != value:  # NaN, as tables have it
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_choice(chosen: Mapping[str, Any]) -> str:
    """Write tuned values, ``lr_fine=0.01``, without settings that the arm does not have."""
    known = {name: value for name, value in chosen.items() if not pd.isna(value)}
    return ", ".join(f"{name}={show(value)}" for name, value in known.items()) or "its only point"


def one_job_each(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Keep one job for each arm, tuned point and seed: of repetitions, the completed one that started last.

    Raises:
        UserError: two such jobs differ in their configuration, so that the question overlooks something.
    """
    if question.pair is None:
        return table
    keys = ["arm", *question.tune, question.pair]
    for _, group in table[table.duplicated(keys, keep=False)].groupby(keys, dropna=False):
        for name in config_columns(table):
            if name not in keys and varies(group[name]):
                first, second = group["job"].iloc[:2]
                raise UserError(
                    f"jobs '{first}' and '{second}' are one arm, choice and {question.pair} but differ in "
                    f"'{name}': compare it with --arm {name}, or tune it with --tune {name}"
                )
    order = table.assign(_done=table["status"] == "completed", _start=table.get("started", ""))
    order = order.sort_values(["_done", "_start"], kind="stable", na_position="first")
    return table.loc[order.drop_duplicates(keys, keep="last").index.sort_values()]


def tabulate_points(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Return one row for each arm and choice of tuned values; see :class:`Analysis`."""
    rows = []
    sign = -1 if question.select_higher else 1
    for arm, jobs in table.groupby("arm", sort=False):
        seeds = set(jobs[question.pair]) if question.pair else set()
        best = None
        # Groups come in rising order of the tuned values: of equal means the smallest rate stays.
        for key, group in jobs.groupby(list(question.tune) or "arm", dropna=False):
            point: dict[str, Any] = {"arm": arm} | (dict(zip(question.tune, key, strict=True)) if question.tune else {})
            point |= summarize_point(group, question, seeds)
            rows.append(point)
            if point["eligible"] and (best is None or sign * point["mean"] < sign * best["mean"]):
                best = point
        if best:
            best["chosen"] = True
    return pd.DataFrame(rows)


def summarize_point(jobs: pd.DataFrame, question: Question, seeds: set[Any]) -> dict[str, Any]:
    """Summarise the jobs of one point; `seeds` are those that the arm was run with anywhere."""
    values = jobs[question.select].astype(float)
    finite = values[values.map(math.isfinite) & (jobs["status"] == "completed")]
    every_seed = question.pair is None or set(jobs[question.pair]) == seeds
    count = {name: int((jobs["status"] == name).sum()) for name in ("completed", *LOST)}
    return {
        "mean": finite.mean(),
        "low": finite.min(),
        "high": finite.max(),
        "jobs": len(jobs),
        "seeds": len(seeds) or len(jobs),
        "eligible": len(finite) == len(jobs) and every_seed,
        "chosen": False,
    } | count


def analyze(table: pd.DataFrame, question: Question, reference: str | None = None) -> Analysis:
    """Answer a question about a sweep.

    Args:
        table: a sweep's table, see :func:`src.analysis.export.jobs_table`.
        question: from :func:`make_question`.
        reference: label of the arm to compare the others with; by default ``frozen`` where there is one,
            else the first.

    Raises:
        UserError: no arm is called `reference`, or the question leaves jobs apart that it cannot tell apart.
    """
    jobs = table[table["status"] != "damaged"].reset_index(drop=True)
    if jobs.empty:
        raise UserError("the table has no jobs that could be read")
    jobs = one_job_each(jobs.assign(arm=label_arms(jobs, question.arms)), question)
    labels = list(dict.fromkeys(jobs["arm"]))
    reference = reference or ("frozen" if "frozen" in labels else labels[0])
    if reference not in labels:
        guess = did_you_mean(reference, labels)
        raise UserError(f"no arm is called '{reference}'{guess}; the arms are {listed(labels)}")
    question = replace(question, reference=reference)
    points = tabulate_points(jobs, question)
    values = {label: chosen_jobs(jobs, points, label, question) for label in labels}
    arms = [answer(label, values, points, question) for label in labels]
    sign = -1 if question.select_higher else 1
    arms.sort(key=lambda arm: sign * arm.validation.mean if arm.chosen is not None else math.inf)
    damaged = int((table["status"] == "damaged").sum())
    return Analysis(question, arms, points, take_notes(arms, points, question, damaged), recommend(arms, question))


def chosen_jobs(jobs: pd.DataFrame, points: pd.DataFrame, label: str, question: Question) -> pd.DataFrame:
    """Return an arm's jobs at its choice; none where there is no choice."""
    choice = points.loc[(points["arm"] == label) & points["chosen"], ["arm", *question.tune]]
    return jobs.merge(choice, on=["arm", *question.tune])


def by_pair(jobs: pd.DataFrame, question: Question) -> dict[Any, float]:
    """Return the reported metric by seed, or by job where nothing pairs the jobs."""
    return dict(zip(jobs[question.pair or "job"], jobs[question.metric].astype(float), strict=True))


def answer(label: str, chosen: Mapping[str, pd.DataFrame], points: pd.DataFrame, question: Question) -> Arm:
    """Describe one arm at its choice."""
    jobs = chosen[label]
    values = by_pair(jobs, question)
    choice = {name: jobs[name].iloc[0] for name in question.tune} if len(jobs) else None
    edges = []
    for name, value in (choice or {}).items():
        tried = points.loc[points["arm"] == label, name].dropna().unique()
        if pd.api.types.is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
            edges.append(name)
    difference = None
    if question.pair and label != question.reference and question.reference is not None:
        difference = paired_difference(values, by_pair(chosen[question.reference], question))
    return Arm(
        label=label,
        chosen=choice,
        edges=tuple(edges),
        validation=mean_interval(jobs[question.select].astype(float)),
        test=mean_interval(values.values()),
        difference=difference,
        values=values,
        jobs=jobs,
    )


def take_notes(arms: Sequence[Arm], points: pd.DataFrame, question: Question, damaged: int) -> list[str]:
    """Name what a reader must know: points that could not be chosen, choices at a grid's edge."""
    pair = question.pair or "job"

    def places(rows: pd.DataFrame, status: str) -> str:
        return listed(
            f"{row['arm']} at {show_choice({name: row[name] for name in question.tune})} "
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
        what = f"a {pair} or a finite {question.select} is missing"
        notes.append(f"Where {what}, a point cannot be chosen: {places(lacking, 'completed')}.")
    for arm in arms:
        notes += edge_notes(arm, points)
        if arm.chosen is None:
            notes.append(f"{arm.label}: at no point did every {pair} complete, so it has no result.")
    if damaged:
        notes.append(f"{count_of(damaged, 'job')} with a damaged record left out.")
    return notes


def edge_notes(arm: Arm, points: pd.DataFrame) -> list[str]:
    """Say where a better value may lie beyond what was tried."""
    notes = []
    for name in arm.edges:
        value = arm.jobs[name].iloc[0]
        end = "smallest" if value == points.loc[points["arm"] == arm.label, name].min() else "largest"
        notes.append(f"{arm.label}: the chosen {name}={show(value)} is the {end} tried: widen the grid.")
    return notes


def count_of(n: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def recommend(arms: Sequence[Arm], question: Question) -> str:
    """Say in one sentence what the sweep supports and no more; `arms` come best validation first."""
    usable = [arm for arm in arms if arm.chosen is not None]
    if not usable:
        return "No arm has a point at which every job completed, so nothing can be recommended."
    best, others = usable[0], usable[1:]
    name = f"{best.label} ({show_choice(best.chosen)})" if best.chosen else best.label
    extreme = "highest" if question.select_higher else "lowest"
    better = "higher" if question.higher else "lower"
    if not others:
        reached = f"{name} reaches a {question.metric} of {best.test.mean:.4g}"
        return f"{reached}; there is no other arm to compare it with."
    first = f"{name} has the {extreme} {question.select}"
    differences = [(arm, paired_difference(arm.values, best.values)) for arm in others]
    n = min(difference.n for _, difference in differences)
    if all(difference.n < 2 for _, difference in differences):
        few = f"{n} common {question.pair}" if question.pair else "nothing that pairs the jobs"
        return f"With {few} no interval is possible: {first}, but only more seeds can tell."
    sign = -1 if question.higher else 1
    contrary = [arm.label for arm, d in differences if d.excludes_zero and sign * d.mean < 0]
    tied = [arm for arm, d in differences if not d.excludes_zero]
    if contrary:
        return (
            f"{first}, yet the {question.metric} of {listed(contrary)} is {better}, with a paired 95 % "
            "interval that excludes 0: validation and test disagree, so choose with more validation data."
        )
    if not tied:
        arm, least = min(differences, key=lambda pair: abs(pair[1].mean))
        return (
            f"Use {name}: it has the {extreme} {question.select}, and its {question.metric} is {better} than "
            f"every other arm's, with paired 95 % intervals that exclude 0 at {n} seeds; the closest, "
            f"{arm.label}, is {abs(least.mean):.2g} away."
        )
    costs = {arm.label: arm.cost("trainable_parameters") for arm in (best, *tied)}
    cheapest = min(costs, key=lambda label: costs[label])
    differ = len(set(costs.values())) > 1 and math.isfinite(costs[cheapest])
    cheap = f"; of these {cheapest} trains the fewest parameters ({costs[cheapest]:,.0f})" if differ else ""
    same = f"{', '.join([best.label, *(arm.label for arm in tied[:-1])])} and {tied[-1].label}"
    return f"{first}, but on {question.metric} {same} are indistinguishable at {n} seeds{cheap}."
