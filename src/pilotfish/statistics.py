"""Whether a difference is real: intervals, paired tests, agreement with humans, and length held equal.

Every function refuses NaN: leave out what has no score, and say how many that was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pilotfish.bounds import binomial_lower, binomial_upper
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, IntArray

__all__ = [
    "Interval",
    "PairedTest",
    "auroc",
    "auroc_interval",
    "bootstrap_interval",
    "difference_interval",
    "length_matched",
    "mean_interval",
    "paired_test",
    "segment_correlation",
    "spearman_interval",
    "system_correlation",
    "wmt_kendall",
]

_CORRELATIONS: dict[str, Callable[..., tuple[float, float]]] = {
    "kendall": stats.kendalltau,
    "spearman": stats.spearmanr,
    "pearson": stats.pearsonr,
}


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval.

    Parameters
    ----------
    value, low, high : float
        The estimate and the ends.
    n : int
        Items it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def _finite(x: ArrayLike, name: str) -> FloatArray:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"{name} has shape {values.shape}: give at least one number, shape (n,).")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(f"{bad} of {values.size} values of {name} are NaN or infinite: leave those items out first.")
    return values


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"level is {level}: give a confidence between 0 and 1, such as 0.95.")
    return level


def _runs(n_resamples: int, x: ArrayLike) -> list[tuple[int, int]]:
    """Shapes (resamples, items) of a bounded number of items that make up all resamples."""
    n = np.size(x)
    most = max(1, 1_000_000 // n)
    return [(min(most, n_resamples - start), n) for start in range(0, n_resamples, most)]


def mean_interval(x: ArrayLike, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with its interval: exact where each score is right (1) or wrong (0), else as of :func:`difference_interval`.

    Examples
    --------
    >>> found = mean_interval(np.ones(100))  # a bootstrap of scores that are all alike has no width
    >>> found.value, round(found.low, 3), found.high
    (1.0, 0.964, 1.0)

    References
    ----------
    Clopper and Pearson 1934; Efron 1979.
    """
    values = _finite(x, "x")
    if not np.isin(values, (0.0, 1.0)).all():
        return difference_interval(values, level, n_resamples, seed)
    beyond, k = (1 - _level(level)) / 2, int(values.sum())
    low, high = binomial_lower(k, values.size, beyond), binomial_upper(k, values.size, beyond)
    return Interval(float(values.mean()), float(low), float(high), values.size)


def difference_interval(x: ArrayLike, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of differences with its percentile bootstrap interval, or the ends of Student's where they lie farther out.

    A bootstrap of few items is too sure, since it draws from nothing but them; one item alone says nothing of the mean.

    Examples
    --------
    >>> found = difference_interval([0.0, 1.0] * 50)
    >>> found.value, 0.38 < found.low < 0.45 < 0.55 < found.high < 0.62
    (0.5, True)
    """
    values = _finite(x, "x")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [values[rng.integers(0, values.size, shape)].mean(axis=1) for shape in _runs(n_resamples, x)]
    )
    low, high = np.quantile(means, [(1 - _level(level)) / 2, (1 + level) / 2])
    mean, around = float(values.mean()), np.inf
    if values.size > 1:
        around = float(stats.t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1)) / values.size**0.5
    return Interval(mean, min(float(low), mean - around), max(float(high), mean + around), values.size)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The difference of two systems on the same items.

    Parameters
    ----------
    difference : Interval
        Mean of the first minus the second.
    p_value : float
        Chance of so large a mean difference, either way, if the two were interchangeable on every item.
    wins, ties, losses : int
        Items on which the first is better, equal, worse.
    """

    difference: Interval
    p_value: float
    wins: int
    ties: int
    losses: int


def paired_test(a: ArrayLike, b: ArrayLike, level: float = 0.95, n_resamples: int = 5000, seed: int = 0) -> PairedTest:
    """Compare two systems item by item: bootstrap interval of the difference and a sign-flip permutation test.

    Parameters
    ----------
    a, b : array (n,)
        Scores of the same items.
    level : float
        Confidence of the interval.

    References
    ----------
    Koehn 2004 (paired bootstrap); Dror et al. 2018, The hitchhiker's guide to testing statistical significance in NLP.

    Examples
    --------
    >>> found = paired_test(np.arange(30) + 1.0, np.arange(30))
    >>> found.difference.value, found.p_value < 0.001, found.wins
    (1.0, True, 30)
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if x.shape != y.shape:
        raise InputError(f"a has {x.size} scores and b {y.size}: give one of each per item.")
    difference = x - y
    rng = np.random.default_rng(seed)
    flipped = np.concatenate(
        [(2 * rng.integers(0, 2, shape) - 1) @ difference / x.size for shape in _runs(n_resamples, x)]
    )
    # Sums of the same numbers in another order differ by rounding, which grows with the numbers.
    near = 1e-9 * float(np.abs(difference).mean())
    extreme = int((np.abs(flipped) >= abs(difference.mean()) - near).sum())
    return PairedTest(
        difference_interval(difference, level, n_resamples, seed),
        (extreme + 1) / (n_resamples + 1),
        int((difference > 0).sum()),
        int((difference == 0).sum()),
        int((difference < 0).sum()),
    )


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a positive item has a higher score than a negative one; a tie counts half.

    Raises
    ------
    InputError
        When labels are not 0 and 1, or all are the same.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1])
    0.875
    """
    s, y = _finite(scores, "scores"), _finite(labels, "labels")
    if s.shape != y.shape or not np.isin(y, (0.0, 1.0)).all():
        raise InputError(f"scores have shape {s.shape} and labels {y.shape}: give one label of 0 or 1 per score.")
    n_positive = int(y.sum())
    if n_positive in (0, y.size):
        raise InputError(f"All {y.size} labels are {int(y[0])}: give items of both classes.")
    ranks = stats.rankdata(s)[y == 1].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (y.size - n_positive)))


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, level: float = 0.95, n_resamples: int = 500, seed: int = 0
) -> Interval:
    """AUROC with its bootstrap interval, or the ends of Newcombe's where they lie farther out.

    Each class is resampled by itself. Where nearly all pairs are in order, resamples hardly differ from each other, and
    where all are, not at all: there the variance that an AUROC of each size would have says how far off it may be.

    References
    ----------
    Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    method 5.

    Examples
    --------
    >>> found = auroc_interval([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    >>> found.value, round(found.low, 2), found.high
    (1.0, 0.39, 1.0)
    """
    value = auroc(scores, labels)
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    rng = np.random.default_rng(seed)
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    found = []
    for _ in range(n_resamples):
        at = np.concatenate([rng.choice(positive, positive.size), rng.choice(negative, negative.size)])
        found.append(auroc(s[at], y[at]))
    low, high = np.quantile(found, [(1 - _level(level)) / 2, (1 + level) / 2])
    least, below = (_least_auroc(v, positive.size, negative.size, level) for v in (value, 1 - value))
    return Interval(value, min(float(low), least), max(float(high), 1 - below), s.size)


def _least_auroc(value: float, n_positive: int, n_negative: int, level: float) -> float:
    """The smallest AUROC from which the one seen is no farther than chance takes it."""
    from scipy.optimize import brentq

    z, weight = float(stats.norm.ppf((1 + level) / 2)), (n_positive + n_negative) / 2 - 1

    def beyond(a: float) -> float:
        spread = a * (1 - a) * (1 + weight * ((1 - a) / (2 - a) + a / (1 + a))) / (n_positive * n_negative)
        return (value - a) ** 2 - z * z * spread

    # At the value itself nothing is left over, and at 0 all of it is.
    return float(brentq(beyond, 0.0, value * (1 - 1e-9))) if value > 0 else 0.0


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: ArrayLike,
    level: float = 0.95,
    n_resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """Any statistic of items with its percentile bootstrap interval, which is made to hold the value itself.

    Resamples on which the statistic is not finite are left out.

    Parameters
    ----------
    statistic : callable
        Makes a number of the columns.
    *columns : array (n,)
        What is known of the same items.

    Examples
    --------
    >>> found = bootstrap_interval(np.median, np.arange(101.0))
    >>> found.value, 30 < found.low < 50 < found.high < 70
    (50.0, True)
    """
    x = [_finite(column, f"column {i}") for i, column in enumerate(columns)]
    if len({column.size for column in x}) != 1:
        raise InputError(f"columns have {', '.join(str(c.size) for c in x)} values: give one of each per item.")
    value, n = float(statistic(*x)), x[0].size
    rng = np.random.default_rng(seed)
    found = np.array([statistic(*(c[at] for c in x)) for at in (rng.integers(0, n, n) for _ in range(n_resamples))])
    kept = found[np.isfinite(found)]
    low, high = np.quantile(kept if kept.size else [value], [(1 - _level(level)) / 2, (1 + level) / 2])
    return Interval(value, min(float(low), value), max(float(high), value), n)


def _rank_correlation(x: FloatArray, y: FloatArray) -> float:
    # Spearman's, by ranks: scipy's own would warn of every constant resample.
    a, b = (stats.rankdata(v) - (v.size + 1) / 2 for v in (x, y))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def spearman_interval(x: ArrayLike, y: ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
    """Spearman's rank correlation with its bootstrap interval, or the ends of Fisher's where they lie farther out.

    Raises
    ------
    InputError
        When all of ``x`` or all of ``y`` are the same.

    References
    ----------
    Bonett and Wright 2000, Sample size requirements for estimating Pearson, Kendall and Spearman correlations.

    Examples
    --------
    >>> found = spearman_interval(np.arange(30), np.arange(30) ** 2)
    >>> round(found.value, 6), found.n
    (1.0, 30)
    """
    if np.ptp(_finite(x, "x")) == 0 or np.ptp(_finite(y, "y")) == 0:
        raise InputError("All values of x or of y are the same: there is nothing to correlate.")
    found = bootstrap_interval(_rank_correlation, x, y, level=level, seed=seed)
    low, high = _correlation_ends(found.value, found.n, level)
    return Interval(found.value, min(found.low, low), max(found.high, high), found.n)


def _correlation_ends(value: float, n: int, level: float) -> tuple[float, float]:
    if n < 4:
        return -1.0, 1.0
    # All in order is the end of a range that goes by steps: it stands for half of the last one.
    most = 1 - 6 / (n * (n * n - 1))
    r = min(max(value, -most), most)
    around = float(stats.norm.ppf((1 + level) / 2)) * ((1 + r * r / 2) / (n - 3)) ** 0.5
    return math.tanh(math.atanh(r) - around), math.tanh(math.atanh(r) + around)


def wmt_kendall(better: ArrayLike, worse: ArrayLike) -> float:
    """Kendall's tau as the WMT metrics task defines it: concordant minus discordant pairs over all, ties discordant.

    Parameters
    ----------
    better, worse : array (n_pairs,)
        The metric's scores of the translation that humans found better, and of the worse one.

    References
    ----------
    Ma et al. 2019, Results of the WMT19 metrics shared task, section 5.2.

    Examples
    --------
    >>> wmt_kendall([0.9, 0.8, 0.5, 0.7], [0.1, 0.2, 0.5, 0.6])
    0.5
    """
    b, w = _finite(better, "better"), _finite(worse, "worse")
    if b.shape != w.shape:
        raise InputError(f"better has {b.size} scores and worse {w.size}: give one of each per pair.")
    concordant = int((b > w).sum())
    return (2 * concordant - b.size) / b.size


def _judged(scores: ArrayLike, human: ArrayLike) -> tuple[FloatArray, FloatArray]:
    s, h = np.asarray(scores, dtype=np.float64), np.asarray(human, dtype=np.float64)
    if s.shape != h.shape or s.ndim != 2:
        raise InputError(f"scores have shape {s.shape} and human {h.shape}: give both as (n_segments, n_systems).")
    for name, x in (("scores", s), ("human", h)):
        if not np.isfinite(x).all():
            raise InputError(f"{int((~np.isfinite(x)).sum())} values of {name} are NaN or infinite: leave them out.")
    return s, h


def system_correlation(scores: ArrayLike, human: ArrayLike, kind: str = "kendall") -> float:
    """Correlation of the systems' mean scores with their mean human scores.

    Parameters
    ----------
    scores, human : array (n_segments, n_systems)
        A metric's and humans' scores of the same outputs.
    kind : {"kendall", "spearman", "pearson"}
        Which correlation.

    Raises
    ------
    InputError
        When all systems have the same mean score.

    Examples
    --------
    >>> system_correlation([[1, 2, 3], [2, 3, 4]], [[1, 1, 2], [2, 1, 3]], "spearman")
    0.5
    """
    s, h = (x.mean(axis=0) for x in _judged(scores, human))
    if np.ptp(s) == 0 or np.ptp(h) == 0:
        raise InputError("All systems have the same mean score: there is nothing to correlate.")
    return float(_CORRELATIONS[_kind(kind)](s, h)[0])


def segment_correlation(scores: ArrayLike, human: ArrayLike, kind: str = "kendall") -> Interval:
    """Mean over segments of the correlation among systems, with its bootstrap interval.

    Segments on which the metric or the humans find all systems equal have no correlation and are left out; ``n`` counts
    the others.

    Raises
    ------
    InputError
        When no segment is left.
    """
    s, h = _judged(scores, human)
    told = [i for i in range(s.shape[0]) if np.ptp(s[i]) > 0 and np.ptp(h[i]) > 0]
    if not told:
        raise InputError("On every segment all systems have the same score: there is nothing to correlate.")
    return difference_interval([_CORRELATIONS[_kind(kind)](s[i], h[i])[0] for i in told])


def _kind(kind: str) -> str:
    if kind not in _CORRELATIONS:
        raise InputError(f"kind is {kind!r}: use one of {', '.join(_CORRELATIONS)}.")
    return kind


def length_matched(lengths: ArrayLike, labels: ArrayLike, n_bins: int = 10, seed: int = 0) -> IntArray:
    """Items, as many positive as negative in each tenth of the lengths, so that length tells nothing.

    Parameters
    ----------
    lengths, labels : array (n,)
        How long each item is, and its label, 0 or 1.

    Returns
    -------
    ndarray of int, (k,)
        The items kept, in order.

    Examples
    --------
    >>> kept = length_matched([1, 1, 1, 9, 9, 9], [1, 0, 0, 1, 1, 0], n_bins=2)
    >>> kept.size
    4
    """
    x, y = _finite(lengths, "lengths"), _finite(labels, "labels")
    edges = np.unique(np.quantile(x, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bins = np.searchsorted(edges, x, side="right")
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for b in np.unique(bins):
        by_class: Sequence[IntArray] = [np.flatnonzero((bins == b) & (y == label)) for label in (0, 1)]
        size = min(part.size for part in by_class)
        for part in by_class:
            kept += rng.permutation(part)[:size].tolist()
    return np.array(sorted(kept), dtype=np.int64)
