"""Rules: from scores to a choice. Every rule is a frozen value with one method, ``decide``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import Decision, FloatArray, IntArray

__all__ = [
    "Argmax",
    "Between",
    "PartialObservation",
    "Threshold",
    "TopK",
    "WithinBudget",
    "assign_within_budget",
    "value_minus_price",
]


def _checked(scores: FloatArray) -> FloatArray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise InputError(f"Scores have shape {scores.shape}: give one number per item, shape (n,).")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN: drop or impute them first.")
    return scores


def _chosen(indices: IntArray) -> Decision:
    return Decision(indices, np.ones(indices.size))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Choose every item whose score is at least ``at``.

    Parameters
    ----------
    at : float
        The smallest score chosen; infinity chooses none, minus infinity all.

    Examples
    --------
    >>> Threshold(0.5).decide(np.array([0.2, 0.5, 0.9])).indices
    array([1, 2])
    """

    at: float

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        return _chosen(np.flatnonzero(_checked(scores) >= self.at))


@dataclass(frozen=True, slots=True)
class Between:
    """Choose every item whose score is from ``low`` to ``high``, both included.

    Examples
    --------
    >>> Between(0.2, 0.5).decide(np.array([0.1, 0.2, 0.5, 0.9])).indices
    array([1, 2])
    """

    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError(f"Between low is {self.low} and high is {self.high}: give the smaller number first.")

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        scores = _checked(scores)
        return _chosen(np.flatnonzero((scores >= self.low) & (scores <= self.high)))


@dataclass(frozen=True, slots=True)
class TopK:
    """Choose the ``k`` items of highest score, best first; ties go to the earlier item.

    Examples
    --------
    >>> TopK(2).decide(np.array([0.2, 0.9, 0.9, 0.5])).indices
    array([1, 2])
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 0:
            raise InputError(f"TopK k is {self.k}: give a number of items of at least 0.")

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        return _chosen(np.argsort(-_checked(scores), kind="stable")[: self.k])


@dataclass(frozen=True, slots=True)
class Argmax:
    """Choose the one item of highest score; ties go to the earlier item.

    Examples
    --------
    >>> Argmax().decide(np.array([0.2, 0.9, 0.9])).indices
    array([1])
    """

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        return TopK(1).decide(scores)


@dataclass(frozen=True, slots=True)
class WithinBudget:
    """Choose the items of highest score until their costs fill a budget; the costs are given beside the scores.

    Parameters
    ----------
    budget : float
        Largest mean cost per item, in the unit of the costs.
    costs : tuple of float, (n,)
        Cost of choosing each item, at least 0.

    Examples
    --------
    >>> WithinBudget(1.0, costs=(1.0, 2.0, 3.0)).decide(np.array([0.1, 0.9, 0.5])).indices
    array([1, 0])
    """

    budget: float
    costs: tuple[float, ...]

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,); an item that no longer fits is passed over."""
        scores, left, kept = _checked(scores), self.budget * len(self.costs), []
        if scores.size != len(self.costs):
            raise InputError(f"WithinBudget has {len(self.costs)} costs for {scores.size} scores: give one per item.")
        for i in np.argsort(-scores, kind="stable"):
            if self.costs[i] <= left + 1e-12:
                kept.append(i)
                left -= self.costs[i]
        return _chosen(np.array(kept, dtype=np.int64))


def value_minus_price(scores: FloatArray, costs: FloatArray, price: float) -> IntArray:
    """Column of the highest score minus ``price`` times cost in each row; ties go to the cheaper, then the earlier.

    Parameters
    ----------
    scores, costs : ndarray (n, m)
        Expected score and cost of each choice; minus infinity rules a choice out.
    price : float
        Score that one unit of cost must bring.

    Examples
    --------
    >>> value_minus_price(np.array([[0.5, 0.9], [0.5, 0.9]]), np.array([[0.0, 1.0], [0.0, 0.1]]), price=1.0)
    array([0, 1])
    """
    if scores.shape != costs.shape or scores.ndim != 2:
        raise InputError(f"scores have shape {scores.shape} and costs {costs.shape}: give both as (n, m).")
    if np.isnan(scores).any() or not np.isfinite(costs).all():
        raise InputError("scores hold NaN or costs are not finite: give a number for every choice.")
    value = scores - price * costs
    tied = value >= value.max(axis=1, keepdims=True) - 1e-12
    return np.asarray(np.where(tied, costs, np.inf).argmin(axis=1), dtype=np.int64)


def assign_within_budget(scores: FloatArray, costs: FloatArray, budget: float) -> IntArray:
    """Assign each row one column so that the sum of scores is largest and the mean cost keeps to the budget.

    An integer program; solved by its Lagrangian where more than 2,000 rows make the exact one slow.

    Parameters
    ----------
    scores, costs : ndarray (n, m)
        Expected score and cost of each choice.
    budget : float
        Largest mean cost per row.

    Returns
    -------
    ndarray of int, (n,)
        The column of each row.

    Raises
    ------
    InputError
        When even the cheapest choice everywhere costs more than the budget.

    Examples
    --------
    >>> assign_within_budget(np.array([[0.0, 0.9], [0.0, 0.5]]), np.array([[1.0, 3.0], [1.0, 3.0]]), budget=2.0)
    array([1, 0])

    References
    ----------
    Sakota et al. 2024 (FORC, arXiv:2308.06077), section 3.3.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, kron

    n, m = scores.shape
    least = float(costs.min(axis=1).mean())
    if least > budget + 1e-12:
        raise InputError(
            f"The budget is {budget:g} but the cheapest choice costs {least:g} on average: raise the budget."
        )
    if n > 2000:
        return _by_lagrangian(scores, costs, budget)
    one_each = kron(csr_array(np.eye(n)), csr_array(np.ones((1, m))))
    solved = milp(
        -scores.ravel(),
        integrality=np.ones(n * m),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.ravel()[None], -np.inf, budget * n + 1e-9),
        ],
        options={"time_limit": 20.0, "mip_rel_gap": 1e-4},
    )
    if solved.x is None:
        return _by_lagrangian(scores, costs, budget)
    return np.asarray(solved.x.reshape(n, m).argmax(axis=1), dtype=np.int64)


def _by_lagrangian(scores: FloatArray, costs: FloatArray, budget: float) -> IntArray:
    rows = np.arange(scores.shape[0])
    low, high = 0.0, 1.0
    if costs[rows, value_minus_price(scores, costs, 0.0)].mean() <= budget:
        return value_minus_price(scores, costs, 0.0)
    while costs[rows, value_minus_price(scores, costs, high)].mean() > budget and high < 1e18:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        if costs[rows, value_minus_price(scores, costs, middle)].mean() > budget:
            low = middle
        else:
            high = middle
    return value_minus_price(scores, costs, high)


@dataclass(frozen=True, slots=True)
class PartialObservation:
    """Accept an answer, go on to the larger model, or check again: the best plan when only noisy checks are seen.

    The hidden state is one of: the small model is right (0), only the large one is (1), neither is (2). Each check
    gives an observation in one of several bins. Values are worked out exactly by looking ahead.

    Parameters
    ----------
    prior : tuple of float, (3,)
        Probability of each state.
    likelihood : tuple of tuple of float, (3, n_bins)
        Probability of each observation in each state.
    large_right : float
        Probability that the large model is right where the small one is.
    route_price, check_price : float
        Score that going on, and one more check, must bring.
    n_checks : int
        Most checks in all, the first included.

    References
    ----------
    Madaan et al. 2023 (AutoMix, arXiv:2310.12963), section 3.3.

    Examples
    --------
    >>> plan = PartialObservation((0.5, 0.5, 0.0), ((0.1, 0.9), (0.8, 0.2)) + ((0.5, 0.5),), 1.0, 0.2, 0.05)
    >>> plan.decide(np.array([0.0, 1.0])).indices
    array([1])
    """

    prior: tuple[float, float, float]
    likelihood: tuple[tuple[float, ...], ...]
    large_right: float
    route_price: float
    check_price: float
    n_checks: int = 1

    @classmethod
    def fit(
        cls,
        observations: IntArray,
        small: FloatArray,
        large: FloatArray,
        *,
        n_bins: int,
        route_price: float,
        check_price: float = 0.0,
        n_checks: int = 1,
    ) -> PartialObservation:
        """Estimate the model from binned checks and both models' scores, with one count added everywhere."""
        state = np.where(small >= 0.5, 0, np.where(large >= 0.5, 1, 2))
        prior = (np.bincount(state, minlength=3) + 1) / (state.size + 3)
        table = np.ones((3, n_bins))
        np.add.at(table, (state, observations), 1)
        table /= table.sum(axis=1, keepdims=True)
        right = float((np.sum(large[state == 0] >= 0.5) + 1) / (np.sum(state == 0) + 2))
        likelihood = tuple(tuple(float(p) for p in row) for row in table)
        first, second, third = (float(p) for p in prior)
        return cls((first, second, third), likelihood, right, route_price, check_price, n_checks)

    def belief(self, observations: IntArray) -> FloatArray:
        """Probability of each state after some observations, (3,)."""
        after = np.array(self.prior) * np.prod(np.array(self.likelihood)[:, observations], axis=1)
        return np.asarray(after / after.sum())

    def values(self, belief: FloatArray, n_left: int) -> tuple[float, float, float]:
        """Value of accepting, of going on, and of checking again (minus infinity when no check is left)."""
        accept = float(belief[0])
        route = float(belief[0] * self.large_right + belief[1] - self.route_price)
        if n_left <= 0:
            return accept, route, float("-inf")
        check = -self.check_price
        for column in np.array(self.likelihood).T:
            joint = belief * column
            if joint.sum() > 0:
                check += float(joint.sum()) * max(self.values(joint / joint.sum(), n_left - 1))
        return accept, route, check

    def decide(self, scores: FloatArray) -> Decision:
        """Accept answers by one check's bin each, (n,), as whole numbers."""
        bins = _checked(scores).astype(np.int64)
        verdicts = {}
        for b in np.unique(bins):
            accept, route, _ = self.values(self.belief(np.array([b])), 0)
            verdicts[int(b)] = accept >= route
        return _chosen(np.flatnonzero([verdicts[int(b)] for b in bins]))
