"""Predicted quality of every model on a prompt, before anything is generated: what routers decide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.vectors import in_parts, unit_rows

__all__ = [
    "Column",
    "Gap",
    "MeanQuality",
    "NeighbourQuality",
    "PenalisedQuality",
    "QualityScorer",
    "RetargetedQuality",
    "TermQuality",
    "checked_scores",
]


class QualityScorer(Protocol):
    """Anything that predicts how good each model's answer to a prompt would be.

    One whose predictions only tell models from each other, in no unit of the scores, says so by ``relative = True``.
    """

    models_: tuple[str, ...]

    def fit(
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], groups: Sequence[str] = ()
    ) -> Self:
        """Learn from scores (n, m), NaN where a model was not asked, and from the names of the prompts' groups."""
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

    def fit(
        self,
        prompts: Sequence[str],
        scores: FloatArray,
        models: Sequence[str],
        groups: Sequence[str] = (),  # noqa: ARG002
    ) -> Self:
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

    def fit(
        self,
        prompts: Sequence[str],
        scores: FloatArray,
        models: Sequence[str],
        groups: Sequence[str] = (),  # noqa: ARG002
    ) -> Self:
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

    def fit(
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], groups: Sequence[str] = ()
    ) -> Self:
        """Fit every scorer on scores (n, m), NaN where a model was not asked."""
        if not self.scorers:
            raise InputError("scorers is empty: give at least one quality scorer.")
        for scorer in self.scorers:
            scorer.fit(prompts, scores, models, groups)
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

    def fit(
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], groups: Sequence[str] = ()
    ) -> Self:
        """Fit the scorer on scores (n, m), NaN where a model was not asked.

        Raises
        ------
        InputError
            When a penalty is put on a model that is not among them.
        """
        for name in self.penalties:
            if name not in models:
                raise InputError(f"penalties names {name!r}, which is no model here: give {', '.join(models)}.")
        self.scorer.fit(prompts, scores, models, groups)
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

    def fit(
        self, prompts: Sequence[str], scores: FloatArray, models: Sequence[str], groups: Sequence[str] = ()
    ) -> Self:
        """Fit the scorer on what is made of scores (n, m), NaN where a model was not asked."""
        self.scorer.fit(prompts, self.target(prompts, scores, models), models, groups)
        self.models_ = tuple(models)
        return self

    def predict(self, prompts: Sequence[str]) -> FloatArray:
        """Predict what was learned (n, m), higher is better."""
        if not hasattr(self, "models_"):
            raise NotFittedError("RetargetedQuality was used before fit: call fit(prompts, scores, models) first.")
        return self.scorer.predict(prompts)
