"""From any score to a probability that can be believed: on average, and within every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import ArrayFile
from pilotfish.protocols import FloatArray, IntArray

__all__ = [
    "Calibrator",
    "GroupCalibration",
    "IsotonicCalibration",
    "PlattCalibration",
    "Reliability",
    "TemperatureCalibration",
    "calibration_error",
    "grouping_loss",
    "reliability",
]


class Calibrator(Protocol):
    """Anything that turns scores into probabilities."""

    def fit(self, scores: FloatArray, labels: FloatArray) -> Self:
        """Learn from scores (n,) and whether each answer was right, 1 or 0."""
        ...

    def predict(self, scores: FloatArray) -> FloatArray:
        """Probability of being right, (n,)."""
        ...


def _pairs(scores: FloatArray, labels: FloatArray, name: str) -> tuple[FloatArray, FloatArray]:
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if s.shape != y.shape or s.ndim != 1 or s.size < 2:
        raise InputError(f"{name} got scores of shape {s.shape} and labels of {y.shape}: give at least 2 of each.")
    if not np.isfinite(s).all() or not np.isin(y, (0.0, 1.0)).all():
        raise InputError(f"{name} got scores that are not finite, or labels other than 0 and 1: leave those out first.")
    return s, y


def _is_fitted(part: object, name: str) -> None:
    if not hasattr(part, name):
        raise NotFittedError(f"{type(part).__name__} was used before fit: call fit(scores, labels) first.")


class _Saved(ArrayFile):
    """Keeps what was learned, the arrays and numbers of ``_learned``."""

    _learned: ClassVar[tuple[str, ...]]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        _is_fitted(self, self._learned[0])
        return {name: np.array(getattr(self, name)) for name in self._learned}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls()
        for name in cls._learned:
            value = arrays[name].astype(np.float64)
            setattr(made, name, value if value.ndim else float(value))
        return made


class IsotonicCalibration(_Saved):
    """The best probability that never falls as the score rises; labels of one class give that class's share.

    References
    ----------
    Zadrozny and Elkan 2002.

    Examples
    --------
    >>> IsotonicCalibration().fit(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1])).predict(np.array([0.0, 9.0]))
    array([0., 1.])
    """

    _kept_as = "IsotonicCalibration"
    _learned = ("at_", "probability_")

    def fit(self, scores: FloatArray, labels: FloatArray) -> Self:
        """Learn from scores (n,) and labels (n,)."""
        from sklearn.isotonic import IsotonicRegression

        line = IsotonicRegression(out_of_bounds="clip").fit(*_pairs(scores, labels, "IsotonicCalibration"))
        self.at_, self.probability_ = line.X_thresholds_, line.y_thresholds_
        return self

    def predict(self, scores: FloatArray) -> FloatArray:
        """Probability of being right, (n,)."""
        _is_fitted(self, "at_")
        return np.asarray(np.interp(scores, self.at_, self.probability_))


class PlattCalibration(_Saved):
    """The logistic of a line through the score, fitted to labels softened by one count each.

    References
    ----------
    Platt 1999, section 2.2.
    """

    _kept_as = "PlattCalibration"
    _learned = ("slope_", "intercept_", "centre_", "scale_")

    def fit(self, scores: FloatArray, labels: FloatArray) -> Self:
        """Learn from scores (n,) and labels (n,)."""
        from scipy.optimize import minimize

        s, y = _pairs(scores, labels, "PlattCalibration")
        n_right = y.sum()
        target = np.where(y == 1, (n_right + 1) / (n_right + 2), 1 / (y.size - n_right + 2))
        self.centre_, self.scale_ = float(s.mean()), float(s.std()) or 1.0
        x = (s - self.centre_) / self.scale_

        def loss(w: FloatArray) -> float:
            z = w[0] * x + w[1]
            return float(np.mean(np.logaddexp(0, z) - target * z))

        self.slope_, self.intercept_ = (float(v) for v in minimize(loss, np.zeros(2), method="BFGS").x)
        return self

    def predict(self, scores: FloatArray) -> FloatArray:
        """Probability of being right, (n,)."""
        from scipy.special import expit

        _is_fitted(self, "slope_")
        z = self.slope_ * (np.asarray(scores) - self.centre_) / self.scale_ + self.intercept_
        return np.asarray(expit(z))


class TemperatureCalibration(_Saved):
    """Stretch or shrink the log-odds of a probability by one number.

    References
    ----------
    Guo et al. 2017 (arXiv:1706.04599), section 4.
    """

    _kept_as = "TemperatureCalibration"
    _learned = ("temperature_",)

    def fit(self, scores: FloatArray, labels: FloatArray) -> Self:
        """Learn from probabilities (n,) and labels (n,)."""
        from scipy.optimize import minimize_scalar

        s, y = _pairs(scores, labels, "TemperatureCalibration")
        z = _log_odds(s)
        found = minimize_scalar(
            lambda t: float(np.mean(np.logaddexp(0, z / np.exp(t)) - y * z / np.exp(t))),
            bounds=(-4, 4),
            method="bounded",
        )
        self.temperature_ = float(np.exp(found.x))
        return self

    def predict(self, scores: FloatArray) -> FloatArray:
        """Probability of being right, (n,)."""
        _is_fitted(self, "temperature_")
        return np.asarray(1 / (1 + np.exp(-_log_odds(np.asarray(scores)) / self.temperature_)))


def _log_odds(p: FloatArray) -> FloatArray:
    if p.size and (p.min() < 0 or p.max() > 1):
        raise InputError("TemperatureCalibration got numbers outside [0, 1]: give probabilities, or use another one.")
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


class GroupCalibration(ArrayFile):
    """Calibrate within groups that a small tree finds: where the confidence errs in one way for one kind of item.

    The tree splits items by their features so that the residual of an ordinary isotonic calibration differs between the
    leaves. Each leaf gets an isotonic line of its own, drawn towards the common one by its size.

    Parameters
    ----------
    n_leaves : int
        Most leaves.
    min_leaf : int
        Fewest items of a leaf.
    shrinkage : float
        Items' worth of the common line in every leaf's.

    Attributes
    ----------
    n_groups_ : int
        Leaves found.

    References
    ----------
    Chen et al. 2024 (arXiv:2402.04957): reconfidencing from the grouping loss perspective.
    """

    _kept_as = "GroupCalibration"

    def __init__(self, n_leaves: int = 8, min_leaf: int = 30, shrinkage: float = 20.0) -> None:
        self.n_leaves = n_leaves
        self.min_leaf = min_leaf
        self.shrinkage = shrinkage

    def fit(self, scores: FloatArray, labels: FloatArray, features: FloatArray) -> Self:
        """Learn from scores (n,), labels (n,) and features (n, d), such as one column per topic."""
        from sklearn.tree import DecisionTreeRegressor

        s, y = _pairs(scores, labels, "GroupCalibration")
        if features.shape[0] != s.size or not np.isfinite(features).all():
            raise InputError(f"features have shape {features.shape} for {s.size} scores: give a finite row per score.")
        self.common_ = IsotonicCalibration().fit(s, y)
        tree = DecisionTreeRegressor(max_leaf_nodes=self.n_leaves, min_samples_leaf=self.min_leaf, random_state=0)
        self.tree_ = _Tree.of(tree.fit(features, y - self.common_.predict(s)).tree_)
        leaves = self.tree_.leaves(features)
        self.lines_ = {
            int(leaf): (IsotonicCalibration().fit(s[leaves == leaf], y[leaves == leaf]), int((leaves == leaf).sum()))
            for leaf in np.unique(leaves)
        }
        self.n_groups_ = len(self.lines_)
        return self

    def groups(self, features: FloatArray) -> FloatArray:
        """Leaf of each item, (n,)."""
        _is_fitted(self, "tree_")
        return np.asarray(self.tree_.leaves(features))

    def predict(self, scores: FloatArray, features: FloatArray) -> FloatArray:
        """Probability of being right, (n,)."""
        leaves = self.groups(features)
        out = self.common_.predict(scores)
        for leaf, (line, n) in self.lines_.items():
            at = leaves == leaf
            share = n / (n + self.shrinkage)
            out[at] = share * line.predict(np.asarray(scores)[at]) + (1 - share) * out[at]
        return out

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        _is_fitted(self, "tree_")
        lines = [(-1, self.common_, 0), *((leaf, line, n) for leaf, (line, n) in self.lines_.items())]
        arrays = {
            "settings": np.array([self.n_leaves, self.min_leaf, self.shrinkage]),
            "leaf": np.array([leaf for leaf, _, _ in lines]),
            "n": np.array([n for _, _, n in lines]),
            "size": np.array([line.at_.size for _, line, _ in lines]),
            "at": np.concatenate([line.at_ for _, line, _ in lines]),
            "probability": np.concatenate([line.probability_ for _, line, _ in lines]),
        }
        return arrays | {f"tree_{name}": array for name, array in vars(self.tree_).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        n_leaves, min_leaf, shrinkage = arrays["settings"]
        made = cls(int(n_leaves), int(min_leaf), float(shrinkage))
        made.tree_ = _Tree(*(arrays[f"tree_{name}"] for name in _Tree.__dataclass_fields__))
        ends = np.cumsum(arrays["size"])[:-1]
        lines = []
        for at, probability in zip(*(np.split(arrays[name], ends) for name in ("at", "probability")), strict=True):
            line = IsotonicCalibration()
            line.at_, line.probability_ = at, probability
            lines.append(line)
        made.common_ = lines[0]
        made.lines_ = {
            int(leaf): (line, int(n))
            for leaf, line, n in list(zip(arrays["leaf"], lines, arrays["n"], strict=True))[1:]
        }
        made.n_groups_ = len(made.lines_)
        return made


@dataclass(frozen=True, eq=False)
class _Tree:
    """A tree's nodes in arrays; a leaf is its own child."""

    feature: IntArray
    threshold: FloatArray
    below: IntArray
    above: IntArray

    @classmethod
    def of(cls, tree: Any) -> _Tree:
        """The same as a tree of scikit-learn."""
        leaf, own = tree.children_left < 0, np.arange(tree.node_count)
        below, above = (np.where(leaf, own, side) for side in (tree.children_left, tree.children_right))
        return cls(np.where(leaf, 0, tree.feature), tree.threshold, below, above)

    def leaves(self, features: FloatArray) -> IntArray:
        """Leaf of each row, (n,)."""
        # The thresholds were found among numbers of single precision.
        rows, x = np.arange(len(features)), np.asarray(features, dtype=np.float32)
        node = np.zeros(len(x), dtype=np.int64)
        while True:
            below = x[rows, self.feature[node]] <= self.threshold[node]
            after = np.where(below, self.below[node], self.above[node])
            if (after == node).all():
                return np.asarray(node)
            node = after


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """What was claimed and what came true, by bins of equal size.

    Parameters
    ----------
    claimed, true : ndarray (n_bins,)
        Mean probability, and share of right answers.
    low, high : ndarray (n_bins,)
        95 % interval of that share (Clopper-Pearson).
    n : ndarray of int (n_bins,)
        Items.
    """

    claimed: FloatArray
    true: FloatArray
    low: FloatArray
    high: FloatArray
    n: FloatArray


def reliability(probabilities: FloatArray, labels: FloatArray, n_bins: int = 10) -> Reliability:
    """Compare claimed probabilities with what came true; equal claims stay in one bin.

    Examples
    --------
    >>> found = reliability(np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 1]), n_bins=2)
    >>> found.claimed.tolist(), found.true.tolist()
    ([0.2, 0.8], [0.0, 1.0])
    """
    from pilotfish.bounds import binomial_lower, binomial_upper

    p, y = _pairs(probabilities, labels, "reliability")
    edges = np.unique(np.quantile(p, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bins = np.searchsorted(edges, p, side="left")
    rows = [(p[bins == b].mean(), y[bins == b].sum(), (bins == b).sum()) for b in np.unique(bins)]
    claimed, right, n = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return Reliability(claimed, right / n, binomial_lower(right, n, 0.025), binomial_upper(right, n, 0.025), n)


def calibration_error(probabilities: FloatArray, labels: FloatArray, n_bins: int = 10) -> float:
    """Expected calibration error: mean distance of claim and truth over bins of equal size.

    References
    ----------
    Naeini et al. 2015; with bins of equal size, Nixon et al. 2019 (arXiv:1904.01685).
    """
    found = reliability(probabilities, labels, n_bins)
    return float(np.average(np.abs(found.claimed - found.true), weights=found.n))


def grouping_loss(probabilities: FloatArray, labels: FloatArray, groups: Sequence[object], n_bins: int = 5) -> float:
    """Lower estimate of the grouping loss: how much the truth varies between groups that got the same confidence.

    Within each bin of confidence, the variance between the groups' shares of right answers, less what chance alone
    would give (the two-sample debiasing of the paper); 0 where groups tell nothing.

    References
    ----------
    Perez-Lebel et al. 2023 (arXiv:2210.16315), eq. 9.

    Examples
    --------
    >>> p, y = np.full(400, 0.5), np.repeat([0.0, 1.0], 200)
    >>> round(grouping_loss(p, y, ["a"] * 200 + ["b"] * 200), 2)
    0.25
    """
    p, y = _pairs(probabilities, labels, "grouping_loss")
    edges = np.unique(np.quantile(p, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bins = np.searchsorted(edges, p, side="left")
    names = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)[1]
    total = 0.0
    for b in np.unique(bins):
        rows = bins == b
        mean = y[rows].mean()
        for g in np.unique(names[rows]):
            part = y[rows & (names == g)]
            chance = part.var(ddof=1) / part.size if part.size > 1 else 0.0
            if part.size > 1:
                total += part.size * ((part.mean() - mean) ** 2 - chance)
    return max(0.0, float(total / p.size))
