"""Which group a prompt belongs to, as far as its features tell: a subject, an application, a kind of question."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import NotFittedError
from pilotfish.protocols import FloatArray

__all__ = ["GroupGuess"]

# A smaller group has no level that could be told from chance, and more of them would take minutes.
_FEWEST_PROMPTS = 5
_MOST_GROUPS = 200
_MOST_STEPS = 300
# Of the inverse penalty, by log-likelihood on questions that are in no test split of a benchmark.
_FREEDOM = 10.0


class GroupGuess:
    """Multinomial logistic regression of the group on a prompt's features.

    Groups of fewer than 5 prompts, and those beyond the 200 largest, are no groups.

    Examples
    --------
    >>> x = np.repeat(np.eye(2), 20, axis=0)
    >>> guess = GroupGuess().fit(x, ["law"] * 20 + ["physics"] * 20)
    >>> guess.names_, guess.predict(np.eye(2)).argmax(axis=1)
    (('law', 'physics'), array([0, 1]))

    References
    ----------
    Cox 1966, Some procedures connected with the logistic qualitative response curve.
    """

    def fit(self, x: FloatArray, groups: Sequence[str]) -> Self:
        """Learn from features (n, d) and the name of each prompt's group, empty where it has none.

        With fewer than two groups there is nothing to tell apart: all are of none.
        """
        counts = Counter(name for name in groups if name)
        self.names_ = tuple(sorted(name for name, n in counts.most_common(_MOST_GROUPS) if n >= _FEWEST_PROMPTS))
        if len(self.names_) < 2:
            self.names_ = ()
        self.lines_ = np.zeros((x.shape[1] + 1, len(self.names_)))
        if self.names_:
            known = set(self.names_)
            rows = [i for i, name in enumerate(groups) if name in known]
            self.lines_ = _logistic(x[rows], [groups[i] for i in rows])
        return self

    def members(self, groups: Sequence[str]) -> FloatArray:
        """Which group each prompt is of, as rows with a single 1, (n, k); rows of none are all 0."""
        return np.array([[float(name == own) for own in self.names_] for name in groups]).reshape(len(groups), -1)

    def predict(self, x: FloatArray) -> FloatArray:
        """Probability of each group for features (n, d), (n, k)."""
        if not hasattr(self, "lines_"):
            raise NotFittedError("GroupGuess was used before fit: call fit(x, groups) first.")
        if not self.names_:
            return np.zeros((x.shape[0], 0))
        scores = x @ self.lines_[:-1] + self.lines_[-1]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        return {"names": np.array(self.names_, dtype=np.str_), "lines": self.lines_}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls()
        made.names_ = tuple(str(name) for name in arrays.get("names", ()))
        made.lines_ = arrays.get("lines", np.zeros((0, 0)))
        return made


def _logistic(x: FloatArray, groups: Sequence[str]) -> FloatArray:
    """Weights of each feature and, in the last row, of each group alone, (d + 1, k)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # What is left to gain after so many steps no longer matters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        line = LogisticRegression(C=_FREEDOM, max_iter=_MOST_STEPS).fit(x, groups)
    coefficients, levels = line.coef_, line.intercept_
    if len(coefficients) == 1:  # of two groups sklearn keeps the difference
        coefficients, levels = np.vstack([-coefficients, coefficients]) / 2, np.array([-levels[0], levels[0]]) / 2
    return np.vstack([coefficients.T, levels])
