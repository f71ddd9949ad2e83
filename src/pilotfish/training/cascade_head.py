"""Small classifiers trained for the cascade they will stand in, with the large model's mistakes and price known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.types import Reply, Request

__all__ = ["CascadeHead"]


class CascadeHead:
    """A softmax head that knows it will hand hard cases to a large model; also a model that answers labels.

    Parameters
    ----------
    aware : bool
        Learn only from examples that the head or the large model gets right: effort spent on the rest is lost on both.
    gate : bool
        Learn, jointly, a gate whose value is the confidence of a reply. Its loss is the expected error of the cascade
        plus ``price`` for every example handed on. Without it the confidence is the largest probability.
    price : float
        Error that one call of the large model is worth.
    penalty : float
        Weight of the squared coefficients, per example.
    n_rounds : int
        With ``aware``, times the kept examples are chosen anew.
    features : PromptFeatures, optional
        Describes texts.
    name : str
        Name of the model on its replies.

    References
    ----------
    Wang et al. 2024 (cascade-aware training, arXiv:2406.00060); Enomoto and Eda 2021 (learning to cascade);
    Kag and Fedorov 2023 (efficient edge inference by selective query).
    """

    def __init__(
        self,
        aware: bool = False,
        gate: bool = False,
        price: float = 0.1,
        penalty: float = 1e-4,
        n_rounds: int = 3,
        features: PromptFeatures | None = None,
        name: str = "head",
    ) -> None:
        self.aware = aware
        self.gate = gate
        self.price = price
        self.penalty = penalty
        self.n_rounds = n_rounds
        self.features = features
        self.name = name

    def fit(self, texts: Sequence[str], labels: Sequence[str], large: Sequence[str]) -> Self:
        """Learn from texts, their labels, and what the large model answers to them.

        Raises
        ------
        InputError
            When lengths differ or there is one label only.
        """
        if not len(texts) == len(labels) == len(large):
            raise InputError(
                f"{len(texts)} texts, {len(labels)} labels, {len(large)} answers: give one of each per example."
            )
        self.labels_ = tuple(sorted(set(labels)))
        if len(self.labels_) < 2:
            raise InputError(f"Every label is {self.labels_}: give at least two labels.")
        self.features_ = self.features or PromptFeatures()
        x = _with_constant(self.features_.fit_transform(texts))
        y = np.array([self.labels_.index(label) for label in labels])
        large_wrong = np.array([a != b for a, b in zip(large, labels, strict=True)], dtype=np.float64)
        keep = np.ones(y.size)
        parameters = np.zeros(x.shape[1] * (len(self.labels_) + 1))
        for _ in range(self.n_rounds if self.aware else 1):
            parameters = self._solve(parameters, x, y, large_wrong, keep)
            self._store(parameters, x.shape[1])
            if self.aware:
                right = self._probabilities(x).argmax(axis=1) == y
                keep = np.maximum(right, 1 - large_wrong)
        return self

    def _solve(
        self, start: FloatArray, x: FloatArray, y: NDArray[np.int64], large_wrong: FloatArray, keep: FloatArray
    ) -> FloatArray:
        from scipy.optimize import minimize

        solved = minimize(
            cascade_loss,
            start,
            args=(x, y, large_wrong, keep, self.price if self.gate else None, self.penalty),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 200},
        )
        return np.asarray(solved.x)

    def _store(self, parameters: FloatArray, n_features: int) -> None:
        k = len(self.labels_)
        self.weights_ = parameters[: n_features * k].reshape(n_features, k)
        self.gate_ = parameters[n_features * k :]

    def _probabilities(self, x: FloatArray) -> FloatArray:
        z = x @ self.weights_
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def predict(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """Label each text and give the confidence, (n,), in [0, 1]."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("CascadeHead was used before fit: call fit(texts, labels, large) first.")
        x = _with_constant(self.features_.transform(texts))
        p = self._probabilities(x)
        sure = 1 / (1 + np.exp(-(x @ self.gate_))) if self.gate else p.max(axis=1)
        return [self.labels_[i] for i in p.argmax(axis=1)], np.asarray(sure)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer each request's prompt by a label, with its confidence."""
        if not requests:
            return []
        labels, sure = self.predict([request.prompt for request in requests])
        return [Reply(label, self.name, confidence=float(c)) for label, c in zip(labels, sure, strict=True)]


def cascade_loss(
    parameters: FloatArray,
    x: FloatArray,
    y: NDArray[np.int64],
    large_wrong: FloatArray,
    keep: FloatArray,
    price: float | None,
    penalty: float,
) -> tuple[float, FloatArray]:
    """Cross-entropy of the kept examples, plus the expected error and price of a gated cascade; and the gradient.

    With gate g, chance p_y of the right label and price c the second part is g (1 - p_y) + (1 - g) (large_wrong + c).
    """
    n, d = x.shape
    k = (parameters.size - d) // d
    w, u = parameters[: d * k].reshape(d, k), parameters[d * k :]
    z = x @ w
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(n)
    right = p[rows, y]
    loss = float(-(keep * np.log(right + 1e-12)).sum() / n)
    by_z = p * keep[:, None]
    by_z[rows, y] -= keep
    by_u: Any = np.zeros(d)
    if price is not None:
        g = 1 / (1 + np.exp(-np.clip(x @ u, -30, 30)))
        handed_on = large_wrong + price
        loss += float((g * (1 - right) + (1 - g) * handed_on).sum() / n)
        by_u = x.T @ (g * (1 - g) * ((1 - right) - handed_on)) / n
        slope = (g * right)[:, None] * p
        slope[rows, y] -= g * right
        by_z += slope
    loss += penalty * float(parameters @ parameters)
    gradient = np.concatenate([(x.T @ by_z / n).ravel(), by_u]) + 2 * penalty * parameters
    return loss, gradient


def _with_constant(rows: FloatArray) -> FloatArray:
    return np.column_stack([rows * 5, np.ones(len(rows))])
