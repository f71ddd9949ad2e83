"""Statistics: hand-computed values, coverage over seeds, and refusal of NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pilotfish.errors import InputError
from pilotfish.scorers.calibration import calibration_error
from pilotfish.statistics import (
    auroc,
    auroc_interval,
    bootstrap_interval,
    difference_interval,
    length_matched,
    mean_interval,
    paired_test,
    segment_correlation,
    spearman_interval,
    system_correlation,
    wmt_kendall,
)


def test_the_mean_of_right_and_wrong_has_an_exact_interval_and_differences_do_not():
    none = mean_interval(np.zeros(50))
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))
    values = np.random.default_rng(0).random(500)
    assert mean_interval(values) == difference_interval(values)
    assert difference_interval(np.zeros(50)).high == 0.0


def test_mean_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        found = mean_interval(rng.normal(1.0, 1.0, 60), n_resamples=300, seed=seed)
        hits += found.low <= 1.0 <= found.high
    assert 86 <= hits <= 100


def test_few_scores_have_an_interval_as_wide_as_it_must_be():
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for seed in range(200):
        five = difference_interval(rng.normal(1.0, 1.0, 5), n_resamples=200, seed=seed)
        nearly = auroc_interval(rng.normal(np.repeat([3, 0], 5), 1), np.repeat([1, 0], 5), n_resamples=100, seed=seed)
        x, y = rng.multivariate_normal([0, 0], [[1, 0.98], [0.98, 1]], 5).T
        alike = spearman_interval(x, y, seed=seed)
        hits += [
            five.low <= 1.0 <= five.high,
            nearly.low <= stats.norm.cdf(3 / 2**0.5) <= nearly.high,
            alike.low <= 6 / np.pi * np.arcsin(0.49) <= alike.high,
        ]
    assert (hits >= 182).all()  # the bootstrap alone has 163, 43 and 96
    alone = mean_interval([0.3])
    assert (alone.value, alone.low, alone.high) == (0.3, -np.inf, np.inf)


def test_paired_test_finds_a_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    base = rng.normal(size=80)
    found = paired_test(base + 0.5 + rng.normal(0, 0.3, 80), base)
    assert found.p_value < 0.01
    assert found.difference.low > 0.3
    p_values = [paired_test(rng.normal(size=20), rng.normal(size=20), n_resamples=200).p_value for _ in range(120)]
    assert sum(p < 0.05 for p in p_values) <= 15
    equal = paired_test([1.0, 2.0], [1.0, 2.0])
    assert (equal.p_value, equal.ties, equal.difference.value) == (1.0, 2, 0.0)


def test_paired_test_is_exact_on_a_small_case():
    # Three equal differences: of the 8 sign patterns only +++ and --- are as extreme.
    assert paired_test([1, 1, 1], [0, 0, 0], n_resamples=4000).p_value == pytest.approx(0.25, abs=0.03)


def test_the_p_value_is_the_same_on_every_scale():
    rng = np.random.default_rng(1)
    for seed in range(60):  # five gains: of the 32 sign patterns two are as extreme, however the sums are rounded
        found = paired_test(rng.uniform(1, 3, 5) * 10.0 ** (seed % 8), np.zeros(5), n_resamples=600, seed=seed)
        assert found.p_value > 0.02


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_ordered_pairs(rows):
    s, y = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    if y.min() == y.max():
        with pytest.raises(InputError, match="both classes"):
            auroc(s, y)
        return
    wins = [(a > b) + 0.5 * (a == b) for a in s[y == 1] for b in s[y == 0]]
    assert auroc(s, y) == pytest.approx(np.mean(wins))
    assert auroc(-s, y) == pytest.approx(1 - np.mean(wins))
    found = auroc_interval(s, y, n_resamples=20)
    assert found.low <= found.high


def test_spearman_is_scipys_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80).T
        found = spearman_interval(x, y, seed=seed)
        assert found.value == pytest.approx(stats.spearmanr(x, y)[0])
        hits += found.low <= 6 / np.pi * np.arcsin(0.3) <= found.high
    assert 52 <= hits <= 60
    few = spearman_interval([1, 1, 2], [3, 4, 5])  # many resamples of three are constant
    assert -1 <= few.low <= few.value <= few.high <= 1


def test_any_statistic_has_an_interval_that_holds_it():
    rng = np.random.default_rng(0)
    p = rng.random(300)
    off = (rng.random(300) < p**4).astype(float)
    found = bootstrap_interval(calibration_error, p, off, n_resamples=200)
    assert 0.15 < found.low < found.value == calibration_error(p, off) < found.high < 0.5
    largest = bootstrap_interval(np.max, np.arange(40.0))  # no resample is above it
    assert largest.value == largest.high == 39.0
    undefined = bootstrap_interval(lambda x: 1.0 if x.sum() == 3 else np.nan, [1.0, 2.0])
    assert (undefined.low, undefined.high) == (1.0, 1.0)


def test_wmt_kendall_counts_ties_as_discordant():
    assert wmt_kendall([1, 1, 1, 1], [0, 0, 1, 2]) == 0.0
    assert wmt_kendall([1.0], [1.0]) == -1.0


def test_correlations_with_humans_against_scipy():
    rng = np.random.default_rng(1)
    human = rng.normal(size=(12, 6))
    scores = human + rng.normal(size=(12, 6))
    for kind, function in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        by_segment = np.mean([function(s, h)[0] for s, h in zip(scores, human, strict=True)])
        assert segment_correlation(scores, human, kind).value == pytest.approx(by_segment)
        assert system_correlation(scores, human, kind) == pytest.approx(function(scores.mean(0), human.mean(0))[0])
    scores[3] = 1.0
    assert segment_correlation(scores, human).n == 11


def test_length_matching_takes_the_length_out():
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 100, 2000).astype(float)
    labels = (rng.random(2000) < lengths / 100).astype(float)
    assert auroc(lengths, labels) > 0.7
    kept = length_matched(lengths, labels, n_bins=20)
    assert labels[kept].mean() == 0.5
    assert abs(auroc(lengths[kept], labels[kept]) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_interval([1.0, float("nan")]), "1 of 2 values of x are NaN"),
        (lambda: mean_interval([]), "at least one number"),
        (lambda: mean_interval([1.0], level=95), "level is 95"),
        (lambda: paired_test([1.0], [1.0, 2.0]), "a has 1 scores and b 2"),
        (lambda: auroc([1.0, 2.0], [0, 2]), "one label of 0 or 1"),
        (lambda: bootstrap_interval(auroc, [1.0, 2.0], [1.0]), "columns have 2, 1 values"),
        (lambda: spearman_interval([1.0, 1.0], [1.0, 2.0]), "nothing to correlate"),
        (lambda: wmt_kendall([1.0], [float("inf")]), "worse are NaN or infinite"),
        (lambda: segment_correlation([[1.0, 1.0]], [[1.0, 2.0]]), "nothing to correlate"),
        (lambda: segment_correlation([[1.0, np.nan]], [[1.0, 2.0]]), "NaN or infinite"),
        (lambda: system_correlation([[1.0, 2.0]], [[1.0, 2.0]], "tau"), "kind is 'tau'"),
        (lambda: system_correlation([[1.0, 1.0]], [[1.0, 2.0]]), "All systems have the same mean score"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(InputError, match=said):
        call()
