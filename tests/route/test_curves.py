"""AIQ, APGR, CPT and hulls against hand-computed values and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError
from pilotfish.route.compare import compare
from pilotfish.route.curves import (
    Curve,
    apgr,
    average_quality,
    call_curve,
    calls_for,
    cpt,
    hull,
    pareto,
)
from pilotfish.traffic.table import ReplyTable

# Costs that differ by less than a nanodollar differ by rounding alone, and a slope between them may have no number.
costs = st.floats(0, 10).map(lambda x: round(x, 9))
points = st.lists(st.tuples(costs, st.floats(0, 1)), min_size=1, max_size=15)


@given(points)
@settings(deadline=None)
def test_hull_is_above_every_point_rises_and_bends_down(given_points):
    curve = Curve.of([x for x, _ in given_points], [y for _, y in given_points])
    top = hull(curve)
    heights = np.interp(curve.costs, top.costs, top.qualities)
    assert (heights >= curve.qualities - 1e-7).all()
    assert (np.diff(top.qualities) >= 0).all()
    slopes = np.diff(top.qualities) / np.diff(top.costs)
    assert (np.diff(slopes) <= 1e-7 * np.maximum(1, np.abs(slopes[1:]))).all()


def test_apgr_by_hand():
    weak, strong = [0, 0, 1, 1], [1, 1, 1, 1]
    assert apgr([4, 3, 2, 1], weak, strong) == pytest.approx((0.25 + 0.75 + 1 + 1) / 4)
    assert apgr([1, 2, 3, 4], weak, strong) == pytest.approx((0 + 0 + 0.25 + 0.75) / 4)
    assert cpt([4, 3, 2, 1], weak, strong, 0.8) == 0.5
    assert cpt([4, 3, 2, 1], weak, strong, 0.5) == 0.25
    assert calls_for([4, 3, 2, 1], weak, strong, 0.75) == 0.25
    np.testing.assert_allclose(call_curve([4, 3, 2, 1], weak, strong), [0.5, 0.75, 1, 1, 1])


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_random_routing_recovers_half(seed):
    rng = np.random.default_rng(seed)
    weak = (rng.random(4000) < 0.5).astype(float)
    strong = np.maximum(weak, rng.random(4000) < 0.6)
    assert apgr(rng.random(4000), weak, strong) == pytest.approx(0.5, abs=0.06)


def test_area_under_hull_by_hand():
    assert average_quality(Curve.of([0, 1, 2], [0, 1, 1]), 0, 2) == pytest.approx(0.75, abs=1e-6)
    assert average_quality(Curve.of([1], [1]), 0, 2) == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Curve.of([], []),
        lambda: Curve.of([np.nan], [1]),
        lambda: apgr([1, 2], [1, 1], [1, 1]),
        lambda: apgr([1], [1, 0], [1, 1]),
        lambda: average_quality(Curve.of([0], [1]), 1, 1),
    ],
)
def test_bad_curves_are_refused(call):
    with pytest.raises(InputError):
        call()


def test_pareto_keeps_the_frontier():
    assert pareto([1, 2, 3, 1], [0.5, 0.4, 0.9, 0.6]) == [3, 2]


@pytest.mark.parametrize("budget", [0.0011, 0.005])
def test_a_mix_that_asks_one_model_alone_is_advised_as_that_model(budget):
    rng = np.random.default_rng(0)
    scores = {"cheap": rng.random(300) < 0.5, "dear": rng.random(300) < 0.8}
    table = ReplyTable.of([f"question {i}" for i in range(300)], scores, {"cheap": 0.001, "dear": 0.01})
    assert compare(table, [], budget=budget).recommendation.startswith("Use cheap alone: 0.467")
