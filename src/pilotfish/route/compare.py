"""Compare policies on recorded replies: curves, hulls, baselines, intervals, certificates and a recommendation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray
from pilotfish.route.budget import parse_budget
from pilotfish.route.certify import Certificate, certify
from pilotfish.route.curves import Curve, average_quality, hull
from pilotfish.route.deploy import in_service
from pilotfish.route.heads import HeadPolicy
from pilotfish.route.policies import AlwaysPolicy, Choices, OraclePolicy, Policy, RandomPolicy, RoutePolicy
from pilotfish.scorers.quality import NeighbourQuality
from pilotfish.statistics import difference_interval, mean_interval
from pilotfish.traffic.table import ReplyTable, refuse_no_choice, refuse_shared_queries

__all__ = ["Report", "Row", "baselines", "compare", "curve_of", "leaks", "warned_of_leaks", "warned_of_table"]

_FEWEST_FOR_LEAKS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One policy in a report; every number is measured on the test queries unless it says otherwise.

    Parameters
    ----------
    name : str
        The policy.
    curve : Curve
        Its settings' mean cost and quality on the test queries.
    cost, quality : float
        At the setting chosen on the calibration queries for the budget; NaN when no setting keeps to it.
    low, high : float
        95 % interval of the quality.
    aiq : float
        Mean height of the hull between the cheapest model's and the dearest model's cost; NaN when all cost the same.
    recovered : float
        APGR over cost: mean share of the quality gap between the cheapest and the best model that the hull recovers;
        NaN without a gap.
    cost_at_best : float
        Least cost on the hull that reaches the best single model's quality; NaN when it is not reached.
    certificate : Certificate or None
        What is certified on the calibration queries.
    baseline : bool
        Whether it is a baseline; the oracle cannot be run in service.
    scores : ndarray (n_test,) or (0,)
        Score of each test query at that setting; empty when there is none.
    """

    name: str
    curve: Curve
    cost: float
    quality: float
    low: float
    high: float
    aiq: float
    recovered: float
    cost_at_best: float
    certificate: Certificate | None
    baseline: bool
    scores: FloatArray

    @property
    def within_budget(self) -> bool:
        """Whether some setting keeps to the budget."""
        return bool(np.isfinite(self.quality))

    @property
    def least_cost(self) -> float:
        """Mean cost of the cheapest setting on the test queries."""
        return float(self.curve.costs[0])


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A comparison of policies on one test table.

    Parameters
    ----------
    rows : tuple of Row
        Policies, then baselines.
    budget : float
        Dollars per query.
    cheapest, best : str
        The cheapest and the best single model on the fitting queries.
    best_cost, best_quality : float
        The best single model's mean cost and quality on the test queries.
    n_test : int
        Test queries.
    recommendation : str
        Which policy to use, and why, in words.
    warnings : tuple of str
        What a reader should know first.
    """

    rows: tuple[Row, ...]
    budget: float
    cheapest: str
    best: str
    best_cost: float
    best_quality: float
    n_test: int
    recommendation: str
    warnings: tuple[str, ...]

    def row(self, name: str) -> Row:
        """Find a policy's row by name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"The report has no policy {name!r}: it has {', '.join(r.name for r in self.rows)}.")

    def to_json(self) -> dict[str, Any]:
        """Write the report as plain data; numbers that are not finite become null."""
        rows = []
        for row in self.rows:
            plain = {k: _plain(getattr(row, k)) for k in _NUMBERS}
            points = {"costs": row.curve.costs.tolist(), "qualities": row.curve.qualities.tolist()}
            proof = None
            if row.certificate is not None:
                proof = {k: _plain(v) for k, v in asdict(row.certificate).items() if k != "setting"}
                proof["found"] = row.certificate.setting is not None
            rows.append({"name": row.name, "baseline": row.baseline, **plain, "curve": points, "certificate": proof})
        own = ("budget", "cheapest", "best", "best_cost", "best_quality", "n_test", "recommendation")
        return {**{k: _plain(getattr(self, k)) for k in own}, "warnings": list(self.warnings), "rows": rows}

    def to_html(self) -> str:
        """Write the report as one self-contained page."""
        from pilotfish.route.report import render

        return render(self)


_NUMBERS = ("cost", "quality", "low", "high", "aiq", "recovered", "cost_at_best")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def baselines(table: ReplyTable) -> list[Policy]:
    """Make the honest baselines: random mix, best single, cheapest within a point, nearest neighbours, oracle."""
    quality, cost = np.nanmean(table.scores, axis=0), np.nanmean(table.costs, axis=0)
    best = int(quality.argmax())
    near = np.flatnonzero(quality >= quality[best] - 0.01)
    cheap = int(near[cost[near].argmin()])
    found: list[Policy] = [RandomPolicy(), AlwaysPolicy(table.models[best], f"best single ({table.models[best]})")]
    found.append(AlwaysPolicy(table.models[cheap], f"cheapest within a point ({table.models[cheap]})"))
    found.append(RoutePolicy("nearest neighbours", NeighbourQuality()))
    found.append(OraclePolicy())
    return found


def compare(
    table: ReplyTable,
    policies: Sequence[Policy],
    budget: float | str,
    *,
    calibrate: ReplyTable | None = None,
    test: ReplyTable | None = None,
    level: float = 0.02,
    delta: float = 0.05,
    seed: int = 0,
) -> Report:
    """Fit policies, choose their settings for a budget, and measure them once on test queries, beside the baselines.

    Parameters
    ----------
    table : ReplyTable
        Replies to learn from; cut 60 : 20 : 20 by query text unless ``calibrate`` and ``test`` are given. Queries that
        some model has no score for are left out, and counted in the warnings.
    policies : sequence of Policy
        What to compare; their names must differ.
    budget : float or str
        Dollars per query, or text such as ``2usd/1k``.
    calibrate, test : ReplyTable, optional
        Give both or none; they may share no query with each other or with ``table``, and hold its models in any order.
    level, delta : float
        Loss against the best single model and risk, for the certificates.
    seed : int
        Seed of the cut and the intervals.

    Raises
    ------
    InputError
        When there is nothing to choose (one model only, fewer than 4 queries, every score the same, a budget below the
        cheapest model), tables share queries or lack a model, or names repeat.
    """
    budget = parse_budget(budget)
    if (calibrate is None) != (test is None):
        raise InputError("calibrate and test: give both tables or neither.")
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise InputError(f"policies repeats a name among {', '.join(names)}: give each its own.")
    given = [part for part in (table, calibrate, test) if part is not None]
    if calibrate is None or test is None:
        table = table.complete()
        refuse_no_choice(table, budget)
        table, calibrate, test = table.split((0.6, 0.2, 0.2), seed=seed)
    else:
        refuse_no_choice(table, budget)
    refuse_shared_queries(fit=table, calibrate=calibrate, test=test)
    calibrate, test = (part.of_models(table.models).complete() for part in (calibrate, test))
    n_left_out = sum(part.n_queries for part in given) - sum(part.n_queries for part in (table, calibrate, test))
    quality, cost = np.nanmean(table.scores, axis=0), np.nanmean(table.costs, axis=0)
    best, cheapest = int(quality.argmax()), int(cost.argmin())
    own = baselines(table)
    rows = []
    for policy in (*policies, *own):
        try:
            policy.fit(table)
        except InputError as error:
            raise InputError(f"{policy.name} cannot be fitted on {table.n_queries} queries: {error}") from error
        row = _row(policy, calibrate, test, budget, table.models[best], cheapest, seed, policy in own)
        if not isinstance(policy, OraclePolicy):
            # Choices of one query that depend on the others', as an integer program's do, are no sample to bound by.
            served = in_service(policy)
            strong = table.models[best]
            settings = _worth_testing(served, table, strong)
            proof = certify(served, calibrate, strong=strong, level=level, delta=delta, settings=settings)
            row = replace(row, certificate=proof)
        rows.append(row)
    # A head of its own may rightly know more than any model.
    judged = zip(policies, rows, strict=False)
    leaking = leaks({row.name: row.curve for policy, row in judged if not isinstance(policy, HeadPolicy)}, test)
    return Report(
        rows=tuple(rows),
        budget=budget,
        cheapest=table.models[cheapest],
        best=table.models[best],
        best_cost=float(test.costs[:, best].mean()),
        best_quality=float(test.scores[:, best].mean()),
        n_test=test.n_queries,
        recommendation=_recommend(rows, budget, test, best, table.models[best], level, leaking),
        warnings=(*_warnings(table, test, n_left_out), *warned_of_leaks(leaking)),
    )


def _row(
    policy: Policy,
    calibrate: ReplyTable,
    test: ReplyTable,
    budget: float,
    best: str,
    cheapest: int,
    seed: int,
    baseline: bool,
) -> Row:
    settings = policy.settings(calibrate)
    runs = [policy.run(calibrate, setting) for setting in settings]
    means = [(float(c.costs(calibrate).mean()), float(c.qualities(calibrate).mean())) for c in runs]
    within = [k for k, (cost, _) in enumerate(means) if cost <= budget + 1e-12]
    tested = [policy.run(test, setting) for setting in settings]
    curve = _curve(test, tested)
    cost = quality = low = high = float("nan")
    values: FloatArray = np.empty(0)
    if within:
        chosen = tested[max(within, key=lambda k: (means[k][1], -means[k][0]))]
        values = chosen.qualities(test)
        cost, quality = float(chosen.costs(test).mean()), float(values.mean())
        found = mean_interval(values, seed=seed)
        low, high = found.low, found.high
    single_costs, single = test.costs.mean(axis=0), test.scores.mean(axis=0)
    b = test.column(best)
    top = hull(curve)
    alike = np.ptp(single_costs) == 0
    aiq = float("nan") if alike else average_quality(curve, float(single_costs.min()), float(single_costs.max()))
    gap = float(single[b] - single[cheapest])
    recovered = float("nan")
    if gap > 0 and single_costs[b] > single_costs[cheapest]:
        grid = np.linspace(single_costs[cheapest], single_costs[b], 201)
        heights = np.interp(grid, top.costs, top.qualities, left=float(single[cheapest]))
        recovered = float(((heights - single[cheapest]) / gap).mean())
    reached = np.linspace(top.costs[0], top.costs[-1], 2001) if top.costs.size > 1 else top.costs
    good = np.interp(reached, top.costs, top.qualities) >= single[b] - 1e-9
    at_best = float(reached[np.argmax(good)]) if good.any() else float("nan")
    return Row(policy.name, curve, cost, quality, low, high, aiq, recovered, at_best, None, baseline, values)


def _worth_testing(policy: Policy, fit: ReplyTable, strong: str) -> list[Any]:
    """Settings to certify, found on the fitting queries: those from where the policy loses nothing on these.

    Where the dearest model is not the best one, dearer settings than that only lose, and the first of them to be tested
    would end the search.
    """
    settings, column = policy.settings(fit), fit.scores[:, fit.column(strong)]
    for k in range(len(settings), 0, -1):
        if np.nanmean(column - policy.run(fit, settings[k - 1]).qualities(fit)) <= 0:
            return settings[:k]
    return settings


def _named(pick: Row, test: ReplyTable) -> str:
    """What to use; a policy that asks one model alone at this budget is that model."""
    if pick.curve.costs.size > 1:
        for k, model in enumerate(test.models):
            if np.array_equal(pick.scores, test.scores[:, k]) and np.isclose(pick.cost, test.costs[:, k].mean()):
                return f"{model} alone"
    return pick.name


def _recommend(
    rows: Sequence[Row],
    budget: float,
    test: ReplyTable,
    best: int,
    best_name: str,
    level: float,
    leaking: Sequence[str],
) -> str:
    runnable = [r for r in rows if r.name != "oracle" and r.within_budget]
    if not runnable:
        return f"No policy keeps to ${budget:.3g} per query on the calibration queries: raise the budget."
    winner = max(runnable, key=lambda r: r.quality)
    # All answered the same queries: a difference of two is far surer than either mean.
    as_good = [r for r in runnable if difference_interval(winner.scores - r.scores).low <= 0]
    rivals = [r for r in as_good if r.cost < winner.cost * 0.98]
    pick = min(rivals, key=lambda r: r.cost, default=winner)
    # A single model that does as well is preferred to any policy.
    single = [r for r in as_good if r.baseline and r.curve.costs.size == 1]
    alike = [r for r in single if r.cost <= pick.cost and r.quality >= pick.quality]
    pick = min(alike, key=lambda r: (r.cost, -r.quality), default=pick)
    single_cost, single_quality = float(test.costs[:, best].mean()), float(test.scores[:, best].mean())
    said = [
        f"Use {_named(pick, test)}: {pick.quality:.3f} (95 % interval {pick.low:.3f} to {pick.high:.3f}) "
        f"at ${pick.cost:.3g} per query, where always {best_name} has {single_quality:.3f} at ${single_cost:.3g}."
    ]
    if pick is not winner:
        found = difference_interval(winner.scores - pick.scores)
        said.append(
            f"{winner.name} scores {winner.quality:.3f} and costs {_more(winner.cost, pick.cost)}: on the same queries "
            f"the difference may be none (95 % interval {found.low:+.3f} to {found.high:+.3f})."
        )
    if pick.name in leaking:
        said.append("First make sure that the labels cannot be read off what it reads: it is as good as knowing them.")
    if pick.baseline:
        said.append("It is a baseline: these replies show no learned policy to be worth its trouble at this budget.")
    share = pick.cost_at_best / single_cost if single_cost > 0 else float("nan")
    if share < 0.995:
        said.append(f"Its curve reaches the quality of {best_name} at {share:.0%} of its cost.")
    if pick.curve.costs.size == 1 and np.array_equal(pick.scores, test.scores[:, best]):
        return " ".join(said)  # against itself the best model loses nothing, and keeps nothing from itself
    proof = pick.certificate
    if proof is not None and proof.setting is not None and proof.weak_share >= 0.005:
        above = ", above this budget" if proof.spend_upper > budget else ""
        said.append(
            f"Of its settings the cheapest that is certified, at risk {proof.delta:g}, to lose at most {level:g} "
            f"against {best_name} keeps {proof.weak_share:.0%} of queries from it and spends at most "
            f"${proof.spend_upper:.3g} per query{above}."
        )
    else:
        said.append(
            f"None of its settings that keeps queries from {best_name} could be certified to lose at most {level:g} "
            "against it: record more queries before switching on, or allow a greater loss."
        )
    return " ".join(said)


def _more(cost: float, less: float) -> str:
    if less <= 0:
        return f"${cost:.3g} more"
    return f"{cost / less - 1:.0%} more" if cost < 2 * less else f"{cost / less:.2g} times as much"


def _warnings(table: ReplyTable, test: ReplyTable, n_left_out: int) -> list[str]:
    said = warned_of_table(table, n_left_out)
    if table.n_queries < 200 or test.n_queries < 100:
        said.append(
            f"Only {table.n_queries} queries were learned from and {test.n_queries} tested on: intervals are wide."
        )
    if float(np.nanmax(test.scores, axis=1).mean()) == 0:
        said.append("Every answer in the test table is wrong: no policy can be told from another.")
    return said


def warned_of_table(table: ReplyTable, n_left_out: int) -> list[str]:
    """What a reader should know of a table, of which queries without some score were left out."""
    said = [f"Left out {n_left_out} queries that some model has no score for."] if n_left_out else []
    if not table.costs.any():
        said.append("Every cost in the table is 0: models are told apart by their scores alone.")
    return said


def _curve(table: ReplyTable, choices: Sequence[Choices]) -> Curve:
    scored = np.array([choice.qualities(table) for choice in choices])
    ends = [_ends(values) for values in scored]
    return Curve.of([choice.costs(table).mean() for choice in choices], scored.mean(axis=1), ends)


def _ends(values: FloatArray) -> tuple[float, float]:
    """95 % interval of a mean: exact for right and wrong, else by its standard error, as there are many to draw."""
    if np.isin(values, (0.0, 1.0)).all():
        exact = mean_interval(values)
        return exact.low, exact.high
    mean, around = float(values.mean()), 1.96 * float(values.std()) / values.size**0.5
    return mean - around, mean + around


def curve_of(policy: Policy, table: ReplyTable) -> Curve:
    """Mean cost and quality of every setting of a fitted policy on a table."""
    return _curve(table, [policy.run(table, setting) for setting in policy.settings(table)])


def leaks(curves: Mapping[str, Curve], table: ReplyTable) -> tuple[str, ...]:
    """Find the policies that are as good as knowing the scores, so that what they read is likely to hold the labels.

    They recover all of what the oracle gains: over the best single model, or over a random mix.

    Parameters
    ----------
    curves : mapping of str to Curve
        By policy, on a table that none was fitted on.
    table : ReplyTable
        That table. Fewer than 100 queries cannot tell.
    """
    if table.n_queries < _FEWEST_FOR_LEAKS:
        return ()
    costs, single = table.costs.mean(axis=0), float(table.scores.mean(axis=0).max())
    ends = float(costs.min()), float(costs.max())
    oracle, random = (curve_of(policy.fit(table), table) for policy in (OraclePolicy(), RandomPolicy()))
    measures = [(float(oracle.qualities.max()), single, {k: float(c.qualities.max()) for k, c in curves.items()})]
    if ends[0] < ends[1]:
        heights = {name: average_quality(curve, *ends) for name, curve in curves.items()}
        measures.append((average_quality(oracle, *ends), average_quality(random, *ends), heights))
    return tuple(
        name
        for name in curves
        if any(top - low > 0.02 and values[name] > top - 0.02 * (top - low) for top, low, values in measures)
    )


def warned_of_leaks(names: Sequence[str]) -> list[str]:
    """What a reader should know of policies that :func:`leaks` found."""
    are = "is" if len(names) == 1 else "are"
    said = f"{', '.join(names)} {are} as good as knowing the scores: the queries or replies may give the labels away."
    return [said] if names else []
