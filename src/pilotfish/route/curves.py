"""Cost-quality curves of policies and the numbers the field reports of them: AIQ, APGR, CPT and the convex hull."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = ["Curve", "apgr", "average_quality", "call_curve", "calls_for", "cpt", "hull"]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Mean cost and mean quality of a policy at each of its settings, from cheap to dear.

    Parameters
    ----------
    costs : ndarray (k,)
        Mean dollars per query, ascending.
    qualities : ndarray (k,)
        Mean score, higher is better.
    ends : ndarray (k, 2) or None
        Interval of each mean score, where it is known.
    """

    costs: FloatArray
    qualities: FloatArray
    ends: FloatArray | None = None

    @classmethod
    def of(cls, costs: ArrayLike, qualities: ArrayLike, ends: ArrayLike | None = None) -> Curve:
        """Sort points by cost, the better first among equals.

        Raises
        ------
        InputError
            When there is no point, or a number is not finite.
        """
        x, y = np.asarray(costs, dtype=np.float64), np.asarray(qualities, dtype=np.float64)
        if x.size == 0 or x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise InputError(
                f"costs {x.shape} and qualities {y.shape} make no curve: give as many finite numbers of each."
            )
        order = np.lexsort((-y, x))
        return cls(x[order], y[order], None if ends is None else np.asarray(ends, dtype=np.float64)[order])


def hull(curve: Curve) -> Curve:
    """Upper concave hull: what a policy reaches when its settings are mixed at random.

    The hull never falls: paying more and getting less is not worth showing.

    Examples
    --------
    >>> hull(Curve.of([0, 1, 2], [0, 0.2, 1])).costs
    array([0., 2.])

    References
    ----------
    Hu et al. 2024 (RouterBench, arXiv:2403.12031), section 3: the non-decreasing convex hull.
    """
    x, y = curve.costs.tolist(), curve.qualities.tolist()
    kept: list[int] = []
    best = -np.inf
    for i in range(len(x)):
        if y[i] <= best:
            continue
        best = y[i]
        while len(kept) > 1:
            a, b = kept[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) <= (y[i] - y[a]) * (x[b] - x[a]):
                kept.pop()
            else:
                break
        if kept and x[kept[-1]] == x[i]:
            kept.pop()
        kept.append(i)
    return Curve(curve.costs[kept], curve.qualities[kept], None if curve.ends is None else curve.ends[kept])


def average_quality(curve: Curve, low: float, high: float) -> float:
    """Mean height of the hull between two costs (AIQ); below its first point the hull counts as that point's quality 0.

    Examples
    --------
    >>> average_quality(Curve.of([0, 2], [0, 1]), 0, 2)
    0.5

    References
    ----------
    Hu et al. 2024 (RouterBench, arXiv:2403.12031), equation 4.
    """
    if not high > low:
        raise InputError(f"The costs run from {low:g} to {high:g}: give a range of positive length.")
    top = hull(curve)
    grid = np.unique(np.concatenate([np.linspace(low, high, 513), top.costs[(top.costs > low) & (top.costs < high)]]))
    heights = np.interp(grid, top.costs, top.qualities, left=0.0)
    return float(np.trapezoid(heights, grid) / (high - low))


def call_curve(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> FloatArray:
    """Mean quality when the queries of highest score go to the strong model: entry k is for k strong calls, (n + 1,).

    Ties are broken by position, so break them at random before if that matters.

    Examples
    --------
    >>> call_curve([0.9, 0.1], weak=[0, 1], strong=[1, 1])
    array([0.5, 1. , 1. ])
    """
    s, w, g = (np.asarray(a, dtype=np.float64) for a in (scores, weak, strong))
    if not s.shape == w.shape == g.shape or s.size == 0:
        raise InputError(
            f"scores, weak and strong have shapes {s.shape}, {w.shape}, {g.shape}: give one of each per query."
        )
    order = np.argsort(-s, kind="stable")
    return np.concatenate([[w.mean()], w.mean() + np.cumsum((g - w)[order]) / s.size])


def _recovered(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> FloatArray:
    curve = call_curve(scores, weak, strong)
    gap = curve[-1] - curve[0]
    if not gap > 0:
        raise InputError(
            f"The strong model is {gap:+.3g} better than the weak one: give a strong model that is better."
        )
    return np.asarray((curve - curve[0]) / gap)


def apgr(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> float:
    """Average performance gap recovered: area under the recovered share of the gap by share of strong calls.

    Random routing gives 0.5 in expectation.

    Parameters
    ----------
    scores : array (n,)
        Higher sends the query to the strong model earlier.
    weak, strong : array (n,)
        Score of each model's answer.

    Examples
    --------
    >>> apgr([1.0, 0.0], weak=[0, 1], strong=[1, 1])
    0.75

    References
    ----------
    Ong et al. 2024 (RouteLLM, arXiv:2406.18665), equation 7, over every share instead of ten.
    """
    share = _recovered(scores, weak, strong)
    return float(np.trapezoid(share, dx=1 / (share.size - 1)))


def cpt(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike, share: float) -> float:
    """Call-performance threshold: least share of strong calls that recovers a share of the gap.

    Examples
    --------
    >>> cpt([1.0, 0.0], weak=[0, 1], strong=[1, 1], share=0.8)
    0.5

    References
    ----------
    Ong et al. 2024 (RouteLLM, arXiv:2406.18665), section 4.
    """
    recovered = _recovered(scores, weak, strong)
    return float(np.argmax(recovered >= share - 1e-12) / (recovered.size - 1))


def calls_for(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike, share: float) -> float:
    """Least share of strong calls that reaches a share of the strong model's own quality; NaN when never reached."""
    curve = call_curve(scores, weak, strong)
    reached = curve >= share * curve[-1] - 1e-12
    return float(np.argmax(reached) / (curve.size - 1)) if reached.any() else float("nan")


def pareto(costs: Sequence[float] | FloatArray, qualities: Sequence[float] | FloatArray) -> list[int]:
    """Indices of the points no other point beats at the same or a lower cost, from cheap to dear."""
    order = np.lexsort((-np.asarray(qualities), np.asarray(costs)))
    kept, best = [], -np.inf
    for i in order:
        if qualities[i] > best:
            kept.append(int(i))
            best = qualities[i]
    return kept
