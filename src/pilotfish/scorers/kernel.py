"""Kernel regression of every model's quality on the prompt, and on the group that the prompt is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray
from pilotfish.scorers.groups import GroupGuess
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import checked_scores

__all__ = ["KernelQuality"]

_Points = NDArray[Any]
# Variance of the groups' levels to that of the rest: of 0.15 to 1 the best on questions that are in no test split.
_LEVELS = 0.3


class KernelQuality:
    """Regress every model's score on the prompt with a kernel, then again on what was predicted for all the models.

    The first stage is kernel ridge regression on :class:`PromptFeatures` with a Gaussian kernel on at most
    ``n_landmarks`` prompts (Nystroem). Its penalty is the one of least leave-one-out error. The second stage regresses
    the scores on the leave-one-out predictions of the first: where all models are expected to fail, or all to succeed,
    a dear one gains nothing, and that shape is learned from all prompts at once.

    Where prompts come with the group they are of (a subject, an application), each group has a level of its own beside
    the kernel, learned with it. A new prompt's group is guessed from its features, and the levels count by the
    probabilities of the guess.

    Parameters
    ----------
    features : PromptFeatures, optional
        Describes prompts; the default reads form and topics.
    gamma : float
        Width of the kernel: exp(-gamma * squared distance).
    n_landmarks : int
        Most prompts the kernel is spanned by.
    second_stage : bool
        Whether to regress on the predictions.
    seed : int
        Seed of the choice of landmarks.

    Examples
    --------
    >>> prompts = [f"add {i} and {i}" for i in range(20)] + [f"who wrote book {i}" for i in range(20)]
    >>> scores = np.array([[0.0, 1.0]] * 20 + [[1.0, 1.0]] * 20)
    >>> scorer = KernelQuality().fit(prompts, scores, ["small", "large"])
    >>> scorer.predict(["add 7 and 8", "who wrote it"]).round()
    array([[0., 1.],
           [1., 1.]])

    References
    ----------
    Saunders et al. 1998 (kernel ridge regression); Williams and Seeger 2001 (Nystroem); Wolpert 1992 (stacking).
    """

    def __init__(
        self,
        features: PromptFeatures | None = None,
        gamma: float = 1.0,
        n_landmarks: int = 1500,
        second_stage: bool = True,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.gamma = gamma
        self.n_landmarks = n_landmarks
        self.second_stage = second_stage
        self.seed = seed

    def fit(
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], groups: Sequence[str] = ()
    ) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked, and from the name of each prompt's group.

        Prompts of which no model was asked sharpen the features and the guess of the group.
        """
        y = checked_scores(prompts, scores, models)
        if len(groups) not in (0, len(prompts)):
            raise InputError(f"groups has {len(groups)} names for {len(prompts)} prompts: give one each, or none.")
        asked = np.isfinite(y).any(axis=1)
        order, n = np.argsort(~asked, kind="stable"), int(asked.sum())
        known, named, y = [prompts[i] for i in order], [groups[i] if groups else "" for i in order], y[asked]
        self.models_ = tuple(models)
        self.features_ = self.features or PromptFeatures()
        x = self.features_.fit_transform(known[:n], known[n:])
        members = self._fit_groups(x, known[n:], named)
        rng = np.random.default_rng(self.seed)
        chosen = np.sort(rng.permutation(n)[: self.n_landmarks])
        self._span(x[chosen].astype(np.float32))
        self.mean_ = np.nanmean(y, axis=0)
        self.range_ = np.stack([np.nanmin(y, axis=0), np.nanmax(y, axis=0)])
        levels = _LEVELS * members[chosen].T
        kernel, gram = self._kernel(x) + members @ levels, self._kernel(self.landmarks_) + members[chosen] @ levels
        self.weights_, held_out = _ridge(kernel, gram, y - self.mean_)
        self.levels_ = levels @ self.weights_
        self.centre_, self.whiten_ = np.zeros(len(models)), np.zeros((len(models), 0))
        self.anchors_, self.bend_ = np.zeros((0, 0), dtype=np.float32), np.zeros((0, len(models)))
        if self.second_stage and len(models) > 1:
            self._fit_second(held_out, y - self.mean_, rng)
        return self

    def _fit_groups(self, x: FloatArray, others: Sequence[str], groups: Sequence[str]) -> FloatArray:
        """Learn to guess groups from all prompts, and return which group each row of x is of, (n, k)."""
        everything = np.vstack([x, self.features_.transform(others)]) if others and any(groups) else x
        self.groups_ = GroupGuess().fit(everything, groups[: len(everything)])
        return self.groups_.members(groups[: len(x)])

    def _fit_second(self, held_out: FloatArray, y: FloatArray, rng: np.random.Generator) -> None:
        self.centre_ = held_out.mean(axis=0)
        variances, axes = np.linalg.eigh(np.cov(held_out.T) + 1e-9 * np.eye(held_out.shape[1]))
        kept = np.argsort(-variances)[:4]
        self.whiten_ = axes[:, kept] / np.sqrt(variances[kept])
        z = self._bent(held_out)
        self.anchors_ = z[np.sort(rng.permutation(z.shape[0])[:500])].astype(np.float32)
        self.bend_, _ = _ridge(_second(z, self.anchors_), _second(self.anchors_, self.anchors_), y)

    def _bent(self, first: FloatArray) -> FloatArray:
        return np.asarray(np.clip((first - self.centre_) @ self.whiten_, -4, 4))

    def _span(self, landmarks: NDArray[np.float32]) -> None:
        # Squared once: to do so on every call would take most of a prediction's time.
        self.landmarks_ = landmarks
        self.squares_ = (landmarks.astype(np.float64) ** 2).sum(axis=1)

    def _kernel(self, x: _Points) -> FloatArray:
        return _gauss(x, self.landmarks_, self.gamma, self.squares_)

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m), higher is better, in the unit of the scores learned from."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("KernelQuality was used before fit: call fit(prompts, scores, models) first.")
        x = self.features_.transform(prompts)
        first = self._kernel(x) @ self.weights_ + self.groups_.predict(x) @ self.levels_
        if self.bend_.shape[0]:
            first = _second(self._bent(first), self.anchors_) @ self.bend_
        return np.asarray(np.clip(self.mean_ + first, *self.range_))

    def likeliest_groups(self, prompts: Sequence[str]) -> list[tuple[str, float]]:
        """The group each prompt is likeliest of and how likely that is; empty where none were learned."""
        names = self.groups_.names_
        if not names:
            return []
        guesses = self.groups_.predict(self.features_.transform(prompts))
        return [(names[int(row.argmax())], float(row.max())) for row in guesses]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        own = {
            name: getattr(self, f"{name}_")
            for name in ("mean", "range", "weights", "levels", "centre", "whiten", "anchors", "bend")
        }
        own["landmarks"] = self.landmarks_
        own["gamma"], own["models"] = np.array(self.gamma), np.array(self.models_)
        parts = {"features": self.features_.to_arrays(), "groups": self.groups_.to_arrays()}
        return own | {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], features: PromptFeatures | None = None) -> KernelQuality:
        """Read what :meth:`to_arrays` wrote; ``features`` brings the embedders, where there were any."""
        made = cls(features, gamma=float(arrays["gamma"]))
        made._span(arrays["landmarks"])
        for name in ("mean", "range", "weights", "centre", "whiten", "anchors", "bend"):
            setattr(made, f"{name}_", arrays[name])
        made.levels_ = arrays.get("levels", np.zeros((0, len(made.mean_))))
        made.models_ = tuple(str(m) for m in arrays["models"])
        embedders = features.embedders if features else ()
        made.features_ = PromptFeatures.from_arrays(_within("features.", arrays), embedders)
        made.groups_ = GroupGuess.from_arrays(_within("groups.", arrays))
        return made


def _within(start: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


_PENALTIES = np.geomspace(0.3, 300, 16)


def _ridge(k: FloatArray, gram: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Solve kernel ridge in the span of the landmarks; return weights on them and leave-one-out predictions."""
    from scipy.linalg import cholesky, solve_triangular

    root = cholesky(gram + 1e-4 * np.eye(gram.shape[0]), lower=True)
    phi = solve_triangular(root, k.T, lower=True).T
    weights, held_out = np.zeros((gram.shape[0], y.shape[1])), np.zeros_like(y)
    asked = np.isfinite(y)
    for pattern in np.unique(asked, axis=1).T:
        columns = np.flatnonzero((asked == pattern[:, None]).all(axis=0))
        rows = np.flatnonzero(pattern)
        values, axes = np.linalg.eigh(phi[rows].T @ phi[rows])
        turned = phi @ axes
        projected = turned[rows].T @ y[np.ix_(rows, columns)]
        squares = turned[rows] ** 2
        best = (np.inf, 1.0)
        for penalty in _PENALTIES:
            shrunk = 1 / (np.maximum(values, 0) + penalty)
            residual = y[np.ix_(rows, columns)] - turned[rows] @ (shrunk[:, None] * projected)
            error = float(((residual / (1 - squares @ shrunk)[:, None]) ** 2).mean())
            best = min(best, (error, float(penalty)))
        shrunk = 1 / (np.maximum(values, 0) + best[1])
        solution = shrunk[:, None] * projected
        fitted = turned @ solution
        held_out[:, columns] = fitted
        y_rows = y[np.ix_(rows, columns)]
        held_out[np.ix_(rows, columns)] = y_rows - (y_rows - fitted[rows]) / (1 - squares @ shrunk)[:, None]
        weights[:, columns] = solve_triangular(root, axes @ solution, lower=True, trans="T")
    return weights, held_out


def _gauss(x: _Points, others: _Points, gamma: float, squares: FloatArray | None = None) -> FloatArray:
    """Gaussian kernel of points with others, multiplied in the precision of the others."""
    own = (others.astype(np.float64) ** 2).sum(axis=1) if squares is None else squares
    distances = (x**2).sum(axis=1)[:, None] + own - 2 * (x.astype(others.dtype) @ others.T)
    return np.asarray(np.exp(-gamma * np.maximum(distances, 0)))


def _second(z: FloatArray | NDArray[np.float32], anchors: NDArray[np.float32]) -> FloatArray:
    kernel = _gauss(z, anchors.astype(np.float64), 0.1)
    return kernel + 0.3 * np.asarray(z @ anchors.T, dtype=np.float64)
