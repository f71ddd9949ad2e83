"""Heads: from points of a small space to class probabilities. Both learn from soft labels and need only numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import minimize_scalar

from pilotfish.errors import InputError
from pilotfish.vectors import product, unit_rows

__all__ = ["KernelHead", "LeaveOneOut", "MlpHead", "log_softmax"]

Array = NDArray[np.float32]


def log_softmax(scores: Array) -> Array:
    """Log-probabilities of scores (n, n_classes), row by row.

    Examples
    --------
    >>> np.exp(log_softmax(np.array([[0.0, 0.0]], dtype=np.float32)))
    array([[0.5, 0.5]], dtype=float32)
    """
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


class KernelHead:
    """Kernel ridge regression onto soft labels, its scores sharpened into probabilities.

    The kernel is ``exp(gamma * (cosine - 1))``.

    Parameters
    ----------
    n_axes : int
        Leading axes of the space that the kernel looks at.
    gamma : float
        Sharpness of the kernel.
    ridge : float
        Strength of the smoothing, above 0.
    temperature : float
        Multiplies the scores before the softmax; ``tune`` sets it from data.

    Attributes
    ----------
    points_ : ndarray (n, n_axes)
        The points learned from, of unit length.
    weights_ : ndarray (n, n_classes)
        Their weights.

    References
    ----------
    Rasmussen and Williams 2006, Gaussian processes for machine learning, eq. 2.25.

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1]], dtype=np.float32)
    >>> head = KernelHead(n_axes=2).fit(X, np.eye(2, dtype=np.float32))
    >>> head.log_proba(X).argmax(axis=1)
    array([0, 1])
    """

    def __init__(self, n_axes: int = 128, gamma: float = 1.5, ridge: float = 0.45, temperature: float = 13.0) -> None:
        self.n_axes = n_axes
        self.gamma = gamma
        self.ridge = ridge
        self.temperature = temperature

    def fit(self, X: Array, targets: Array) -> Self:
        """Learn from points (n, n_axes or more) and soft labels (n, n_classes)."""
        if len(X) != len(targets):
            raise InputError(f"X has {len(X)} points and targets {len(targets)} rows: give one row per point.")
        self.remember(X)
        gram = self._kernel(self.points_ @ self.points_.T)
        gram[np.diag_indices(len(gram))] += self.ridge
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        centred = (targets - np.float32(1 / targets.shape[1])).astype(np.float32)
        self.weights_ = np.asarray(cho_solve(factor, centred, check_finite=False), dtype=np.float32)
        return self

    def remember(self, X: Array) -> Self:
        """Keep points (n, n_axes or more) to be compared with, and learn no weights."""
        self.points_ = unit_rows(X[:, : self.n_axes])
        return self

    def nearest(self, X: Array) -> Array:
        """Cosine of each point to its nearest neighbour learned from (n,)."""
        return np.asarray(self._cosines(X).max(axis=1))

    def scores(self, X: Array) -> tuple[Array, Array]:
        """Scores (n, n_classes), and the cosine of each point to its nearest neighbour learned from (n,)."""
        cosines = self._cosines(X)
        nearest = cosines.max(axis=1)
        return product(self._kernel(cosines), self.weights_), nearest

    def log_proba(self, X: Array) -> Array:
        """Log-probabilities (n, n_classes)."""
        return self.log_proba_of(self.scores(X)[0])

    def log_proba_of(self, scores: Array) -> Array:
        """Log-probabilities (n, n_classes) of scores (n, n_classes)."""
        return log_softmax(scores * np.float32(self.temperature))

    def tune(self, scores: Array, targets: Array) -> Self:
        """Set the temperature by the likelihood of targets (n, n_classes) under held-out scores (n, n_classes)."""

        def loss(temperature: float) -> float:
            return float(-(targets * log_softmax(scores * np.float32(temperature))).sum(axis=1).mean())

        self.temperature = float(minimize_scalar(loss, bounds=(1.0, 60.0), method="bounded").x)
        return self

    def _cosines(self, X: Array) -> Array:
        return product(unit_rows(X[:, : self.n_axes]), self.points_.T)

    def _kernel(self, cosines: Array) -> Array:
        cosines -= 1
        cosines *= np.float32(self.gamma)
        return np.exp(cosines, out=cosines)


class LeaveOneOut:
    """Predictions of a :class:`KernelHead` for every point it learns from, as if it had not seen that point's label.

    Parameters
    ----------
    head : KernelHead
        Its settings are used; it is not fitted.
    X : ndarray (n, n_axes or more)
        The points.

    References
    ----------
    Rasmussen and Williams 2006, eq. 5.12: mu_i = y_i - [K^-1 y]_i / [K^-1]_ii.

    Examples
    --------
    >>> X = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    >>> targets = np.repeat(np.eye(2, dtype=np.float32), 2, axis=0)
    >>> np.exp(LeaveOneOut(KernelHead(n_axes=2), X).log_proba(targets)).argmax(axis=1)
    array([0, 0, 1, 1])
    """

    def __init__(self, head: KernelHead, X: Array) -> None:
        self.head = head
        points = unit_rows(X[:, : head.n_axes])
        gram = head._kernel(points @ points.T)
        gram[np.diag_indices(len(gram))] += head.ridge
        lower, _ = lapack.spotrf(gram, lower=1, overwrite_a=1, clean=1)
        inverse, _ = lapack.spotri(lower, lower=1, overwrite_c=1)
        self.inverse_ = np.tril(inverse) + np.tril(inverse, -1).T

    def log_proba(self, targets: Array) -> Array:
        """Log-probabilities (n, n_classes) for soft labels (n, n_classes)."""
        centred = (targets - np.float32(1 / targets.shape[1])).astype(np.float32)
        left_out = centred - (self.inverse_ @ centred) / np.diag(self.inverse_)[:, None]
        return log_softmax(left_out * np.float32(self.head.temperature))


class MlpHead:
    """A network with one hidden layer and strong dropout, trained by Adam on soft labels.

    Parameters
    ----------
    n_hidden : int
        Hidden units.
    n_epochs : int
        Passes over the data; more are made of small data, so that at least ``least_steps`` steps are taken.
    least_steps : int
        Fewest steps.
    learning_rate, weight_decay : float
        Of Adam with decoupled decay; the rate rises over a fifth of the steps and falls to 0.
    dropout : tuple of float
        Shares of inputs and of hidden units left out.
    seed : int
        Of the start, the order and the dropout.

    Attributes
    ----------
    weights_ : list of ndarray
        Matrix and bias of each layer.

    References
    ----------
    Srivastava et al. 2014 (dropout); Loshchilov and Hutter 2019 (arXiv:1711.05101).

    Examples
    --------
    >>> X = np.array([[1, 0], [0, 1]] * 20, dtype=np.float32)
    >>> head = MlpHead(n_hidden=16, least_steps=100).fit(X, np.tile(np.eye(2, dtype=np.float32), (20, 1)))
    >>> head.log_proba(X[:2]).argmax(axis=1)
    array([0, 1])
    """

    def __init__(
        self,
        n_hidden: int = 384,
        n_epochs: int = 10,
        least_steps: int = 600,
        learning_rate: float = 1.5e-3,
        weight_decay: float = 0.1,
        dropout: tuple[float, float] = (0.2, 0.5),
        seed: int = 0,
    ) -> None:
        self.n_hidden = n_hidden
        self.n_epochs = n_epochs
        self.least_steps = least_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.seed = seed

    def fit(self, X: Array, targets: Array) -> Self:
        """Learn from points (n, d) and soft labels (n, n_classes)."""
        if len(X) != len(targets):
            raise InputError(f"X has {len(X)} points and targets {len(targets)} rows: give one row per point.")
        rng = np.random.default_rng(self.seed)
        n, d = X.shape
        n_batch = int(np.clip(n // 16, 1, 128))
        n_batches = -(-n // n_batch)
        n_steps = max(self.n_epochs * n_batches, self.least_steps)
        # Unit variance per axis on average: the learning rate is set for that.
        self.scale_ = np.float32(1 / max(float(X.std()), 1e-9))
        first = rng.standard_normal((d, self.n_hidden), dtype=np.float32) / np.float32(np.sqrt(d))
        self.weights_ = [
            first,
            np.zeros(self.n_hidden, np.float32),
            np.zeros((self.n_hidden, targets.shape[1]), np.float32),
            np.zeros(targets.shape[1], np.float32),
        ]
        adam = _Adam(self.weights_, self.weight_decay)
        order = np.empty(0, dtype=np.int64)
        for step in range(n_steps):
            if order.size == 0:
                order = rng.permutation(n)
            rows, order = order[:n_batch], order[n_batch:]
            done = step / n_steps
            rate = self.learning_rate * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)
            adam.step(self._gradients(X[rows] * self.scale_, targets[rows], rng), rate)
        return self

    def log_proba(self, X: Array) -> Array:
        """Log-probabilities (n, n_classes)."""
        w1, b1, w2, b2 = self.weights_
        hidden = np.maximum(product(X * self.scale_, w1) + b1, 0)
        return log_softmax(product(hidden, w2) + b2)

    def _gradients(self, x: Array, targets: Array, rng: np.random.Generator) -> list[Array]:
        w1, b1, w2, b2 = self.weights_
        x = x * _kept(x.shape, self.dropout[0], rng)
        before = x @ w1 + b1
        kept = _kept(before.shape, self.dropout[1], rng)
        hidden = np.maximum(before, 0) * kept
        error = (np.exp(log_softmax(hidden @ w2 + b2)) - targets) / np.float32(len(x))
        back = (error @ w2.T) * kept * (before > 0)
        return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """The fitted network as arrays."""
        return {f"w{i}": w for i, w in enumerate(self.weights_)} | {"scale": np.asarray(self.scale_)}

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Bring a fitted network back."""
        self.weights_ = [arrays[f"w{i}"] for i in range(4)]
        self.scale_ = np.float32(arrays["scale"])
        return self


def _kept(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> Array:
    # A byte each is random enough, and ten times sooner drawn than a float.
    n_dropped = round(256 * share)
    drawn = np.frombuffer(rng.bytes(shape[0] * shape[1]), dtype=np.uint8).reshape(shape)
    return (drawn >= n_dropped) * np.float32(256 / (256 - n_dropped))


class _Adam:
    """Adam with decoupled weight decay on the matrices, in place."""

    def __init__(self, weights: list[Array], decay: float) -> None:
        self.weights = weights
        self.decay = decay
        self.first = [np.zeros_like(w) for w in weights]
        self.second = [np.zeros_like(w) for w in weights]
        self.spare = [np.zeros_like(w) for w in weights]
        self.n = 0

    def step(self, gradients: list[Array], rate: float) -> None:
        self.n += 1
        sized = np.float32(rate / (1 - 0.9**self.n))
        spread = np.float32(1 / (1 - 0.999**self.n))
        for w, g, m, v, spare in zip(self.weights, gradients, self.first, self.second, self.spare, strict=True):
            m *= np.float32(0.9)
            m += np.multiply(g, np.float32(0.1), out=spare)
            v *= np.float32(0.999)
            np.multiply(g, g, out=spare)
            spare *= np.float32(0.001)
            v += spare
            np.multiply(v, spread, out=spare)
            np.sqrt(spare, out=spare)
            spare += np.float32(1e-8)
            np.divide(m, spare, out=spare)
            spare *= sized
            if w.ndim == 2:
                w *= np.float32(1 - rate * self.decay)
            w -= spare
