"""Predicted quality of every model on a prompt, before anything is generated: what routers decide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.vectors import in_parts, unit_rows

__all__ = [
    "Column",
    "Gap",
    "KernelQuality",
    "MeanQuality",
    "NeighbourQuality",
    "PenalisedQuality",
    "QualityScorer",
    "RetargetedQuality",
    "TermQuality",
    "checked_scores",
]

_Points = NDArray[Any]


class QualityScorer(Protocol):
    """Anything that predicts how good each model's answer to a prompt would be.

    One whose predictions only tell models from each other, in no unit of the scores, says so by ``relative = True``.
    """

    models_: tuple[str, ...]

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked."""
        ...

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m), higher is better, in the unit of the scores learned from."""
        ...


@dataclass(frozen=True, slots=True)
class Column:
    """One model's column of a quality scorer, as a scorer of prompts.

    Examples
    --------
    >>> scores = np.array([[0.0, 1], [1, 1]])
    >>> scorer = NeighbourQuality(k=1).fit(["add 1 and 2", "who is it"], scores, ["small", "large"])
    >>> Column(scorer, "small").score(["who is it?"])
    array([1.])
    """

    scorer: QualityScorer
    model: str

    def score(self, items: Sequence[str]) -> FloatArray:
        """Predicted score of the model per prompt, (n,)."""
        return self.scorer.predict(items)[:, self.scorer.models_.index(self.model)]


@dataclass(frozen=True, slots=True)
class Gap:
    """How much better the weak model is expected to be than the strong one, as a scorer of prompts, in score units."""

    scorer: QualityScorer
    weak: str
    strong: str

    def score(self, items: Sequence[str]) -> FloatArray:
        """Predicted score of ``weak`` minus that of ``strong`` per prompt, (n,)."""
        names = self.scorer.models_
        predicted = self.scorer.predict(items)
        return np.asarray(predicted[:, names.index(self.weak)] - predicted[:, names.index(self.strong)])


def checked_scores(prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> FloatArray:
    """Check what a quality scorer is fitted on.

    Raises
    ------
    InputError
        When shapes disagree, there is no model, or a model has fewer than 2 scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(prompts), len(models)) or not models:
        raise InputError(
            f"scores have shape {scores.shape} for {len(prompts)} prompts and {len(models)} models: give one per pair."
        )
    if np.isinf(scores).any():
        raise InputError("scores hold infinity: give finite numbers, or NaN for a model that was not asked.")
    for model, n in zip(models, np.isfinite(scores).sum(axis=0), strict=True):
        if n < 2:
            raise InputError(f"Model {model!r} has {n} scores: give at least 2 scored answers of every model.")
    return scores


class KernelQuality:
    """Regress every model's score on the prompt with a kernel, then again on what was predicted for all the models.

    The first stage is kernel ridge regression on :class:`PromptFeatures` with a Gaussian kernel on at most
    ``n_landmarks`` prompts (Nystroem). Its penalty is the one of least leave-one-out error. The second stage regresses
    the scores on the leave-one-out predictions of the first: where all models are expected to fail, or all to succeed,
    a dear one gains nothing, and that shape is learned from all prompts at once.

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
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], unlabelled: Sequence[str] = ()
    ) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked; ``unlabelled`` prompts sharpen the features."""
        y = checked_scores(prompts, scores, models)
        self.models_ = tuple(models)
        self.features_ = self.features or PromptFeatures()
        x = self.features_.fit_transform(prompts, unlabelled)
        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(len(prompts))[: self.n_landmarks]
        self._span(x[np.sort(chosen)].astype(np.float32))
        self.mean_ = np.nanmean(y, axis=0)
        self.range_ = np.stack([np.nanmin(y, axis=0), np.nanmax(y, axis=0)])
        self.weights_, held_out = _ridge(self._kernel(x), self._kernel(self.landmarks_), y - self.mean_)
        self.centre_, self.whiten_ = np.zeros(len(models)), np.zeros((len(models), 0))
        self.anchors_, self.bend_ = np.zeros((0, 0), dtype=np.float32), np.zeros((0, len(models)))
        if self.second_stage and len(models) > 1:
            self._fit_second(held_out, y - self.mean_, rng)
        return self

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
        first = self._kernel(self.features_.transform(prompts)) @ self.weights_
        if self.bend_.shape[0]:
            first = _second(self._bent(first), self.anchors_) @ self.bend_
        return np.asarray(np.clip(self.mean_ + first, *self.range_))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        own = {
            name: getattr(self, f"{name}_")
            for name in ("mean", "range", "weights", "centre", "whiten", "anchors", "bend")
        }
        own["landmarks"] = self.landmarks_
        own["gamma"], own["models"] = np.array(self.gamma), np.array(self.models_)
        return own | {f"features.{name}": array for name, array in self.features_.to_arrays().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], features: PromptFeatures | None = None) -> KernelQuality:
        """Read what :meth:`to_arrays` wrote; ``features`` brings the embedders, where there were any."""
        made = cls(features, gamma=float(arrays["gamma"]))
        made._span(arrays["landmarks"])
        for name in ("mean", "range", "weights", "centre", "whiten", "anchors", "bend"):
            setattr(made, f"{name}_", arrays[name])
        made.models_ = tuple(str(m) for m in arrays["models"])
        parts = {name.removeprefix("features."): a for name, a in arrays.items() if name.startswith("features.")}
        made.features_ = PromptFeatures.from_arrays(parts, features.embedders if features else ())
        return made


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


class NeighbourQuality:
    """Mean score of the nearest solved prompts, by cosine of their features; the baseline every router must beat.

    Parameters
    ----------
    k : int
        Number of neighbours; of those, each model counts the ones it was asked.
    features : PromptFeatures, optional
        Describes prompts.
    by_similarity : bool
        Weigh neighbours by their cosine instead of equally.

    References
    ----------
    Hu et al. 2024 (arXiv:2403.12031), section 4; Lee et al. 2024 (OrchestraLLM, arXiv:2311.09758).
    """

    def __init__(self, k: int = 40, features: PromptFeatures | None = None, by_similarity: bool = False) -> None:
        self.k = k
        self.features = features
        self.by_similarity = by_similarity

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Remember the prompts and scores (n, m), NaN where a model was not asked."""
        if self.k < 1:
            raise InputError(f"k is {self.k}: give at least 1 neighbour.")
        self.scores_ = checked_scores(prompts, scores, models)
        self.models_ = tuple(models)
        self.features_ = self.features or PromptFeatures()
        self.rows_ = unit_rows(self.features_.fit_transform(prompts))
        self.mean_ = np.nanmean(self.scores_, axis=0)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m); a model none of whose neighbours were asked gets its mean."""
        if not hasattr(self, "rows_"):
            raise NotFittedError("NeighbourQuality was used before fit: call fit(prompts, scores, models) first.")
        return in_parts(self._predicted, prompts, len(self.models_))

    def _predicted(self, prompts: Sequence[str]) -> FloatArray:
        similar = unit_rows(self.features_.transform(prompts)) @ self.rows_.T
        k = min(self.k, similar.shape[1])
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        known = np.isfinite(self.scores_)[nearest]
        weights = np.ones(nearest.shape)
        if self.by_similarity:
            weights = np.maximum(np.take_along_axis(similar, nearest, axis=1), 1e-9)
        mass = (weights[:, :, None] * known).sum(axis=1)
        total = (weights[:, :, None] * np.nan_to_num(self.scores_[nearest])).sum(axis=1)
        return np.asarray(np.where(mass > 0, total / np.maximum(mass, 1e-12), self.mean_))


class TermQuality:
    """Ridge regression of every model's score on the words and word pairs of the prompt, weighted by TF-IDF.

    Parameters
    ----------
    penalty : float
        Of the squared weights, above 0.

    Examples
    --------
    >>> scores = np.array([[0.0, 1], [0, 1], [1, 0], [1, 0]])
    >>> prompts = ["add one", "add two", "who said it", "who wrote it"]
    >>> TermQuality(0.1).fit(prompts, scores, ["small", "large"]).predict(["add three"]).argmax(axis=1)
    array([1])

    References
    ----------
    Hoerl and Kennard 1970 (ridge regression); Sparck Jones 1972 (weights of terms).
    """

    def __init__(self, penalty: float = 10.0) -> None:
        self.penalty = penalty

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        y = checked_scores(prompts, scores, models)
        if not self.penalty > 0:
            raise InputError(f"penalty is {self.penalty:g}: give a number above 0.")
        self.models_ = tuple(models)
        self.terms_ = TfidfVectorizer(sublinear_tf=True, min_df=min(2, len(prompts) // 2), ngram_range=(1, 2))
        x = self.terms_.fit_transform(prompts)
        known = np.isfinite(y)
        self.lines_ = [Ridge(self.penalty).fit(x[rows], y[rows, j]) for j, rows in enumerate(known.T)]
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m), higher is better, in the unit of the scores learned from."""
        if not hasattr(self, "lines_"):
            raise NotFittedError("TermQuality was used before fit: call fit(prompts, scores, models) first.")
        x = self.terms_.transform(prompts)
        return np.column_stack([line.predict(x) for line in self.lines_])


class MeanQuality:
    """The mean of what several quality scorers predict: their mistakes differ, and partly cancel.

    Parameters
    ----------
    scorers : sequence of QualityScorer
        At least one; fitted by ``fit``.

    Examples
    --------
    >>> scores = np.array([[0.0, 1.0], [1.0, 1.0]])
    >>> both = MeanQuality([NeighbourQuality(k=1), NeighbourQuality(k=2)])
    >>> both.fit(["add 1 and 2", "who is it"], scores, ["small", "large"]).predict(["who is it?"])
    array([[0.75, 1.  ]])

    References
    ----------
    Perrone and Cooper 1993, When networks disagree.
    """

    def __init__(self, scorers: Sequence[QualityScorer]) -> None:
        self.scorers = tuple(scorers)

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Fit every scorer on scores (n, m), NaN where a model was not asked."""
        if not self.scorers:
            raise InputError("scorers is empty: give at least one quality scorer.")
        for scorer in self.scorers:
            scorer.fit(prompts, scores, models)
        self.models_ = tuple(models)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores (n, m), higher is better, in the unit of the scores learned from."""
        if not hasattr(self, "models_"):
            raise NotFittedError("MeanQuality was used before fit: call fit(prompts, scores, models) first.")
        return np.asarray(np.mean([scorer.predict(prompts) for scorer in self.scorers], axis=0))


class PenalisedQuality:
    """Predicted scores less what is put on each model for its size or latency.

    Parameters
    ----------
    scorer : QualityScorer
        Fitted by ``fit``.
    penalties : mapping of str to float
        Score taken off a model; one left out has none.

    Examples
    --------
    >>> scorer = PenalisedQuality(NeighbourQuality(k=1), {"large": 0.25})
    >>> scorer.fit(["add 1 and 2", "who is it"], np.ones((2, 2)), ["small", "large"]).predict(["who is it?"])
    array([[1.  , 0.75]])
    """

    def __init__(self, scorer: QualityScorer, penalties: Mapping[str, float]) -> None:
        self.scorer = scorer
        self.penalties = dict(penalties)

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Fit the scorer on scores (n, m), NaN where a model was not asked.

        Raises
        ------
        InputError
            When a penalty is put on a model that is not among them.
        """
        for name in self.penalties:
            if name not in models:
                raise InputError(f"penalties names {name!r}, which is no model here: give {', '.join(models)}.")
        self.scorer.fit(prompts, scores, models)
        self.models_ = tuple(models)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict scores less penalties (n, m), higher is better, in the unit of the scores learned from."""
        if not hasattr(self, "models_"):
            raise NotFittedError("PenalisedQuality was used before fit: call fit(prompts, scores, models) first.")
        penalties = [self.penalties.get(name, 0.0) for name in self.models_]
        return np.asarray(self.scorer.predict(prompts) - penalties)


class RetargetedQuality:
    """A quality scorer that learns something made of the scores in their place.

    Parameters
    ----------
    scorer : QualityScorer
        Fitted by ``fit``.
    target : callable
        From prompts, scores (n, m) and models to what is learned, (n, m).

    Examples
    --------
    >>> def share(prompts, scores, models):
    ...     return scores / scores.sum(axis=1, keepdims=True)
    >>> scorer = RetargetedQuality(NeighbourQuality(k=1), share)
    >>> scorer.fit(["add 1 and 2", "who is it"], np.ones((2, 2)), ["small", "large"]).predict(["who is it?"])
    array([[0.5, 0.5]])
    """

    relative = True

    def __init__(
        self, scorer: QualityScorer, target: Callable[[Sequence[str], FloatArray, Sequence[str]], FloatArray]
    ) -> None:
        self.scorer = scorer
        self.target = target

    def fit(self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> Self:
        """Fit the scorer on what is made of scores (n, m), NaN where a model was not asked."""
        self.scorer.fit(prompts, self.target(prompts, scores, models), models)
        self.models_ = tuple(models)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict what was learned (n, m), higher is better."""
        if not hasattr(self, "models_"):
            raise NotFittedError("RetargetedQuality was used before fit: call fit(prompts, scores, models) first.")
        return self.scorer.predict(prompts)
