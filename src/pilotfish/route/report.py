"""The page of a comparison: curves with their hulls and intervals, a table, certificates and words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pilotfish.page import Mark, Series, cards, chart, page, section, table
from pilotfish.route.curves import hull

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pilotfish.route.compare import Report, Row

__all__ = ["render"]


def render(report: Report) -> str:
    """Write a report as one self-contained page."""
    policies = [row for row in report.rows if not row.baseline]
    own = [row for row in report.rows if row.baseline]
    head = section(
        "What to use",
        cards(
            [
                ("budget", _dollars(report.budget), "per query"),
                ("best single model", f"{report.best_quality:.3f}", f"{report.best} at {_dollars(report.best_cost)}"),
                ("cheapest model", report.cheapest, "learned from the fitting queries"),
                ("test queries", f"{report.n_test:,}", "scored once"),
            ]
        ),
        note=report.recommendation,
    )
    parts = [head]
    if report.warnings:
        parts.append(section("Read first", table(["warning"], [[said] for said in report.warnings])))
    drawn = [_drawn(row) for row in (*_best_somewhere(policies), *own)]
    parts.append(
        section(
            "Cost and quality",
            chart(
                drawn,
                x_label="dollars per query",
                y_label="mean score",
                marks=[Mark(report.budget, "budget")] if math.isfinite(report.budget) else [],
            ),
            note="The policies that are best at some cost, and the baselines; each policy has its own chart below. "
            "Lines are hulls: what a policy reaches when its settings are mixed. Points have one setting.",
        )
    )
    parts.append(
        section(
            "Each policy",
            '<div class="two">' + "".join(_alone(row, report) for row in policies) + "</div>",
            note="Its hull with the 95 % interval of the mean score on the test queries, beside a random mix of the "
            "cheapest and the best model; dots are its settings.",
        )
    )
    within = sorted((row for row in report.rows if row.within_budget), key=lambda row: -row.quality)
    above = [row for row in report.rows if not row.within_budget]
    parts.append(
        section(
            "At the budget",
            table(
                [
                    "policy",
                    "score",
                    "95 % interval",
                    "cost",
                    "hull height (AIQ)",
                    "gap recovered",
                    "cost at best single",
                ],
                [_line(row, report) for row in (*within, *above)],
                numeric=(1, 2, 3, 4, 5, 6),
            ),
            note="Settings were chosen on the calibration queries; every number is from the test queries. "
            "Above the budget, the cost is the cheapest setting's. The oracle knows the scores and cannot be run.",
        )
    )
    proven = [row for row in report.rows if row.certificate is not None]
    parts.append(
        section(
            "What is certified",
            table(
                ["policy", "loss at most", f"queries kept from {report.best}", "spend at most", "risk"],
                [_proof(row) for row in proven],
                numeric=(1, 2, 3, 4),
            ),
            note="Of each policy the cheapest setting that is certified, whatever the budget. Bounds hold for traffic "
            "like the calibration queries, each at its risk.",
        )
    )
    return page("Routing report", f"{len(policies)} policies and {len(own)} baselines on recorded replies", *parts)


def _best_somewhere(rows: Sequence[Row]) -> list[Row]:
    """The rows whose hull is the highest at some cost; of equals, the first."""
    if not rows:
        return []
    tops = [hull(row.curve) for row in rows]
    costs = np.unique(np.concatenate([top.costs for top in tops]))
    heights = np.array([np.interp(costs, top.costs, top.qualities, left=-np.inf) for top in tops])
    return [rows[k] for k in np.unique(heights.argmax(axis=0))]


def _drawn(row: Row) -> Series:
    top = hull(row.curve)
    return Series(row.name, top.costs.tolist(), top.qualities.tolist(), points=top.costs.size == 1)


def _alone(row: Row, report: Report) -> str:
    top, line = hull(row.curve), _drawn(row)
    around = np.stack([top.qualities] * 2, axis=1) if top.ends is None else top.ends
    seen = np.concatenate([r.scores for r in report.rows] or [np.empty(0)])
    ends = (seen.min(), seen.max()) if seen.size else (-np.inf, np.inf)  # no mean leaves the scores' own range
    low, high = (np.clip(column, *ends).tolist() for column in around.T)
    settings = Series("settings", row.curve.costs.tolist(), row.curve.qualities.tolist(), points=True)
    shown = [replace(line, low=low, high=high), *(_drawn(r) for r in report.rows if r.name == "random"), settings]
    return chart(shown, x_label="dollars per query", y_label="mean score")


def _line(row: Row, report: Report) -> list[str]:
    at_best = (
        f"{row.cost_at_best / report.best_cost:.0%}" if math.isfinite(row.cost_at_best) and report.best_cost else "-"
    )
    return [
        row.name,
        f"{row.quality:.3f}" if row.within_budget else "-",
        f"{row.low:.3f} to {row.high:.3f}" if row.within_budget else "above budget",
        _dollars(row.cost if row.within_budget else row.least_cost),
        f"{row.aiq:.3f}" if math.isfinite(row.aiq) else "-",
        f"{row.recovered:.2f}" if math.isfinite(row.recovered) else "-",
        at_best,
    ]


def _proof(row: Row) -> list[str]:
    proof = row.certificate
    if proof is None or proof.setting is None:
        return [row.name, "not certified", "-", "-", "-"]
    return [
        row.name,
        f"{proof.loss_level:g}",
        f"{proof.weak_share:.0%}",
        _dollars(proof.spend_upper),
        f"{proof.delta:g}",
    ]


def _dollars(value: float) -> str:
    return f"${value:.3g}" if math.isfinite(value) else "-"
