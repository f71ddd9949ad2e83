"""Finite-sample bounds: what may be claimed from n observations at a stated risk.

Fixed samples: exact binomial, empirical Bernstein and betting bounds, and learn-then-test for choosing among
policies. Streams: an anytime-valid test of whether a rate has risen above a limit since any moment.

References
----------
Clopper and Pearson 1934; Maurer and Pontil 2009 (arXiv:0907.3740); Bates et al. 2021 (arXiv:2101.02703);
Angelopoulos et al. 2021 (arXiv:2110.01052); Waudby-Smith and Ramdas 2024 (arXiv:2010.09686);
Shin, Ramdas and Rinaldo 2022 (arXiv:2203.03532).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = [
    "ExceedanceTest",
    "betting_p_value",
    "betting_upper",
    "binomial_lower",
    "binomial_p_value",
    "binomial_upper",
    "empirical_bernstein_upper",
    "fixed_sequence",
    "monotone_threshold",
    "samples_needed",
    "selective_threshold",
]


def _risk(delta: float) -> float:
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}: give a risk between 0 and 1, such as 0.05.")
    return delta


def _level(level: float) -> float:
    if not 0 <= level <= 1:
        raise InputError(f"level is {level}: give a rate between 0 and 1.")
    return level


def _unit_interval(x: ArrayLike) -> FloatArray:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"Losses have shape {values.shape}: give at least one number, shape (n,).")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError("Losses lie outside [0, 1] or are not finite: scale them to [0, 1] first.")
    return values


def binomial_upper(k: ArrayLike, n: ArrayLike, delta: float) -> FloatArray:
    """Exact upper confidence bound of a rate after k events in n trials (Clopper-Pearson, one-sided).

    Parameters
    ----------
    k, n : int or array of int
        Events and trials, ``0 <= k <= n``; n = 0 gives 1.
    delta : float
        Risk that the true rate lies above the bound, in (0, 1).

    Returns
    -------
    ndarray
        The bounds in [0, 1], shape of ``k``.

    Examples
    --------
    >>> round(float(binomial_upper(0, 100, 0.05)), 4)   # 1 - 0.05 ** (1 / 100)
    0.0295
    """
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        bound = stats.beta.ppf(1 - _risk(delta), k + 1, n - k)
    return np.asarray(np.where(k >= n, 1.0, bound))


def binomial_lower(k: ArrayLike, n: ArrayLike, delta: float) -> FloatArray:
    """Exact lower confidence bound of a rate after k events in n trials (Clopper-Pearson, one-sided).

    Examples
    --------
    >>> round(float(binomial_lower(100, 100, 0.05)), 4)
    0.9705
    """
    k, n = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    return np.asarray(1 - binomial_upper(n - k, n, delta))


def binomial_p_value(k: ArrayLike, n: ArrayLike, level: float) -> FloatArray:
    """P-value of the hypothesis "the rate is above ``level``" after k events in n trials.

    Examples
    --------
    >>> round(float(binomial_p_value(0, 100, 0.03)), 4)   # 0.97 ** 100
    0.0476
    """
    return np.asarray(stats.binom.cdf(np.asarray(k), np.asarray(n), _level(level)))


def samples_needed(level: float, delta: float, rate: float = 0.0) -> int:
    """Trials after which a rate of ``rate`` would be certified to lie at or below ``level``.

    Parameters
    ----------
    level : float
        The rate to certify, in (0, 1).
    delta : float
        Risk, in (0, 1).
    rate : float
        The rate expected to be seen, below ``level``.

    Examples
    --------
    >>> samples_needed(0.03, 0.05)
    99
    """
    if not 0 <= rate < level < 1:
        raise InputError(f"rate is {rate} and level is {level}: give 0 <= rate < level < 1.")
    _risk(delta)
    low, high = 0, 1
    while float(binomial_upper(math.ceil(rate * high), high, delta)) > level:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if float(binomial_upper(math.ceil(rate * middle), middle, delta)) > level:
            low = middle
        else:
            high = middle
    return high


def empirical_bernstein_upper(x: ArrayLike, delta: float) -> float:
    """Upper confidence bound of the mean of numbers in [0, 1] that profits from a small variance.

    References
    ----------
    Maurer and Pontil 2009, theorem 4: mean + sqrt(2 V log(2/delta) / n) + 7 log(2/delta) / (3 (n - 1)).

    Examples
    --------
    >>> round(empirical_bernstein_upper(np.zeros(1000), 0.05), 4)
    0.0086
    """
    values = _unit_interval(x)
    n = values.size
    if n < 2:
        return 1.0
    log_term = math.log(2 / _risk(delta))
    bound = values.mean() + math.sqrt(2 * values.var(ddof=1) * log_term / n) + 7 * log_term / (3 * (n - 1))
    return float(min(1.0, bound))


def _bets(values: FloatArray, delta: float) -> FloatArray:
    """Predictable plug-in bets: each depends only on the values before it."""
    n = values.size
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(values)) / (counts + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (counts + 1)
    before = np.concatenate(([0.25], variances[:-1]))
    return np.asarray(np.sqrt(2 * math.log(1 / delta) / (n * before)))


def _log_capital(values: FloatArray, bets: FloatArray, level: float) -> float:
    capped = np.minimum(bets, 0.75 / max(1 - level, 1e-12))
    return float(np.cumsum(np.log1p(capped * (level - values))).max())


def betting_p_value(x: ArrayLike, level: float, delta: float = 0.05) -> float:
    """P-value of the hypothesis "the mean of numbers in [0, 1] is above ``level``", by betting against it.

    Parameters
    ----------
    x : array (n,)
        Independent losses in [0, 1], in an order that does not depend on their values.
    level : float
        The mean under test, in [0, 1].
    delta : float
        The risk at which the bets are tuned; the p-value is valid whatever it is.

    References
    ----------
    Waudby-Smith and Ramdas 2024, section 4 (predictable plug-in betting).

    Examples
    --------
    >>> betting_p_value(np.zeros(200), 0.05) < 0.01
    True
    """
    values = _unit_interval(x)
    return min(1.0, math.exp(-_log_capital(values, _bets(values, _risk(delta)), _level(level))))


def betting_upper(x: ArrayLike, delta: float) -> float:
    """Upper confidence bound of the mean of numbers in [0, 1]; the sharpest here for losses that are not 0 or 1.

    Parameters
    ----------
    x : array (n,)
        Independent losses in [0, 1], in an order that does not depend on their values.
    delta : float
        Risk that the true mean lies above the bound, in (0, 1).

    References
    ----------
    Waudby-Smith and Ramdas 2024, theorem 3.

    Examples
    --------
    >>> betting_upper(np.tile([0.0, 0.1], 500), 0.05) < empirical_bernstein_upper(np.tile([0.0, 0.1], 500), 0.05)
    True
    """
    values = _unit_interval(x)
    bets, goal = _bets(values, _risk(delta)), math.log(1 / delta)
    low, high = float(values.mean()), 1.0
    if _log_capital(values, bets, high) < goal:
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _log_capital(values, bets, middle) >= goal:
            high = middle
        else:
            low = middle
    return high


def fixed_sequence(p_values: ArrayLike, delta: float) -> int:
    """How many hypotheses, tested in the order given and up to the first failure, are rejected at risk ``delta``.

    References
    ----------
    Angelopoulos et al. 2021 (learn then test), section 3: family-wise error by a fixed order of tests.

    Examples
    --------
    >>> fixed_sequence([0.01, 0.02, 0.2, 0.001], 0.05)
    2
    """
    failed = np.flatnonzero(np.asarray(p_values, dtype=np.float64) > _risk(delta))
    return int(failed[0]) if failed.size else int(np.asarray(p_values).size)


def _paired(scores: ArrayLike, losses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    s, x = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if s.shape != x.shape or s.ndim != 1:
        raise InputError(f"scores have shape {s.shape} and losses {x.shape}: give one of each per item, shape (n,).")
    if np.isnan(s).any() or np.isnan(x).any():
        raise InputError("scores or losses contain NaN: drop those items first.")
    if x.size and not np.isin(x, (0.0, 1.0)).all():
        raise InputError("losses hold values other than 0 and 1: give 1 for a wrong answer and 0 for a right one.")
    return s, x


def monotone_threshold(scores: ArrayLike, losses: ArrayLike, level: float, delta: float) -> float:
    """Smallest threshold whose share of chosen-and-wrong items is certified to be at most ``level``.

    Items with a score at or above the threshold are chosen. The share of *all* items that are chosen and wrong can
    only grow as the threshold falls, so one exact binomial bound per threshold is enough.

    Parameters
    ----------
    scores : array (n,)
        Higher is more trustworthy; an item of minus infinity is never chosen.
    losses : array (n,)
        1 where choosing the item would be wrong, else 0.
    level : float
        Largest share of all items that may be chosen and wrong.
    delta : float
        Risk that the certified threshold breaks the level.

    Returns
    -------
    float
        The threshold; infinity when nothing can be certified.

    References
    ----------
    Bates et al. 2021 (risk-controlling prediction sets), theorem 1.

    Examples
    --------
    >>> scores = np.linspace(0, 1, 1000)
    >>> monotone_threshold(scores, scores < 0.2, level=0.03, delta=0.05) < 0.2
    True
    """
    s, x = _paired(scores, losses)
    if s.size == 0:
        return math.inf
    order = np.argsort(-s, kind="stable")
    s, wrong = s[order], np.cumsum(x[order])
    last_of_tie = np.append(s[1:] < s[:-1], True)
    fits = binomial_upper(wrong, s.size, delta) <= _level(level)
    certified = np.flatnonzero(fits & last_of_tie & (s > -math.inf))
    if certified.size == 0:
        return math.inf
    return float(s[certified[-1]])


def selective_threshold(
    scores: ArrayLike, losses: ArrayLike, level: float, delta: float, grid: ArrayLike | None = None
) -> float:
    """Smallest threshold whose share of wrong items *among the chosen* is certified to be at most ``level``.

    That share need not be monotone in the threshold, so thresholds are tested from the strictest down, up to the first
    failure, starting where enough items are chosen for a test to succeed; the start depends on scores alone.

    Parameters
    ----------
    scores : array (n,)
        Higher is more trustworthy; probabilities where ``grid`` is left out.
    losses : array (n,)
        1 where choosing the item would be wrong, else 0.
    level : float
        Largest share of the chosen items that may be wrong, in (0, 1).
    delta : float
        Risk that the certified threshold breaks the level.
    grid : array (m,), optional
        Thresholds to try, fixed before the losses are seen; 400 evenly spaced log-odds when left out.

    Returns
    -------
    float
        The threshold; infinity when nothing can be certified.

    References
    ----------
    Angelopoulos et al. 2021 (learn then test); Geifman and El-Yaniv 2017 (arXiv:1705.08500).

    Examples
    --------
    >>> scores = np.linspace(0, 1, 1000)
    >>> 0.1 < selective_threshold(scores, scores < 0.2, level=0.03, delta=0.05) < 0.3
    True
    """
    s, x = _paired(scores, losses)
    tried = np.asarray(grid if grid is not None else 1 / (1 + np.exp(-np.linspace(12, -6, 400))), dtype=np.float64)
    tried = np.sort(tried)[::-1]
    order = np.argsort(-s, kind="stable")
    s, wrong = s[order], np.concatenate(([0.0], np.cumsum(x[order])))
    n_chosen = np.searchsorted(-s, -tried, side="right")
    n_least = math.ceil(math.log(_risk(delta)) / math.log1p(-_level(level))) if 0 < level < 1 else 1
    # With three times the least number a few wrong items among the surest do not end the search at its first step.
    testable = n_chosen >= max(n_least, min(3 * n_least, s.size // 3))
    n_chosen, tried = n_chosen[testable], tried[testable]
    n_certified = fixed_sequence(binomial_p_value(wrong[n_chosen], n_chosen, level), delta)
    return float(tried[n_certified - 1]) if n_certified else math.inf


_FRACTIONS = (0.01, 0.03, 0.1, 0.25, 0.5, 0.75)


@dataclass
class ExceedanceTest:
    """Anytime-valid test that the rate of an event has risen above a limit since any moment of a stream.

    Feed it events one at a time and look after each: while the rate stays at or below the limit, the chance that it
    *ever* rejects is at most ``delta``. It bets on a rise from every starting moment at once, so a long quiet past does
    not delay the alarm.

    Parameters
    ----------
    limit : float
        The highest rate allowed, in (0, 1).
    delta : float
        Risk of a false alarm over an endless stream, in (0, 1).

    Attributes
    ----------
    n : int
        Events seen.
    evidence : float
        The e-value: at least ``1 / delta`` means rejection.

    References
    ----------
    Waudby-Smith and Ramdas 2024 (bets); Shin, Ramdas and Rinaldo 2022 (mixtures over the moment of change). With
    weights w_s that sum to 1 over starting moments, M_t = sum_s w_s prod_{i=s..t} (1 + b (x_i - limit)) starts at 1 and
    is a supermartingale, so P(sup M >= 1/delta) <= delta (Ville).

    Examples
    --------
    >>> test = ExceedanceTest(limit=0.03, delta=0.01)
    >>> any(test.update(False) for _ in range(10_000))
    False
    >>> [test.update(True) for _ in range(12)].index(True) < 10
    True
    """

    limit: float
    delta: float
    n: int = 0
    n_events: int = 0
    capitals: list[float] = field(default_factory=lambda: [0.0] * len(_FRACTIONS))
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1:
            raise InputError(f"limit is {self.limit}: give a rate between 0 and 1.")
        _risk(self.delta)

    @property
    def evidence(self) -> float:
        """The e-value so far."""
        return sum(self.capitals) / len(self.capitals) + _weight_after(self.n)

    @property
    def rejected(self) -> bool:
        """Whether the limit has been shown to be broken at any moment so far."""
        return self.peak >= 1 / self.delta

    def update(self, event: bool) -> bool:
        """Take one observation in; return whether the limit has been shown to be broken."""
        weight = _weight_after(self.n) - _weight_after(self.n + 1)
        for i, fraction in enumerate(_FRACTIONS):
            factor = 1 + fraction * (1 - self.limit) / self.limit if event else 1 - fraction
            self.capitals[i] = (self.capitals[i] + weight) * factor
        self.n += 1
        self.n_events += bool(event)
        self.peak = max(self.peak, self.evidence)
        return self.rejected

    def extend(self, events: Sequence[bool]) -> bool:
        """Take several observations in, in order."""
        for event in events:
            self.update(event)
        return self.rejected

    def to_json(self) -> dict[str, Any]:
        """Write the state as plain data."""
        return {
            "limit": self.limit,
            "delta": self.delta,
            "n": self.n,
            "n_events": self.n_events,
            "capitals": list(self.capitals),
            "peak": self.peak,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExceedanceTest:
        """Read the state back."""
        return cls(**data)


def _weight_after(n: int) -> float:
    """Weight left for the starting moments after the n-th; falls from 1 as slowly as a logarithm grows."""
    return 1 / (1 + math.log1p(n))
