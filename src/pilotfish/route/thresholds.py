"""Thresholds of a cascade's stages on recorded answers: what every setting of a few costs, and good ones of many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pilotfish.protocols import FloatArray, IntArray
from pilotfish.route.curves import pareto

__all__ = ["Stages", "frontier"]

# With more stages even a few thresholds of each make too many settings to look at.
_MOST_JOINT = 4
_PRICES = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 120)])


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """What each stage of a cascade would do with each query.

    Parameters
    ----------
    scores : ndarray (n, k)
        Score of each stage's answer; what has none (NaN) never reaches a threshold.
    worth : ndarray (n, k + 1)
        What each stage's answer and the last model's is worth; NaN where that is not known.
    read, unread : ndarray (n, k)
        Dollars of asking a stage, with and without scoring its answer.
    last : ndarray (n,)
        Dollars of asking the last model.
    """

    scores: FloatArray
    worth: FloatArray
    read: FloatArray
    unread: FloatArray
    last: FloatArray


def frontier(stages: Stages, grids: Sequence[Sequence[float]], most: int) -> list[tuple[float, ...]]:
    """Settings that no other one found beats in cost and worth, from cheap to dear.

    Up to four stages every combination of thresholds is looked at. Of more, one setting for each of a row of prices of
    a dollar: thresholds are set from the last stage back, each where worth less price is highest over all queries.

    Parameters
    ----------
    stages : Stages
        On the queries that settings are found on.
    grids : sequence of k sequences of float
        Finite thresholds to try for each stage, ascending; beside them minus infinity (whatever is answered is
        returned, unread) and infinity (the stage is not asked).
    most : int
        Most settings returned.
    """
    bins = [
        np.where(np.isnan(column), 0, np.searchsorted(grid, column, side="right"))
        for column, grid in zip(stages.scores.T, grids, strict=True)
    ]
    sizes = [len(grid) for grid in grids]
    if len(grids) <= _MOST_JOINT:
        costs, qualities = _every(stages, bins, sizes)
        places = list(itertools.product(*(range(size + 2) for size in sizes)))
    else:
        places = sorted({_at_price(stages, bins, sizes, price) for price in _prices(stages)})
        means = [_walked(stages, bins, sizes, place) for place in places]
        costs, qualities = (np.array(column) for column in zip(*means, strict=True))
    kept = pareto(costs, qualities)
    at = np.unique(np.linspace(0, len(kept) - 1, most).astype(int))
    tried = [[-np.inf, *grid, np.inf] for grid in grids]
    return [tuple(float(tried[k][i]) for k, i in enumerate(places[kept[j]])) for j in at]


def _every(stages: Stages, bins: Sequence[IntArray], sizes: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Mean cost and worth of every combination of thresholds, in the order of their product."""
    shape = tuple(size + 2 for size in sizes)
    n, k = stages.scores.shape
    known = np.isfinite(stages.worth)
    worth = np.where(known, stages.worth, 0.0)
    cost, total, counted = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def spread(part: FloatArray) -> FloatArray:
        return np.asarray(part.reshape(part.shape + (1,) * (k - part.ndim)))

    for s in range(k):
        read, unread = (_open(values[:, s], bins[:s], sizes) for values in (stages.read, stages.unread))
        spent = np.repeat(read[..., None], shape[s], axis=-1)
        spent[..., 0], spent[..., -1] = unread, 0.0
        cost += spread(spent)
        total += spread(_stopped(worth[:, s], bins[: s + 1], sizes))
        counted += spread(_stopped(known[:, s].astype(np.float64), bins[: s + 1], sizes))
    cost += _open(stages.last, bins, sizes)
    total += _open(worth[:, k], bins, sizes)
    counted += _open(known[:, k].astype(np.float64), bins, sizes)
    return (cost / n).ravel(), np.where(counted > 0, total / np.maximum(counted, 1), -np.inf).ravel()


def _sums(values: FloatArray, bins: Sequence[IntArray], sizes: Sequence[int]) -> FloatArray:
    shape = tuple(size + 1 for size in sizes[: len(bins)])
    at = np.ravel_multi_index(tuple(bins), shape) if bins else np.zeros(values.size, dtype=np.int64)
    return np.asarray(np.bincount(at, values, minlength=int(np.prod(shape))), dtype=np.float64).reshape(shape)


def _open(values: FloatArray, bins: Sequence[IntArray], sizes: Sequence[int]) -> FloatArray:
    """Sum over the queries that no stage keeps, by each one's threshold: those whose bins lie below."""
    sums = _sums(values, bins, sizes)
    for axis in range(len(bins)):
        sums = _below(sums, axis)
    return sums


def _stopped(values: FloatArray, bins: Sequence[IntArray], sizes: Sequence[int]) -> FloatArray:
    """Sum over the queries that the last of some stages keeps: open before it, and not below its threshold."""
    sums = _sums(values, bins, sizes)
    for axis in range(len(bins) - 1):
        sums = _below(sums, axis)
    return np.flip(_below(np.flip(sums, -1), -1), -1)


def _below(sums: FloatArray, axis: int) -> FloatArray:
    first = np.zeros_like(np.take(sums, [0], axis=axis))
    return np.concatenate([first, np.cumsum(sums, axis=axis)], axis=axis)


def _prices(stages: Stages) -> FloatArray:
    known = stages.worth[np.isfinite(stages.worth)]
    dear = max(float(stages.last.mean()), float(stages.unread.mean(axis=0).max()))
    return _PRICES * (float(np.ptp(known)) if known.size else 0.0) / (dear or 1.0)


def _at_price(stages: Stages, bins: Sequence[IntArray], sizes: Sequence[int], price: float) -> tuple[int, ...]:
    worth = np.nan_to_num(stages.worth)
    value = worth[:, -1] - price * stages.last
    place: list[int] = []
    for s in range(len(bins) - 1, -1, -1):
        own = worth[:, s]
        # By threshold: what is kept is worth the stage's own answers, the rest what follows.
        gains = _stopped(own - value, bins[s : s + 1], sizes[s : s + 1])
        gains[1:-1] -= price * stages.read[:, s].sum()
        gains[0] -= price * stages.unread[:, s].sum()
        best = int(gains.argmax())
        spent = 0.0 if best > sizes[s] else stages.unread[:, s] if best == 0 else stages.read[:, s]
        value = np.where(bins[s] >= best, own, value) - price * spent
        place.insert(0, best)
    return tuple(place)


def _walked(
    stages: Stages, bins: Sequence[IntArray], sizes: Sequence[int], place: Sequence[int]
) -> tuple[float, float]:
    open_ = np.ones(stages.last.size, dtype=bool)
    cost, worth = np.zeros(stages.last.size), stages.worth[:, -1].copy()
    for s, at in enumerate(place):
        if at > sizes[s]:
            continue
        cost[open_] += (stages.unread if at == 0 else stages.read)[open_, s]
        stops = open_ & (bins[s] >= at)
        worth[stops] = stages.worth[stops, s]
        open_ &= ~stops
    cost[open_] += stages.last[open_]
    return float(cost.mean()), float(np.nanmean(worth)) if np.isfinite(worth).any() else -np.inf
