"""A learned combination of two models' next-token distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from pilotfish.decoding.fusion import normalised
from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import ArrayFile
from pilotfish.protocols import FloatArray, LogProbs

__all__ = ["LearnedCombination", "combination_features"]


def combination_features(base: LogProbs, other: LogProbs) -> FloatArray:
    """Entropy and largest log-probability of each model at each place, (n, 4)."""
    columns = []
    for logs in (base, other):
        p = np.exp(logs)
        columns.append(-np.where(p > 0, p * logs, 0).sum(axis=1))
        columns.append(logs.max(axis=1))
    features: FloatArray = np.stack(columns, axis=1).astype(np.float64)
    return features


class LearnedCombination(ArrayFile):
    """A fusion: p = w p_other + (1 - w) p_base, where a small network tells w from how sure the two are.

    Parameters
    ----------
    n_hidden : int
        Width of its hidden layer; 0 learns one weight for all places.
    penalty : float
        Of squared weights.
    seed : int
        Of where the search begins.

    Attributes
    ----------
    parameters_ : ndarray of float
        Of the network.
    mean_, scale_ : ndarray of float, (4,)
        Of the features.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> sure = rng.random(400) < 0.5
    >>> features = np.stack([np.where(sure, 0.1, 2.0), -np.where(sure, 0.1, 2.0), np.ones(400), -np.ones(400)], axis=1)
    >>> base, other = np.where(sure, -0.1, -3.0), np.full(400, -1.0)
    >>> model = LearnedCombination().fit(features, base, other)
    >>> bool(model.weights(features)[sure].mean() < 0.2 and model.weights(features)[~sure].mean() > 0.8)
    True

    References
    ----------
    CombLM: Ormazabal et al., arXiv:2305.16876, section 3.
    """

    _kept_as = "combination"

    roles: ClassVar[tuple[str, ...]] = ("base", "other")

    def __init__(self, n_hidden: int = 16, penalty: float = 1e-4, seed: int = 0) -> None:
        self.n_hidden = n_hidden
        self.penalty = penalty
        self.seed = seed

    def fit(self, features: FloatArray, base: FloatArray, other: FloatArray) -> Self:
        """Learn from places of a text.

        Parameters
        ----------
        features : ndarray of float, (n, 4)
            As of :func:`combination_features`.
        base, other : ndarray of float, (n,)
            Log-probability that each model gave the token that came.

        Raises
        ------
        InputError
            When the lengths differ or there is nothing.
        """
        if not len(features) == len(base) == len(other) or len(base) == 0:
            raise InputError(
                f"There are {len(features)} features for {len(base)} and {len(other)} tokens: give one each."
            )
        self.mean_ = features.mean(axis=0)
        self.scale_ = np.maximum(features.std(axis=0), 1e-6)
        x = (features - self.mean_) / self.scale_
        rng = np.random.default_rng(self.seed)
        start = rng.normal(scale=0.3, size=self.n_hidden * 6 + 1)
        start[-1] = 0.0

        def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
            hidden, z = self._forward(parameters, x)
            one, two = -np.logaddexp(0, -z) + other, -np.logaddexp(0, z) + base
            total = np.logaddexp(one, two)
            # d log p / dz is what the posterior of the other model differs from its weight.
            slope = -(np.exp(one - total) - expit(z)) / len(z)
            gradient = 2 * self.penalty * parameters
            if self.n_hidden:
                out = self._parts(parameters)[2]
                back = slope[:, None] * out * (1 - hidden**2)
                gradient = gradient + np.concatenate([(x.T @ back).ravel(), back.sum(axis=0), hidden.T @ slope, [0.0]])
            gradient[-1] += slope.sum()
            return float(-total.mean() + self.penalty * parameters @ parameters), gradient

        self.parameters_: FloatArray = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
        return self

    def weights(self, features: FloatArray) -> FloatArray:
        """Weight of the other model at each place, (n,)."""
        if not hasattr(self, "parameters_"):
            raise NotFittedError("This combination is not fitted: call fit first.")
        weights: FloatArray = expit(self._forward(self.parameters_, (features - self.mean_) / self.scale_)[1])
        return weights

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        base, other = log_probs["base"], log_probs["other"]
        w = self.weights(combination_features(base, other))[:, None].astype(np.float32)
        with np.errstate(divide="ignore"):
            return normalised(np.log((1 - w) * np.exp(base) + w * np.exp(other)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        sizes = np.array([self.n_hidden, self.seed])
        arrays = {"sizes": sizes, "penalty": np.array(self.penalty), "parameters": self.parameters_}
        return {**arrays, "mean": self.mean_, "scale": self.scale_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls(int(arrays["sizes"][0]), float(arrays["penalty"]), int(arrays["sizes"][1]))
        made.parameters_, made.mean_, made.scale_ = arrays["parameters"], arrays["mean"], arrays["scale"]
        return made

    def _parts(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        n = self.n_hidden
        return parameters[: 4 * n].reshape(4, n), parameters[4 * n : 5 * n], parameters[5 * n : 6 * n]

    def _forward(self, parameters: FloatArray, x: FloatArray) -> tuple[NDArray[np.float64], FloatArray]:
        into, bias, out = self._parts(parameters)
        hidden = np.tanh(x @ into + bias)
        return hidden, hidden @ out + parameters[-1]
