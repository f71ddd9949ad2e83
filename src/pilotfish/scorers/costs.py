"""What an answer will cost, and scores for each dollar of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray
from pilotfish.types import Exchange

__all__ = ["CostModel", "PerCost"]


class CostModel:
    """Cost of an answer as a line in the length of the prompt, per model.

    Examples
    --------
    >>> CostModel().fit(["ab", "abcd"], np.array([[2.0], [4.0]])).predict(["abc"]).round(6)
    array([[3.]])
    """

    def fit(self, prompts: Sequence[str], costs: FloatArray) -> Self:
        """Learn from costs (n, m) in dollars, NaN where a model was not asked."""
        length = np.array([len(p) for p in prompts], dtype=np.float64)
        lines = []
        for j in range(costs.shape[1]):
            known = np.isfinite(costs[:, j])
            if not known.any():
                raise InputError(f"Model {j} has no cost in the table: give the cost of its answers.")
            x, y = length[known], costs[known, j]
            slope = 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.polyfit(x, y, 1)[0])
            slope = max(slope, 0.0)
            lines.append((slope, float(y.mean() - slope * x.mean())))
        self.lines_ = np.array(lines)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict dollars (n, m)."""
        length = np.array([len(p) for p in prompts], dtype=np.float64)[:, None]
        return np.asarray(np.maximum(length * self.lines_[:, 0] + self.lines_[:, 1], 0.0))


class PerCost:
    """A score divided by what going on to the next model is expected to cost.

    Where a score is what stopping gains over going on, this ranks answers by what a dollar spent on going on buys: dear
    questions have to gain more than cheap ones. The cost is a plane in the lengths of the prompt and the answer seen.

    Parameters
    ----------
    scorer : Scorer of Exchange
        Learns what stopping gains; see ``CascadePolicy(gain=True)``.

    Examples
    --------
    >>> from pilotfish.scorers.answers import MeanLogProb
    >>> from pilotfish.types import Reply, Request, TokenLogProb
    >>> logs = (TokenLogProb("x", -1.0),)
    >>> seen = [Exchange(Request.of("q"), Reply("x" * n, log_probs=logs)) for n in (10, 20)]
    >>> PerCost(MeanLogProb()).fit_costs(seen, np.array([1.0, 2.0])).score(seen).round(6)
    array([-1. , -0.5])

    References
    ----------
    Everett 1963, for the Lagrangian: within a budget, take what gains most for its cost.
    """

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def fit(self, exchanges: Sequence[Exchange], targets: FloatArray) -> Self:
        """Teach the score, where it learns."""
        if hasattr(self.scorer, "fit"):
            self.scorer.fit(exchanges, targets)
        return self

    def fit_costs(self, exchanges: Sequence[Exchange], costs: FloatArray) -> Self:
        """Learn from what the next model's answers cost, (n,); NaN where it was not asked.

        Raises
        ------
        InputError
            When no cost is known, or none is above zero.
        """
        known = np.isfinite(costs)
        if not known.any() or not (costs[known] > 0).any():
            raise InputError("The next model's answers have no cost above zero: give the cost of each in the table.")
        self.plane_ = np.linalg.lstsq(_lengths(exchanges)[known], costs[known], rcond=None)[0]
        self.least_ = float(costs[known & (costs > 0)].min())
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score for each dollar, (n,)."""
        if not hasattr(self, "plane_"):
            raise NotFittedError("PerCost was used before fit_costs: call fit_costs(exchanges, costs) first.")
        return np.asarray(self.scorer.score(items) / np.maximum(_lengths(items) @ self.plane_, self.least_))


def _lengths(exchanges: Sequence[Exchange]) -> FloatArray:
    return np.array([[1.0, len(e.request.prompt), len(e.reply.text)] for e in exchanges]).reshape(-1, 3)
