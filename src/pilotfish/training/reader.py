"""One reading of texts: a space, and heads in it whose probabilities are joined and calibrated out of fold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from pilotfish.features import TextSpace
from pilotfish.protocols import FeatureKind, FloatArray, Progress
from pilotfish.training.heads import KernelHead, MlpHead

__all__ = ["Calibration", "Reader", "geometric_mean"]

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
_N_FOLDS = 3
_FLOOR = np.float32(1e-4)
# The kernel's cost grows with the cube of its calls; beyond these the networks alone see the rest.
_MOST_KERNEL_CALLS = 10_000
# What is familiar shows as well beside some of the calls; reading all of them takes a third of a glance's time.
_MOST_REMEMBERED = 3_000
_UNFAMILIAR = 0.005


def geometric_mean(log_probas: Sequence[Array], weights: Sequence[float]) -> Array:
    """Log of the weighted geometric mean of probabilities (n, n_classes), normalised.

    Examples
    --------
    >>> even = np.log(np.array([[0.5, 0.5]], dtype=np.float32))
    >>> np.exp(geometric_mean([even, even], [0.4, 0.6]))
    array([[0.5, 0.5]], dtype=float32)
    """
    parts = zip(log_probas, weights, strict=True)
    total = np.asarray(sum(np.float32(weight) * np.log(np.exp(part) + _FLOOR) for part, weight in parts))
    return np.asarray(total - np.log(np.exp(total).sum(axis=1, keepdims=True)))


class Calibration:
    """From the probability of the likeliest class to the probability of a hit; ranks are kept.

    Log-odds = rise log p - fall log(1 - p) + offset, fitted by likelihood, both slopes at least 0.

    References
    ----------
    Kull et al. 2017, Beta calibration, AISTATS, eq. 4.

    Examples
    --------
    >>> p = np.repeat([0.6, 0.9], 500)
    >>> hits = np.concatenate([np.arange(500) < 150, np.arange(500) < 450])
    >>> Calibration().fit(p, hits).predict(np.array([0.6, 0.9])).round(1)
    array([0.3, 0.9])
    """

    def fit(self, top: FloatArray, hits: FloatArray) -> Self:
        """Learn from probabilities (n,) and hits (n,), which may be shares."""
        top, hits = np.asarray(top, dtype=np.float64), np.asarray(hits, dtype=np.float64)
        identity = np.array([1.0, 1.0, 0.0])

        def loss(slopes: FloatArray) -> float:
            q = np.clip(_curve(top, slopes), 1e-9, 1 - 1e-9)
            # A slight pull towards the identity keeps the fit finite where every call is a hit.
            pull = 0.1 * ((slopes - identity) ** 2).sum() / max(top.size, 1)
            return float(-(hits * np.log(q) + (1 - hits) * np.log1p(-q)).mean() + pull)

        if top.size:
            bounds = [(1e-3, 50), (1e-3, 50), (-50, 50)]
            self.slopes_ = np.asarray(minimize(loss, identity, method="L-BFGS-B", bounds=bounds).x)
        else:
            self.slopes_ = identity
        return self

    def predict(self, top: FloatArray) -> FloatArray:
        """Probabilities of a hit (n,)."""
        return _curve(np.asarray(top, dtype=np.float64), self.slopes_)


def _curve(top: FloatArray, slopes: FloatArray) -> FloatArray:
    p = np.clip(top, 1e-9, 1 - 1e-9)
    return np.asarray(1 / (1 + np.exp(-(slopes[0] * np.log(p) - slopes[1] * np.log1p(-p) + slopes[2]))))


class Reader:
    """Kernel ridge regression and small networks in one space of texts.

    Parameters
    ----------
    features : {"encoder", "large", "language", "static", "ngrams"}
        See :class:`~pilotfish.features.TextSpace`.
    precision : {"int8", "fp32"}
        Of the sentence encoder.
    n_axes : int
        Axes of the space.
    n_networks : int
        Networks beside the kernel.
    n_hidden : int
        Hidden units of each.
    kernel_weight : float
        The kernel's part in the joined probabilities, in [0, 1]. At 0 it only tells what is familiar, which saves its
        equations, whose cost grows with the cube of the calls; there must be a network then.
    seed : int
        Of folds and networks.
    instruction : str
        What a language model among the features is told to do with the texts.

    Attributes
    ----------
    held_out_ : ndarray (n, n_classes)
        After ``fit``: log-probabilities of each call by heads that did not see it.
    gate_ : float
        Least cosine to a call learned from for a text to count as familiar.

    Examples
    --------
    >>> texts = ["cancel my transfer", "stop the transfer", "what is the exchange rate", "which exchange rate"] * 10
    >>> reader = Reader("ngrams")
    >>> points = reader.place(texts)
    >>> reader = reader.fit(points, np.eye(2, dtype=np.float32)[[0, 0, 1, 1] * 10])
    >>> reader.read(["the exchange rate"])[0].argmax(axis=1)
    array([1])
    """

    def __init__(
        self,
        features: FeatureKind = "encoder",
        precision: Literal["int8", "fp32"] = "int8",
        n_axes: int = 512,
        n_networks: int = 2,
        n_hidden: int = 384,
        kernel_weight: float = 0.4,
        seed: int = 0,
        instruction: str = "",
    ) -> None:
        self.features = features
        self.precision = precision
        self.n_axes = n_axes
        self.n_networks = n_networks
        self.n_hidden = n_hidden
        self.kernel_weight = kernel_weight
        self.seed = seed
        self.instruction = instruction

    def place(self, texts: Sequence[str], progress: Progress | None = None) -> Array:
        """Make the space of texts and return them as its points (n, n_axes), and tell how far a language model is."""
        self.space_ = TextSpace(self.features, self.precision, self.n_axes, self.instruction)
        return self.space_.fit_transform(texts, progress)

    def fit(self, X: Array, targets: Array) -> Self:
        """Learn from points that ``place`` gave and soft labels (n, n_classes)."""
        n, n_folds = len(X), min(_N_FOLDS, len(X))
        fold_of = np.random.default_rng(self.seed).permutation(n) % n_folds
        folds = [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(n_folds)]
        parts = [(np.arange(n), np.arange(0)), *folds]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            kernels = [pool.submit(self._fit_kernel, X, targets, *part) for part in parts]
            networks = [
                [pool.submit(self._fit_network, X, targets, *part, k) for k in range(self.n_networks)] for part in parts
            ]
            self.kernel_ = kernels[0].result()[0]
            self.networks_ = [made.result()[0] for made in networks[0]]
            scores, nearest = np.zeros_like(targets), np.zeros(n, dtype=np.float32)
            by_network = [np.zeros_like(targets) for _ in range(self.n_networks)]
            for f, (_, rows) in enumerate(folds, start=1):
                _, scores[rows], nearest[rows] = kernels[f].result()
                for k in range(self.n_networks):
                    by_network[k][rows] = networks[f][k].result()[1]
        if self.kernel_weight:
            self.kernel_.tune(scores, targets)
        self.held_out_ = self._joined(scores, by_network)
        self.gate_ = float(np.quantile(nearest, _UNFAMILIAR))
        return self

    def read(self, texts: Sequence[str]) -> tuple[Array, NDArray[np.bool_]]:
        """Log-probabilities (n, n_classes) of texts, and whether each looks like those learned from (n,)."""
        X = self.space_.transform(texts)
        if self.kernel_weight:
            scores, nearest = self.kernel_.scores(X)
        else:
            scores, nearest = X[:, :0], self.kernel_.nearest(X)
        return self._joined(scores, [network.log_proba(X) for network in self.networks_]), nearest >= self.gate_

    def get_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The fitted reader as plain data and arrays."""
        space, arrays = self.space_.get_state()
        arrays = {f"space_{name}": value for name, value in arrays.items()}
        arrays["kernel_points"] = self.kernel_.points_
        if self.kernel_weight:
            arrays["kernel_weights"] = self.kernel_.weights_
        for i, network in enumerate(self.networks_):
            arrays |= {f"network{i}_{name}": value for name, value in network.get_arrays().items()}
        names = ("features", "precision", "n_axes", "n_networks", "n_hidden", "kernel_weight", "seed", "instruction")
        plain = {
            "params": {name: getattr(self, name) for name in names},
            "space": space,
            "kernel": {name: getattr(self.kernel_, name) for name in ("n_axes", "gamma", "ridge", "temperature")},
            "gate": self.gate_,
        }
        return plain, arrays

    @classmethod
    def from_state(cls, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Bring a fitted reader back; what only fitting needs is gone."""
        made = cls(**plain["params"])
        made.space_ = TextSpace.from_state(plain["space"], under(arrays, "space_"))
        made.kernel_ = KernelHead(**plain["kernel"])
        made.kernel_.points_ = arrays["kernel_points"]
        if made.kernel_weight:
            made.kernel_.weights_ = arrays["kernel_weights"]
        made.networks_ = [MlpHead().set_arrays(under(arrays, f"network{i}_")) for i in range(made.n_networks)]
        made.gate_ = float(plain["gate"])
        return made

    def _joined(self, scores: Array, networks: Sequence[Array]) -> Array:
        if not self.kernel_weight:
            return geometric_mean(networks, [1 / len(networks)] * len(networks))
        each = (1 - self.kernel_weight) / max(self.n_networks, 1)
        weights = [self.kernel_weight if networks else 1.0, *[each] * len(networks)]
        return geometric_mean([self.kernel_.log_proba_of(scores), *networks], weights)

    def _fit_kernel(self, X: Array, targets: Array, fit: Rows, test: Rows) -> tuple[KernelHead, Array, Array]:
        most = _MOST_KERNEL_CALLS if self.kernel_weight else _MOST_REMEMBERED
        if fit.size > most:
            fit = np.sort(np.random.default_rng(self.seed).choice(fit, most, replace=False))
        head = KernelHead()
        if not self.kernel_weight:
            return head.remember(X[fit]), np.zeros_like(targets[test]), head.nearest(X[test])
        head.fit(X[fit], targets[fit])
        return head, *head.scores(X[test])

    def _fit_network(self, X: Array, targets: Array, fit: Rows, test: Rows, k: int) -> tuple[MlpHead, Array]:
        head = MlpHead(self.n_hidden, seed=self.seed * self.n_networks + k).fit(X[fit], targets[fit])
        return head, head.log_proba(X[test]) if test.size else targets[:0]


def under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Arrays whose name starts with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
