"""Comparisons of policies on recorded replies: what they measure, certify, advise and refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from pilotfish import page as pages
from pilotfish.errors import InputError
from pilotfish.page import Series, chart
from pilotfish.route.compare import compare
from pilotfish.route.policies import (
    AlwaysPolicy,
    Choices,
    RoutePolicy,
)
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.statistics import mean_interval
from pilotfish.traffic.table import ReplyTable


def test_the_first_chart_draws_what_is_best_at_some_cost(three):
    learned, poor = RoutePolicy("learned", KernelQuality()), AlwaysPolicy("middle", "poor")
    page = compare(three, [poor, learned], budget=0.006).to_html()
    first, rest = page.split("Each policy</h2>")
    assert ("learned:" in first, "poor:" in first, "poor:" in rest) == (True, False, True)


def test_charts_of_a_page_fit_a_phone_and_keep_their_last_tick():
    style = pages.page("Report", "one").split("</style>")[0].replace("\n", "")
    assert "minmax(min(380px,100%),1fr)" in style
    assert "display:block;overflow:visible}" in style
    assert "@media(max-width:600px){svg text," in style


def test_compare_reports_and_draws(table):
    report = compare(table, [RoutePolicy("kernel", KernelQuality())], budget=0.006, level=0.1)
    row = report.row("kernel")
    assert row.cost <= 0.0075
    assert row.quality > report.row("random").quality
    assert row.low <= row.quality <= row.high
    assert report.row("oracle").aiq >= row.aiq
    assert report.recommendation.startswith("Use ")
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {r["name"] for r in plain["rows"]} >= {"kernel", "random", "nearest neighbours", "oracle"}
    page = report.to_html()
    assert page.count("<figure>") == 2
    assert page.count("<polygon") == 1
    values = table.split((0.6, 0.2, 0.2), seed=0)[2].scores[:, 1]
    [always] = report.row("best single (large)").curve.ends
    assert always == pytest.approx([mean_interval(values).low, mean_interval(values).high])
    assert "http" not in page
    assert "kernel" in page
    many = chart([Series(str(i), [0, 1], [i, i + 1]) for i in range(20)], x_label="x", y_label="y")
    assert len(set(re.findall(r"stroke=\"[^\"]+\"(?: stroke-dasharray=\"[^\"]+\")?/></svg>", many))) == 20
    with pytest.raises(InputError, match="no policy 'x'"):
        report.row("x")


def test_a_curve_has_intervals_where_all_answers_are_right_and_where_scores_are_graded():
    right = np.arange(60) % 2
    for scores, width in ((np.ones(60), 1 - 0.025 ** (1 / 12)), (np.full(60, 2.0), 0.0)):
        table = ReplyTable.of([f"q{i}" for i in range(60)], {"a": right, "b": scores}, {"a": 1.0, "b": 2.0})
        [ends] = compare(table, [], budget=3.0).row("best single (b)").curve.ends
        assert ends[1] - ends[0] == pytest.approx(width)


def test_a_cheaper_policy_is_advised_only_where_the_same_queries_do_not_tell_it_is_worse():
    at = np.arange(200)
    cheap = (at < 120).astype(float)
    better = (at < 130).astype(float)  # never worse, and yet inside the other's interval
    alike = ((at > 0) & (at < 122)).astype(float)
    policies = [AlwaysPolicy("cheap", "always cheap"), AlwaysPolicy("dear", "always dear")]
    for dear, told in ((better, True), (alike, False)):
        fit, calibrate, test = (
            ReplyTable.of([f"{part} {i}" for i in at], {"cheap": cheap, "dear": dear}, {"cheap": 1.0, "dear": 1.5})
            for part in ("fit", "calibrate", "test")
        )
        report = compare(fit, policies, budget=2.0, calibrate=calibrate, test=test)
        row = report.row("always cheap")
        assert row.low < report.row("always dear").quality < row.high
        assert ("(cheap): 0.600" in report.recommendation) is not told
    assert re.search(r"costs \d\d% more: on the same queries the difference may be none", report.recommendation)
    assert row.scores.mean() == pytest.approx(row.quality)


def test_a_single_model_that_is_surely_worse_is_not_advised_in_the_place_of_one_that_may_not_be():
    n = np.arange(400)
    seen = {"best": n >= 40, "varied": ((n < 36) | (n >= 92)), "steady": n >= 54}
    costs = {"best": 10.0, "varied": 5.0, "steady": 4.9}
    fit = ReplyTable.of([f"fit {i}" for i in n], {"best": n < 9, "varied": n < 9, "steady": n >= 0}, costs)
    calibrate, test = (ReplyTable.of([f"{part} {i}" for i in n], seen, costs) for part in ("calibrate", "test"))
    policies = [AlwaysPolicy("best"), AlwaysPolicy("varied")]
    report = compare(fit, policies, budget=20.0, calibrate=calibrate, test=test)
    assert report.row("best single (steady)").quality > report.row("always varied").quality
    assert report.recommendation.startswith("Use always varied: 0.860")
    assert re.search(r"the difference may be none \(95 % interval -0", report.recommendation)


def test_what_does_as_well_with_nothing_learned_is_advised():
    scores = np.arange(120) % 2
    queries = [f"number {i}" for i in range(120)]
    table = ReplyTable.of(queries, {"cheap": scores, "dear": scores}, {"cheap": 0.1, "dear": 1.0})
    report = compare(table, [RoutePolicy("kernel", KernelQuality())], budget=1.0)
    assert report.recommendation.startswith("Use best single (cheap)")
    assert "no learned policy to be worth its trouble" in report.recommendation


def test_a_model_that_costs_nothing_is_advised():
    n = np.arange(200)
    fit, calibrate, test = (
        ReplyTable.of([f"{part} {i}" for i in n], {"free": n > 2, "dear": n % 150 > 0}, {"free": 0.0, "dear": 1.5})
        for part in ("fit", "calibrate", "test")
    )
    policies = [AlwaysPolicy("free"), AlwaysPolicy("dear")]
    report = compare(fit, policies, budget=2.0, calibrate=calibrate, test=test)
    assert report.recommendation.startswith("Use cheapest within a point (free): 0.985")
    assert re.search(r"costs \$1.\d+ more: on the same queries", report.recommendation)


def test_what_is_certified_is_told_apart_from_the_setting_at_the_budget(three):
    report = compare(three, [], budget=0.002, level=0.1)
    row = report.row("nearest neighbours")
    assert report.recommendation.startswith("Use nearest neighbours")
    assert report.best_quality - row.quality > 0.1  # what is advised is not what loses at most that
    assert row.certificate.spend_upper > report.budget
    assert re.search(
        r"Of its settings the cheapest that is certified, at risk 0.05, to lose at most 0.1 against large .* "
        r"spends at most \$0.00\d+ per query, above this budget\.$",
        report.recommendation,
    )


def test_a_certificate_that_keeps_nothing_from_the_best_model_is_no_advice(three):
    few = three.subset(range(120))
    said = compare(few, [RoutePolicy("kernel", KernelQuality())], budget=0.006).recommendation
    assert "None of its settings that keeps queries from large could be certified to lose at most 0.02" in said
    assert "keeps 0%" not in said
    n = np.arange(60)
    poor = ReplyTable.of([f"number {i}" for i in n], {"cheap": n < 2, "dear": n > 1}, {"cheap": 0.1, "dear": 1.0})
    best = compare(poor, [], budget=1.0).recommendation
    assert best.startswith("Use best single (dear)")
    assert "certified" not in best


def test_policies_are_certified_where_the_dearest_model_is_not_the_best():
    rng = np.random.default_rng(0)
    asked = [f"add {i} and 3 now" if i % 2 else f"who wrote the old book {i}" for i in range(2500)]
    right = {"cheap": np.where(np.arange(2500) % 2, 0.2, 0.9), "good": 0.9, "dear": 0.5}
    scores = {name: (rng.random(2500) < share).astype(float) for name, share in right.items()}
    table = ReplyTable.of(asked, scores, {"cheap": 0.1, "good": 0.3, "dear": 1.0})
    report = compare(table, [RoutePolicy("kernel", KernelQuality())], budget=0.3, level=0.08)
    assert report.best == "good"
    assert report.row("kernel").certificate.weak_share > 0.2
    assert report.row("kernel").certificate.spend_upper < 0.4


def test_a_curve_that_reaches_the_best_model_at_its_own_cost_is_not_praised_for_it():
    class AllButOne(AlwaysPolicy):
        def run(self, table, setting):
            answered = np.full(table.n_queries, table.column("dear"))
            answered[np.flatnonzero(table.scores[:, 0])[0]] = table.column("cheap")
            return Choices.direct(answered, 2)

    n = np.arange(1500)
    table = ReplyTable.of([f"number {i}" for i in n], {"cheap": n % 2, "dear": n > 0}, {"cheap": 0.1, "dear": 1.0})
    said = compare(table, [AllButOne("dear", "all but one")], budget=1.0).recommendation
    assert said.startswith("Use all but one")
    assert "reaches the quality" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {"table": t.of_models(["small"])}, "one model only"),
        (lambda t: {"budget": 0.0001}, "cheapest model costs 0.001"),
        (lambda t: {"budget": float("nan")}, "budget is nan but the cheapest model costs 0.001"),
        (lambda t: {"table": t.subset(range(3))}, "has 3 different scored queries"),
        (lambda t: {"table": replace(t, queries=("x", "y") * 200)}, "has 2 different scored queries"),
        (lambda t: {"calibrate": t}, "both tables or neither"),
        (lambda t: {"calibrate": t.subset(range(30)), "test": t.subset(range(50))}, "queries are in both"),
        (lambda t: {"policies": [AlwaysPolicy("large"), AlwaysPolicy("large")]}, "repeats a name"),
    ],
)
def test_compare_refuses(change, said, table):
    given = {"table": table, "policies": [AlwaysPolicy("large")], "budget": 0.01, **change(table)}
    with pytest.raises(InputError, match=said):
        compare(**given)


def test_all_wrong_and_all_equal():
    queries = [f"q {i} {'x' * (i % 7)}" for i in range(120)]
    wrong = ReplyTable.of(queries, {"a": np.zeros(120), "b": np.zeros(120)}, {"a": 0.1, "b": 1.0})
    with pytest.raises(InputError, match="Every score in the table is 0"):
        compare(wrong, [], budget=1.0)
    fit = ReplyTable.of([f"f{q}" for q in queries], {"a": np.arange(120) % 2, "b": np.ones(120)}, {"a": 0.1, "b": 1.0})
    calibrate = wrong.subset(range(60))
    report = compare(fit, [], budget=1.0, calibrate=calibrate, test=wrong.subset(range(60, 120)))
    assert any("Every answer in the test table is wrong" in said for said in report.warnings)


def test_models_of_one_price_are_compared_and_unscored_queries_counted():
    scores = np.arange(120) % 3 > 0
    part = np.where(np.arange(120) < 10, np.nan, 1 - scores)
    table = ReplyTable.of([f"q {i}" for i in range(120)], {"a": scores, "b": part}, {"a": 0.1, "b": 0.1})
    report = compare(table, [], budget=1.0)
    assert np.isnan([row.aiq for row in report.rows]).all()
    assert report.to_html().startswith("<!doctype html>")
    assert report.warnings[0] == "Left out 10 queries that some model has no score for."


def test_scores_that_leak_are_warned_of():
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 2, 900), rng.integers(0, 2, 900)
    queries = [f"small{a} large{b} number {i}" for i, (a, b) in enumerate(zip(small, large, strict=True))]
    table = ReplyTable.of(queries, {"small": small, "large": large}, {"small": 0.1, "large": 0.2})
    report = compare(table, [RoutePolicy(name, KernelQuality(gamma=g)) for name, g in (("a", 1), ("b", 2))], budget=0.2)
    assert "a, b are as good as knowing the scores: the queries or replies may give the labels away." in report.warnings
    assert "First make sure that the labels cannot be read off" in report.recommendation
    # One model is nearly always right: knowing the scores saves cost, not quality.
    table = ReplyTable.of(queries, {"small": small, "large": np.arange(900) % 99 > 0}, {"small": 0.1, "large": 0.9})
    report = compare(table, [RoutePolicy("leak", KernelQuality())], budget=0.9)
    assert any("give the labels away" in said for said in report.warnings)
    honest = replace(table, queries=tuple(f"number {i}" for i in range(900)))
    report = compare(honest, [RoutePolicy("no leak", KernelQuality())], budget=0.9)
    assert not any("give the labels away" in said for said in report.warnings)
