"""Rules: conformance, laws, the integer program against brute force, the plan under partial sight by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError
from pilotfish.rules import (
    Argmax,
    PartialObservation,
    Threshold,
    TopK,
    WithinBudget,
    assign_within_budget,
    value_minus_price,
)

HAND = PartialObservation((0.5, 0.3, 0.2), ((0.2, 0.8), (0.7, 0.3), (0.5, 0.5)), 0.9, 0.1, 0.02, n_checks=2)


@pytest.mark.parametrize("rule", [Threshold(0.5), TopK(2), Argmax(), WithinBudget(1.0, (1.0, 1.0, 1.0)), HAND])
def test_every_rule_keeps_the_contract(rule):
    decision = rule.decide(np.array([0.0, 1.0, 1.0]))
    assert decision.indices.shape == decision.weights.shape
    assert len(set(decision.indices.tolist())) == decision.indices.size
    with pytest.raises(InputError, match="NaN"):
        rule.decide(np.array([0.0, np.nan, 1.0]))
    with pytest.raises(InputError, match="shape"):
        rule.decide(np.zeros((2, 3)))


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 3)), min_size=1, max_size=12), st.floats(0, 3))
def test_budgets_are_kept(items, budget):
    chosen = WithinBudget(budget, tuple(c for _, c in items)).decide(np.array([s for s, _ in items])).indices
    assert sum(items[i][1] for i in chosen) <= budget * len(items) + 1e-9


@given(st.integers(0, 10_000), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_value_minus_price_is_the_best_of_each_row(seed, price):
    rng = np.random.default_rng(seed)
    scores, costs = rng.random((6, 3)), rng.random((6, 3))
    chosen = value_minus_price(scores, costs, price)
    value = scores - price * costs
    np.testing.assert_allclose(value[np.arange(6), chosen], value.max(axis=1))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_integer_program_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    scores, costs = rng.random((5, 3)), rng.random((5, 3))
    budget = float(costs.min(axis=1).mean() + 0.2)
    best = max(
        sum(scores[i, j] for i, j in enumerate(choice))
        for choice in itertools.product(range(3), repeat=5)
        if sum(costs[i, j] for i, j in enumerate(choice)) <= budget * 5
    )
    chosen = assign_within_budget(scores, costs, budget)
    assert scores[np.arange(5), chosen].sum() == pytest.approx(best, abs=2e-4)
    assert costs[np.arange(5), chosen].mean() <= budget + 1e-6


def test_many_rows_keep_to_the_budget_too():
    rng = np.random.default_rng(0)
    scores, costs = rng.random((3000, 4)), rng.random((3000, 4))
    chosen = assign_within_budget(scores, costs, 0.3)
    assert 0.28 < costs[np.arange(3000), chosen].mean() <= 0.3


def test_a_budget_below_the_cheapest_is_refused():
    with pytest.raises(InputError, match="cheapest choice costs 1"):
        assign_within_budget(np.ones((2, 2)), np.ones((2, 2)), 0.5)
    with pytest.raises(InputError, match="not finite"):
        value_minus_price(np.ones((1, 2)), np.array([[1.0, np.inf]]), 1.0)
    with pytest.raises(InputError, match="one per item"):
        WithinBudget(1.0, (1.0,)).decide(np.zeros(3))


def test_belief_and_values_by_hand():
    belief = HAND.belief(np.array([1]))
    joint = np.array([0.5 * 0.8, 0.3 * 0.3, 0.2 * 0.5])
    np.testing.assert_allclose(belief, joint / joint.sum())
    accept, route, check = HAND.values(belief, 1)
    assert accept == pytest.approx(belief[0])
    assert route == pytest.approx(0.9 * belief[0] + belief[1] - 0.1)
    expected = -0.02
    for column in ((0.2, 0.7, 0.5), (0.8, 0.3, 0.5)):
        after = belief * np.array(column)
        expected += max(after[0], 0.9 * after[0] + after[1] - 0.1 * after.sum())
    assert check == pytest.approx(expected)


def test_a_plan_is_fitted_and_accepts_what_checks_out():
    rng = np.random.default_rng(0)
    small = (rng.random(2000) < 0.5).astype(float)
    large = (rng.random(2000) < 0.9).astype(float)
    seen = np.where(rng.random(2000) < 0.85, small, 1 - small).astype(int)
    plan = PartialObservation.fit(seen, small, large, n_bins=2, route_price=0.2)
    assert plan.likelihood[0][1] == pytest.approx(0.85, abs=0.03)
    assert plan.decide(np.array([0.0, 1.0])).indices.tolist() == [1]
