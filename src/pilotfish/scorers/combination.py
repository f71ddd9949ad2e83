"""One score from several metrics, learned from pairs of which people found one better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import read_arrays, write_arrays
from pilotfish.protocols import FloatArray, Scorer
from pilotfish.types import Exchange

__all__ = ["Combination", "preference_weights"]

_FEWEST_PAIRS = 10


class Combination:
    """A weighted sum of metrics that puts the answer people preferred above the other.

    An answer that a metric cannot score is NaN. Only differences between answers to one question mean something.

    Parameters
    ----------
    scorers : mapping of str to Scorer of Exchange
        The metrics, by name.
    penalty : float
        What large weights cost; metrics are brought to one scale first.

    Attributes
    ----------
    weights_ : ndarray (n_scorers,)
        Weight of each metric, in the order given.

    Examples
    --------
    >>> from pilotfish.scorers.reference import Length
    >>> from pilotfish.types import Reply, Request
    >>> short, long = ([Exchange(Request.of("Why?"), Reply("so " * n))] * 20 for n in (1, 9))
    >>> made = Combination({"length": Length()}).fit(short, long)
    >>> bool(made.score(short)[0] > made.score(long)[0])
    True
    """

    def __init__(self, scorers: Mapping[str, Scorer[Exchange]], penalty: float = 0.01) -> None:
        self.scorers = dict(scorers)
        self.penalty = penalty

    def fit(self, better: Sequence[Exchange], worse: Sequence[Exchange]) -> Self:
        """Learn from pairs: each answer of ``better`` was preferred to the one of ``worse`` at its place.

        Raises
        ------
        InputError
            When the two are not of one length, or fewer than 10 pairs have every score.
        """
        if len(better) != len(worse) or not self.scorers:
            raise InputError(f"{len(better)} better and {len(worse)} worse answers, {len(self.scorers)} metrics.")
        differences = self._columns(better) - self._columns(worse)
        kept = np.isfinite(differences).all(axis=1)
        if kept.sum() < _FEWEST_PAIRS:
            raise InputError(f"{kept.sum()} pairs have every score: give at least {_FEWEST_PAIRS}.")
        self.weights_ = preference_weights(differences[kept], self.penalty)
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,)."""
        self._check_fitted()
        return np.asarray(self._columns(items) @ self.weights_)

    def save(self, path: str | Path) -> None:
        """Save the weights as an npz archive, without pickle; the metrics are not part of it."""
        self._check_fitted()
        names = np.array(list(self.scorers))
        write_arrays(path, {"names": names, "weights": self.weights_, "penalty": np.array(self.penalty)})

    @classmethod
    def load(cls, path: str | Path, scorers: Mapping[str, Scorer[Exchange]]) -> Self:
        """Load what :meth:`save` wrote; the metrics are given again, by the same names.

        Raises
        ------
        InputError
            When the file is something else, or a metric is missing.
        """
        with read_arrays(path, cls.__name__) as file:
            names, weights, penalty = [str(n) for n in file["names"]], file["weights"], float(file["penalty"])
        missing = sorted(set(names) - set(scorers))
        if missing:
            raise InputError(f"{path} weighs {missing[0]!r}, which is not among the metrics: give it too.")
        made = cls({name: scorers[name] for name in names}, penalty)
        made.weights_ = weights
        return made

    def _columns(self, items: Sequence[Exchange]) -> FloatArray:
        return np.column_stack([np.asarray(s.score(items), dtype=np.float64) for s in self.scorers.values()])

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise NotFittedError("Combination was used before fit: call fit(better, worse) first.")


def preference_weights(differences: FloatArray, penalty: float = 0.01) -> FloatArray:
    """Weights (d,) of the line that puts the better of two above the worse, by the logistic loss.

    Parameters
    ----------
    differences : ndarray (n, d)
        Columns of the better one minus those of the worse one.
    penalty : float
        On squared weights of the columns, each brought to a mean square of 1.

    References
    ----------
    Bradley and Terry 1952.

    Examples
    --------
    >>> preference_weights(np.array([[1.0, 3.0], [1.0, -3.0]])).round(1).tolist()
    [2.8, 0.0]
    """
    from scipy.optimize import minimize

    scale = np.sqrt((differences**2).mean(axis=0)) + 1e-9
    rows = differences / scale

    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        margin = rows @ w
        away = 1 / (1 + np.exp(np.clip(margin, -50, 50)))
        value = float(np.logaddexp(0, -margin).mean() + penalty * w @ w)
        return value, -(rows.T @ away) / len(rows) + 2 * penalty * w

    return np.asarray(minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B").x / scale)
