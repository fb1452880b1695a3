# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportUnhashable=false
# pyright: reportOptionalMemberAccess=false
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.analysis.comparison import Comparison, compare, default_factors, is_higher_better, make_spec
from src.analysis.export import jobs_table
from src.errors import UserError
from src.tracking.record_reader import load_jobs


def table_of(rows: list[dict], **more) -> pd.DataFrame:
    """A sweep's table: `rows` give the configuration, `val_loss` and `test_loss`."""
    own = ("val_loss", "test_loss", "val_accuracy", "test_accuracy", "val_entity_f1", "test_entity_f1", "status")
    config = pd.DataFrame([{key: value for key, value in row.items() if key not in own} for row in rows])
    table = pd.DataFrame({"job": [str(n) for n in range(len(rows))], "job_id": "x"})
    table["status"] = [row.get("status", "completed") for row in rows]
    table = pd.concat([table, config], axis=1)
    table["objective"] = 0.0
    for name in own[:-1]:
        if any(name in row for row in rows):
            table[name] = [row.get(name, math.nan) for row in rows]
    return table.assign(**more)


def grid(values: dict[tuple[str, float], list[float]], status: dict | None = None) -> pd.DataFrame:
    """Rows for {(strategy, rate): validation loss by seed}; the test loss is 0.1 more."""
    return table_of(
        [
            {"strategy": arm, "lr_fine": rate, "seed": seed, "val_loss": value, "test_loss": value + 0.1}
            | {"status": (status or {}).get((arm, rate, seed), "completed")}
            for (arm, rate), by_seed in values.items()
            for seed, value in enumerate(by_seed)
        ]
    )


def solve(table: pd.DataFrame, reference: str | None = None, **asked) -> Comparison:
    return compare(table, make_spec(table, **asked), reference)


def brute_force(table: pd.DataFrame, arm: str, higher: bool, select: str, metric: str) -> tuple:
    """The definition, word by word, without pandas' grouping."""
    rows = [row for _, row in table.iterrows() if row["strategy"] == arm]
    seeds = {row["seed"] for row in rows}
    best = None
    for rate in sorted({row["lr_fine"] for row in rows}):
        at = [row for row in rows if row["lr_fine"] == rate]
        good = [row for row in at if row["status"] == "completed" and math.isfinite(row[select])]
        if {row["seed"] for row in good} != seeds:
            continue
        mean = np.mean([row[select] for row in good])
        if best is None or (mean > best[1] if higher else mean < best[1]):
            best = (rate, mean, {row["seed"]: row[metric] for row in good})
    return best or (None, math.nan, {})


@pytest.mark.parametrize(("draw", "higher"), list(itertools.product(range(20), [False, True])))
def test_selection_against_brute_force(draw, higher):
    rng = np.random.default_rng(draw)
    name = "accuracy" if higher else "loss"
    rows = []
    for arm, rate, seed in itertools.product("abc", (0.1, 1e-3, 1e-2), range(3)):
        # Few levels, so that ties happen; some jobs diverge, fail, lack a number or are missing.
        val = float(rng.integers(0, 4)) if rng.random() > 0.05 else math.nan
        status = rng.choice(["completed", "diverged", "failed"], p=[0.9, 0.05, 0.05])
        if rng.random() > 0.03:
            rows.append({"strategy": arm, "lr_fine": rate, "seed": seed, "status": str(status)})
            rows[-1] |= {f"val_{name}": val, f"test_{name}": float(rng.random())}
    table = table_of(rows)
    found = solve(table, metric=f"test_{name}", factors=["strategy"])
    for arm in found.arms:
        rate, mean, values = brute_force(table, arm.label, higher, f"val_{name}", f"test_{name}")
        assert (arm.chosen or {}).get("lr_fine") == rate
        assert arm.values == values
        assert arm.validation.mean == pytest.approx(mean, nan_ok=True)
        if len(values) > 1:
            test = list(values.values())
            bounds = stats.t.interval(0.95, len(test) - 1, loc=np.mean(test), scale=stats.sem(test))
            assert (arm.test.low, arm.test.high) == pytest.approx(bounds)
    order = [arm.validation.mean * (-1 if higher else 1) for arm in found.arms if arm.chosen]
    assert order == sorted(order)


def test_differences_are_paired_with_the_reference():
    table = grid({("frozen", 0.1): [1.0, 2.0, 3.0], ("full", 0.1): [0.5, 1.4, 2.6]})
    full, frozen = solve(table).arms
    expected = stats.ttest_rel([0.6, 1.5, 2.7], [1.1, 2.1, 3.1]).confidence_interval()
    assert (full.difference.low, full.difference.high) == pytest.approx(tuple(expected))
    assert full.difference.excludes_zero
    assert frozen.difference is None
    assert solve(table, reference="full").arms[1].difference.mean == pytest.approx(-full.difference.mean)


def test_a_point_that_lost_a_seed_is_not_chosen_but_named():
    values = {("full", 0.01): [2.0, 2.0], ("full", 0.1): [1.0, 1.0], ("full", 1.0): [3.0, 3.0]}
    found = solve(grid(values, {("full", 0.1, 1): "diverged"}))
    assert found.arms[0].chosen == {"lr_fine": 0.01}
    assert any("1 job diverged" in note and "full at lr_fine=0.1 (1 of 2 seeds)" in note for note in found.notes)
    point = found.points[found.points["lr_fine"] == 0.1].iloc[0]
    assert (point["completed"], point["diverged"], point["eligible"]) == (1, 1, False)


def test_an_arm_without_any_complete_point_has_no_result():
    found = solve(grid({("full", 0.1): [1.0], ("frozen", 0.1): [2.0]}, {("full", 0.1, 0): "failed"}))
    assert [arm.label for arm in found.arms] == ["frozen", "full"]
    assert found.arms[1].chosen is None
    assert "full: at no point did every seed complete" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("means", "edge"), [((1, 2, 3), 0.001), ((3, 2, 1), 0.1), ((2, 1, 2), None), ((2, 1, math.nan), None)]
)
def test_the_edge_of_the_grid_is_pointed_out(means, edge):
    rates = (0.001, 0.01, 0.1)
    found = solve(grid({("full", rate): [mean, mean] for rate, mean in zip(rates, means, strict=True)}))
    hints = [note for note in found.notes if note.startswith("Chosen at the edge of the grid")]
    assert len(hints) == (edge is not None)
    assert all(hint.endswith(f": full (lr_fine={edge}).") for hint in hints)
    assert found.arms[0].edges == (() if edge is None else ("lr_fine",))


def test_ties_go_to_the_smaller_rate():
    found = solve(grid({("full", 0.1): [1.0, 3.0], ("full", 0.01): [3.0, 1.0]}))
    assert found.arms[0].chosen == {"lr_fine": 0.01}


def test_two_tuned_columns():
    rows = [
        {
            "strategy": "full",
            "lr_fine": rate,
            "decay": decay,
            "seed": seed,
            "val_loss": rate + decay,
            "test_loss": 0.0,
        }
        for rate, decay, seed in itertools.product((0.1, 0.2), (1.0, 0.5), range(2))
    ]
    found = solve(table_of(rows), tune=["lr_fine", "decay"])
    assert found.arms[0].chosen == {"lr_fine": 0.1, "decay": 0.5}
    assert len(found.points) == 4


def test_default_factors(sweep):
    table = jobs_table(load_jobs(sweep))
    # `strategy.decay` follows from `strategy`, `pretrain.seed` from `seed`.
    assert default_factors(table, ["lr_fine"], "seed") == ["strategy"]
    decays = table.assign(**{"strategy.decay": [0.9, 0.8] * 24})
    assert default_factors(decays, ["lr_fine"], "seed") == ["strategy", "strategy.decay"]
    labels = {arm.label for arm in solve(decays.drop(columns="pretrain.seed")).arms}
    assert "full, decay=0.8" in labels
    one = table[(table["strategy"] == "full")]
    assert default_factors(one, ["lr_fine"], "seed") == ["strategy"]


def test_columns_that_follow_the_rate_are_no_arms():
    table = grid({("full", 0.1): [1.0], ("full", 0.2): [2.0]})
    table.insert(4, "head.lr", table["lr_fine"])
    assert default_factors(table, ["lr_fine"], "seed") == ["strategy"]


def test_jobs_that_the_question_cannot_tell_apart_are_named():
    rows = [{"strategy": "full", "seed": 0, "width": width, "val_loss": 1.0, "test_loss": 1.0} for width in (8, 16)]
    with pytest.raises(UserError, match=r"'0' and '1' are one .* differ in 'width': compare it with --arm width"):
        solve(table_of(rows), factors=["strategy"])
    assert len(solve(table_of(rows)).arms) == 2


def test_of_repeated_jobs_the_completed_one_that_started_last_counts():
    rows = [
        {"strategy": "full", "seed": 0, "val_loss": value, "test_loss": value, "status": status}
        for value, status in ((1.0, "completed"), (2.0, "completed"), (math.nan, "failed"))
    ]
    found = solve(table_of(rows, started=["2026-01-02", "2026-01-01", "2026-01-03"]))
    assert found.arms[0].values == {0: 1.0}


def test_without_a_rate_and_without_a_seed():
    rows = [{"strategy": arm, "val_loss": 1.0 + n, "test_loss": n} for arm in ("a", "b") for n in range(3)]
    found = solve(table_of(rows))
    assert (found.spec.tune, found.spec.pair) == ((), None)
    assert [arm.test.n for arm in found.arms] == [3, 3]
    assert found.arms[1].difference is None
    assert found.recommendation.startswith("Undecided")


def test_recommendations():
    def say(**arms):
        return solve(grid({(arm, 0.1): values for arm, values in arms.items()})).recommendation

    clear = say(full=[1.0, 1.1, 1.2], frozen=[2.0, 2.1, 2.22], lora=[3.0, 3.1, 3.21])
    assert clear.startswith("Use full (lr_fine=0.1): it has the lowest val_loss")
    tied = say(full=[1.0, 1.3, 1.2], lora=[1.25, 1.0, 1.3], frozen=[9.0, 9.1, 9.3])
    assert "full and lora are indistinguishable at 3 seeds" in tied
    single = say(full=[1.0], frozen=[2.0])
    assert single.startswith("Undecided: full (lr_fine=0.1) has the lowest val_loss, but with 1 common seed")
    assert "no other arm" in say(full=[1.0, 2.0])
    table = grid({("full", 0.1): [1.0, 1.1], ("frozen", 0.1): [2.0, 2.1]})
    table["test_loss"] = [3.0, 3.1, 1.0, 1.11]
    assert "validation and test disagree" in solve(table).recommendation
    assert solve(grid({("a", 0.1): [1.0]}, {("a", 0.1, 0): "failed"})).recommendation.startswith("No arm")


def test_the_cheaper_of_equals_is_named():
    table = grid({("full", 0.1): [1.0, 1.3, 1.2], ("lora", 0.1): [1.25, 1.0, 1.3]})
    table["trainable_parameters"] = [97] * 3 + [33] * 3
    assert solve(table).recommendation.endswith("of these lora trains the fewest parameters (33).")


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        *[
            ("test_loss", False),
            ("val_mse", False),
            ("test_nll", False),
            ("test_accuracy", True),
            ("f1", True),
        ],
        *[("source_test_r2", True), ("lossless", None), ("score", None), ("loss_accuracy", None)],
    ],
)
def test_directions(name, higher):
    assert is_higher_better(name) is higher


def test_an_unknown_direction_is_asked_for():
    table = grid({("full", 0.1): [1.0], ("full", 0.2): [2.0]})
    table = table.rename(columns={"test_loss": "test_score", "val_loss": "val_score"})
    with pytest.raises(UserError, match="--higher or --lower"):
        make_spec(table, metric="test_score")
    assert solve(table, metric="test_score", higher=True).arms[0].chosen == {"lr_fine": 0.2}
    assert solve(table, metric="test_score", higher=False).arms[0].chosen == {"lr_fine": 0.1}
    spec = make_spec(table.assign(val_loss=1.0), metric="test_score", select="val_loss", higher=True)
    assert (spec.higher, spec.select_higher) == (True, False)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"metric": "test_los"}, r"no column 'test_los' \(did you mean 'test_loss'\?\); it has job, "),
        ({"tune": ["lr_fin"]}, "did you mean 'lr_fine'"),
        ({"factors": ["stratgy"]}, "did you mean 'strategy'"),
        ({"pair": "sed"}, "did you mean 'seed'"),
        ({"metric": "strategy", "higher": True}, "does not hold numbers"),
    ],
)
def test_what_is_missing_is_named(asked, message):
    with pytest.raises(UserError, match=message):
        make_spec(grid({("full", 0.1): [1.0]}), **asked)


def test_an_unknown_reference():
    table = grid({("full", 0.1): [1.0], ("frozen", 0.1): [1.0]})
    with pytest.raises(UserError, match=r"no arm is called 'ful' \(did you mean 'full'\?\); the arms are full, frozen"):
        solve(table, reference="ful")


@pytest.mark.parametrize(
    ("shift", "words"),
    [(0.0, "the values of test_loss are identical at every seed"), (0.5, "differ by the same amount at every seed")],
)
def test_a_difference_without_variance_is_no_evidence(shift, words):
    """Two arms that differ by the same amount at every seed have no t interval, so nothing is shown."""
    table = grid({("frozen", 0.1): [1.0, 2.0, 3.5], ("masked", 0.1): [1.0 + shift, 2.0 + shift, 3.5 + shift]})
    found = solve(table)
    (masked,) = [arm for arm in found.arms if arm.label == "masked"]
    assert masked.difference.mean == pytest.approx(shift)
    assert masked.difference.identical
    assert not masked.difference.excludes_zero
    assert any("masked and frozen" in note and words in note for note in found.notes)
    assert "indistinguishable at 3 seeds" in found.recommendation


def classifier(metric: str) -> pd.DataFrame:
    """Two arms at two rates: by loss `calm` at 0.1 is best, by the metric `bold` at 0.2 on validation and on test."""
    score = {("bold", 0.1): 0.70, ("bold", 0.2): 0.90, ("calm", 0.1): 0.80, ("calm", 0.2): 0.60}
    loss = {("bold", 0.1): 0.60, ("bold", 0.2): 0.90, ("calm", 0.1): 0.30, ("calm", 0.2): 0.80}
    noise = [[0.01, -0.01, 0.0], [0.0, 0.004, -0.004]]
    return table_of(
        [
            {"strategy": arm, "lr_fine": rate, "seed": seed, "val_loss": loss[arm, rate], "test_loss": loss[arm, rate]}
            | {f"val_{metric}": value, f"test_{metric}": value - 0.05 + noise[arm == "calm"][seed]}
            for (arm, rate), value in score.items()
            for seed in range(3)
        ]
    )


@pytest.mark.parametrize("metric", ["accuracy", "entity_f1"])
def test_classifiers_are_judged_by_the_metric_of_their_task(metric):
    table = classifier(metric)
    if metric == "entity_f1":
        table["test_accuracy"] = 0.5  # the task's own metric comes first
    found = solve(table)
    assert (found.spec.metric, found.spec.select, found.spec.higher) == (f"test_{metric}", f"val_{metric}", True)
    best, other = found.arms
    assert (best.label, best.chosen, other.chosen) == ("bold", {"lr_fine": 0.2}, {"lr_fine": 0.1})
    assert best.test.mean == pytest.approx(0.85)
    assert found.recommendation.startswith("Use bold (lr_fine=0.2)")
    by_loss = solve(table, metric="test_loss")
    assert (by_loss.arms[0].label, by_loss.arms[0].chosen) == ("calm", {"lr_fine": 0.1})


def test_regressions_are_judged_by_their_loss():
    table = grid({("full", 0.1): [1.0, 1.1], ("frozen", 0.1): [2.0, 2.2]}).assign(test_r2=0.5)
    assert solve(table).spec.metric == "test_loss"
