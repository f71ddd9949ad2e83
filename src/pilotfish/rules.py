"""Rules: from scores to a choice. Every rule is a frozen value with one method, ``decide``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import Decision, FloatArray, IntArray

__all__ = ["Argmax", "Threshold", "TopK"]


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
