"""Small models that judge text: hashed n-grams with one weight each, and a regressor on small embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pilotfish.curation.scan import Batch, Plan, hashed_counts
from pilotfish.errors import InputError, ModelError, NotFittedError
from pilotfish.files import ArrayFile, read_arrays, write_arrays
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import Decision, Embedder, FloatArray, Model
from pilotfish.types import Request

__all__ = ["EDUCATION", "EducationalQuality", "NgramClassifier", "ParetoSample"]

EDUCATION = (
    "Rate from 0 to 5 how useful the following text would be for teaching in a school: 0 for advertising or nonsense, "
    "3 for text that explains something in order, 5 for an outstanding lesson. Answer with the number alone.\n\n{text}"
)
# Inverse strengths of the penalty on weights that are tried.
_PENALTIES = (1.0, 10.0, 100.0)
_N_FOLDS = 3


class NgramClassifier(ArrayFile):
    """Probability that a text is of one kind and not another, from its words and pairs of words.

    Every hashed n-gram has a weight, learned by logistic regression with the penalty that ranks texts held back best;
    scoring shares the one pass over the text.

    Parameters
    ----------
    n_buckets : int
        Size of the table of weights.

    Attributes
    ----------
    weights_ : ndarray of float32, (n_buckets,)
    intercept_ : float

    References
    ----------
    Brown 2020 (arXiv:2005.14165), appendix A; Weinberger 2009 (arXiv:0902.2206).

    Examples
    --------
    >>> model = NgramClassifier(1024).fit(["a fine text", "fine words"], ["buy now", "buy cheap"])
    >>> bool(model.score(["fine"])[0] > 0.5)
    True
    """

    _kept_as = "classifier"

    def __init__(self, n_buckets: int = 1 << 18) -> None:
        self.n_buckets = n_buckets

    def fit(self, positive: Sequence[str], negative: Sequence[str]) -> Self:
        """Learn from texts of the kind and texts of the other.

        Raises
        ------
        InputError
            When either is empty.
        """
        from sklearn.linear_model import LogisticRegression

        if not len(positive) or not len(negative):
            raise InputError(
                f"NgramClassifier was given {len(positive)} texts of the kind and {len(negative)} others: give both."
            )
        rows = hashed_counts([*positive, *negative], self.n_buckets)
        sizes = np.sqrt(np.maximum(np.asarray(rows.sum(axis=1)).ravel(), 1.0))
        labels = np.repeat([1, 0], [len(positive), len(negative)])
        rows.data /= np.repeat(sizes, np.diff(rows.indptr))
        line = LogisticRegression(class_weight="balanced", max_iter=200, solver="liblinear")
        model = line.set_params(C=_penalty(line, rows, labels)).fit(rows, labels)
        self.weights_ = model.coef_[0].astype(np.float32)
        self.intercept_ = float(model.intercept_[0])
        return self

    def plan(self, plan: Plan) -> None:
        """Ask for the sum of the weights."""
        self._check_fitted()
        if not any(weights is self.weights_ for weights in plan.weights):
            plan.weights.append(self.weights_)
        self._column = next(i for i, weights in enumerate(plan.weights) if weights is self.weights_)

    def of(self, batch: Batch) -> FloatArray:
        """Probability of every text of a scanned batch, (n,)."""
        n_grams = np.maximum(2 * batch.n_runs - 1, 1)
        return np.asarray(expit(batch.sums[:, self._column] / np.sqrt(n_grams) + self.intercept_))

    def score(self, items: Sequence[str]) -> FloatArray:
        """Probability that each text is of the kind, (n,), in [0, 1]."""
        plan = Plan()
        self.plan(plan)
        return self.of(Batch(items).scan(plan))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        self._check_fitted()
        return {"weights": self.weights_, "intercept": np.array(self.intercept_)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls(arrays["weights"].size)
        made.weights_, made.intercept_ = arrays["weights"], float(arrays["intercept"])
        return made

    def _check_fitted(self) -> None:
        if not hasattr(self, "weights_"):
            raise NotFittedError("This classifier is not fitted: call fit first.")


def _penalty(line: Any, rows: Any, labels: NDArray[Any]) -> float:
    """The inverse penalty that ranks texts held back best; the middle one where there are too few to hold any back."""
    from sklearn.model_selection import cross_val_score

    n_folds = min(_N_FOLDS, int(np.bincount(labels).min()))
    if n_folds < 2:
        return _PENALTIES[1]
    ranked = [cross_val_score(line.set_params(C=C), rows, labels, cv=n_folds, scoring="roc_auc") for C in _PENALTIES]
    return _PENALTIES[int(np.argmax([scores.mean() for scores in ranked]))]


class ParetoSample:
    """Choose texts at random, the more surely the higher the score: a Pareto number must exceed 1 minus the score.

    The number is drawn from the score itself, so that the choice does not depend on order or workers.

    Parameters
    ----------
    alpha : float
        Shape; the higher, the fewer texts of low score.

    References
    ----------
    Brown 2020 (arXiv:2005.14165), appendix A: alpha 9.

    Examples
    --------
    >>> ParetoSample().decide(np.array([1.0, 0.0])).indices
    array([0])
    """

    def __init__(self, alpha: float = 9.0) -> None:
        if not alpha > 0:
            raise InputError(f"ParetoSample has alpha {alpha}: give a number above 0.")
        self.alpha = alpha

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,), in [0, 1]."""
        bits = np.ascontiguousarray(scores, dtype=np.float64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        uniform = ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)) / 2**53
        drawn = (1 - uniform) ** (-1 / self.alpha) - 1
        chosen = np.flatnonzero(drawn > 1 - scores - 1e-15)
        return Decision(chosen, np.ones(chosen.size))


class EducationalQuality:
    """Educational value from 0 to 5: a large model rates a sample, a regressor on small embeddings does the rest.

    Parameters
    ----------
    embedder : Embedder, optional
        Static token vectors when left out.
    alpha : float
        Penalty of the ridge regression.
    longest : int
        Characters of each text that are read.
    prompt : str
        Asks for the number; ``{text}`` stands for the text.

    References
    ----------
    Penedo 2024 (FineWeb-Edu, arXiv:2406.17557), section 4.

    Examples
    --------
    >>> from pilotfish.features import HashedNgrams
    >>> model = EducationalQuality(HashedNgrams(64)).fit(["we learn why water boils", "buy now"], [4.0, 0.0])
    >>> model.score(["why water boils", "buy"]).argmax()
    np.int64(0)
    """

    def __init__(
        self, embedder: Embedder | None = None, alpha: float = 0.1, longest: int = 4000, prompt: str = EDUCATION
    ) -> None:
        self.embedder = embedder or StaticEmbedder()
        self.alpha = alpha
        self.longest = longest
        self.prompt = prompt

    def label(self, texts: Sequence[str], model: Model) -> FloatArray:
        """Ask a large model for the number of each text, (n,); NaN where its reply has none."""
        replies = model.generate(
            [Request.of(self.prompt.format(text=text[: self.longest]), temperature=0.0, max_tokens=8) for text in texts]
        )
        found = [re.search(r"[0-5](?:\.\d+)?", reply.text) for reply in replies]
        return np.array([float(match[0]) if match else np.nan for match in found])

    def fit(self, texts: Sequence[str], ratings: Sequence[float] | FloatArray | Model) -> Self:
        """Learn from ratings, or from the model that gives them.

        Raises
        ------
        ModelError
            When fewer than two texts have a rating.
        """
        from sklearn.linear_model import Ridge

        given = self.label(texts, ratings) if isinstance(ratings, Model) else np.asarray(ratings, dtype=np.float64)
        rated = np.flatnonzero(np.isfinite(given))
        if rated.size < 2:
            raise ModelError(f"{rated.size} of {len(texts)} texts were rated: the model must answer with a number.")
        ridge = Ridge(alpha=self.alpha).fit(self._embedded([texts[int(i)] for i in rated]), given[rated])
        self.coef_, self.intercept_ = ridge.coef_.astype(np.float64), float(ridge.intercept_)
        return self

    def score(self, items: Sequence[str]) -> FloatArray:
        """Rating of each text, (n,), from 0 to 5."""
        if not hasattr(self, "coef_"):
            raise NotFittedError("EducationalQuality is not fitted: call fit first.")
        return np.asarray(np.clip(self._embedded(items) @ self.coef_ + self.intercept_, 0, 5))

    def save(self, path: str | Path) -> None:
        """Save as an npz archive; the embedder is given again on loading."""
        if not hasattr(self, "coef_"):
            raise NotFittedError("EducationalQuality is not fitted: call fit first.")
        write_arrays(path, {"coef": self.coef_, "intercept": np.array(self.intercept_)})

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder | None = None) -> Self:
        """Load what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is something else.
        """
        with read_arrays(path, "rating model") as file:
            made = cls(embedder)
            made.coef_, made.intercept_ = file["coef"], float(file["intercept"])
        return made

    def _embedded(self, texts: Sequence[str]) -> FloatArray:
        return np.asarray(self.embedder.embed([text[: self.longest] for text in texts]), dtype=np.float64)
