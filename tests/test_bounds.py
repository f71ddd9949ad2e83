"""Bounds against hand-computed values, and their promise over seeded simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish import bounds
from pilotfish.errors import InputError


def test_binomial_upper_solves_its_defining_equation() -> None:
    from scipy.stats import binom

    for k, n in [(0, 10), (3, 50), (20, 400)]:
        upper = float(bounds.binomial_upper(k, n, 0.05))
        assert binom.cdf(k, n, upper) == pytest.approx(0.05, abs=1e-9)
    assert float(bounds.binomial_upper(0, 60, 0.05)) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert float(bounds.binomial_upper(5, 5, 0.05)) == 1.0
    assert float(bounds.binomial_upper(0, 0, 0.05)) == 1.0


@given(st.integers(1, 300), st.data())
def test_lower_and_upper_enclose_the_observed_rate(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    assert float(bounds.binomial_lower(k, n, 0.05)) <= k / n <= float(bounds.binomial_upper(k, n, 0.05))


def test_empirical_bernstein_by_hand() -> None:
    x = np.array([0.0, 1.0, 0.0, 0.0] * 100)
    log_term = math.log(2 / 0.1)
    expected = 0.25 + math.sqrt(2 * x.var(ddof=1) * log_term / 400) + 7 * log_term / (3 * 399)
    assert bounds.empirical_bernstein_upper(x, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize("bound", [bounds.empirical_bernstein_upper, bounds.betting_upper])
def test_mean_bounds_hold_with_the_stated_risk(bound) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    n_missed = 0
    for _ in range(1000):
        x = rng.choice([0.0, 0.5, 1.0], p=[0.9, 0.05, 0.05], size=200)
        n_missed += bound(x, 0.1) < 0.075
    assert n_missed <= 100 + 3 * math.sqrt(1000 * 0.1 * 0.9)


def test_betting_p_value_agrees_with_its_bound() -> None:
    x = np.random.default_rng(1).beta(1, 9, size=300)
    upper = bounds.betting_upper(x, 0.05)
    assert bounds.betting_p_value(x, upper + 1e-4) <= 0.05 < bounds.betting_p_value(x, upper - 1e-3)


def _calls(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are honest probabilities of being right."""
    p = rng.beta(6, 1, size=n)
    return p, (rng.random(n) > p).astype(float)


@pytest.mark.parametrize("rule", ["monotone", "selective"])
def test_threshold_breaks_its_level_in_at_most_delta_of_1000_splits(rule: str) -> None:
    rng = np.random.default_rng(2)
    grid = np.linspace(0, 1, 2001)
    fine, _ = _calls(rng, 400_000)
    order = np.sort(fine)[::-1]
    wrong_above = np.cumsum(1 - order) / fine.size
    share_above = np.arange(1, fine.size + 1) / fine.size
    n_broken, kept = 0, []
    for _ in range(1000):
        scores, losses = _calls(rng, 1500)
        if rule == "monotone":
            at = bounds.monotone_threshold(scores, losses, 0.03, 0.05)
        else:
            at = bounds.selective_threshold(scores, losses, 0.05, 0.05, grid)
        if math.isinf(at):
            continue
        i = np.searchsorted(-order, -at, side="right") - 1
        risk = wrong_above[i] if rule == "monotone" else wrong_above[i] / share_above[i]
        n_broken += risk > (0.03 if rule == "monotone" else 0.05)
        kept.append(share_above[i])
    assert n_broken <= 50 + 3 * math.sqrt(1000 * 0.05 * 0.95)
    assert np.mean(kept) > 0.2


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_both_sides_of_a_threshold_are_reachable(seed: int) -> None:
    scores, losses = _calls(np.random.default_rng(seed), 800)
    at = bounds.monotone_threshold(scores, losses, 0.03, 0.05)
    assert (scores >= at).any()
    assert (scores < at).any()


def test_ties_are_chosen_together_or_not_at_all() -> None:
    scores = np.array([0.9] * 200 + [0.5] * 100)
    losses = np.array([0.0] * 200 + [1.0] * 50 + [0.0] * 50)
    assert bounds.monotone_threshold(scores, losses, 0.05, 0.05) == 0.9


def test_nothing_certifiable_is_infinity() -> None:
    assert bounds.monotone_threshold(np.ones(10), np.zeros(10), 0.03, 0.05) == math.inf
    assert bounds.selective_threshold(np.ones(10), np.zeros(10), 0.03, 0.05) == math.inf
    assert bounds.monotone_threshold([], [], 0.03, 0.05) == math.inf


def test_samples_needed_is_the_first_number_that_suffices() -> None:
    n = bounds.samples_needed(0.03, 0.05, rate=0.0)
    assert bounds.binomial_upper(0, n, 0.05) <= 0.03 < bounds.binomial_upper(0, n - 1, 0.05)


def test_exceedance_first_step_by_hand() -> None:
    test = bounds.ExceedanceTest(0.1, 0.05)
    test.update(True)
    weight = 1 - 1 / (1 + math.log(2))
    fractions = (0.01, 0.03, 0.1, 0.25, 0.5, 0.75)
    expected = weight * sum(1 + f * 0.9 / 0.1 for f in fractions) / 6 + 1 / (1 + math.log(2))
    assert test.evidence == pytest.approx(expected)


def test_exceedance_false_alarms_stay_below_delta() -> None:
    rng = np.random.default_rng(3)
    n_alarms = 0
    for _ in range(200):
        test = bounds.ExceedanceTest(0.05, 0.1)
        n_alarms += test.extend((rng.random(3000) < 0.05).tolist())
    assert n_alarms <= 20 + 3 * math.sqrt(200 * 0.1 * 0.9)


def test_exceedance_notices_a_late_rise() -> None:
    rng = np.random.default_rng(4)
    delays = []
    for _ in range(20):
        test = bounds.ExceedanceTest(0.03, 0.01)
        assert not test.extend((rng.random(5000) < 0.02).tolist())
        delays.append(next(i for i in range(2000) if test.update(bool(rng.random() < 0.13))))
    assert np.median(delays) < 500


def test_exceedance_state_survives_json() -> None:
    test = bounds.ExceedanceTest(0.03, 0.01)
    test.extend([False] * 10 + [True] * 2)
    again = bounds.ExceedanceTest.from_json(test.to_json())
    assert again.update(True) == test.update(True)
    assert again.evidence == test.evidence


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: bounds.binomial_upper(1, 2, 0), "delta"),
        (lambda: bounds.binomial_p_value(1, 2, 1.5), "level"),
        (lambda: bounds.betting_upper([2.0], 0.05), "Losses"),
        (lambda: bounds.monotone_threshold([0.1], [0.5], 0.1, 0.05), "losses"),
        (lambda: bounds.monotone_threshold([0.1, 0.2], [0.0], 0.1, 0.05), "scores"),
        (lambda: bounds.ExceedanceTest(1.0, 0.05), "limit"),
        (lambda: bounds.samples_needed(0.03, 0.05, 0.03), "rate"),
    ],
)
def test_bad_input_names_the_field(call, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=name):
        call()
