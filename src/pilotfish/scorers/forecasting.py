"""How a large model would do on a task, before it is paid for: from small proxies and what its card says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import FloatArray, IntArray

__all__ = ["ProxyLM", "leave_one_out", "text_features"]

_LEAST_ROWS, _LEAST_MODELS = 30, 4
_WORD = re.compile(r"\w+")


def text_features(texts: Sequence[str]) -> FloatArray:
    """Describe a data set in six numbers: length, vocabulary, variety, digits, punctuation and questions.

    Examples
    --------
    >>> text_features(["How many are 2 and 3?"]).size
    6
    """
    if not texts:
        raise InputError("There are no texts to describe: give at least one.")
    words = [_WORD.findall(t.lower()) for t in texts]
    flat = [w for row in words for w in row]
    characters = max(1, sum(map(len, texts)))
    return np.array(
        [
            np.log1p(np.mean([len(row) for row in words])),
            np.log1p(len(set(flat))),
            len(set(flat)) / max(1, len(flat)),
            sum(c.isdigit() for t in texts for c in t) / characters,
            sum(not c.isalnum() and not c.isspace() for t in texts for c in t) / characters,
            np.mean([t.rstrip().endswith("?") for t in texts]),
        ]
    )


class ProxyLM:
    """Predict a model's score on a task from the scores of small proxies, the data, and the model's card.

    Gradient-boosted trees predict how far a model lies above a task's level, from the proxies' scores on the task, the
    features of its data and those of the model; they are left out where they do not help for known models held out. The
    scores that the model's card states, or that a few paid answers gave, then move the others, by how the known models'
    scores go together.

    Parameters
    ----------
    n_trees : int
        Boosting rounds.
    shrinkage : float
        Share in [0, 1] of a plain covariance, equal for all pairs of tasks, in that of the known models.
    noise : float
        Variance of a stated score that says nothing of others, in shares of the mean variance.
    seed : int
        Seed of the trees.

    Attributes
    ----------
    levels_ : ndarray (n_tasks,)
        Level of each task.
    covariance_ : ndarray (n_tasks, n_tasks)
        How the models' distances from it go together.

    References
    ----------
    Anugraha et al. 2024 (ProxyLM, arXiv:2406.09334), section 2; the update is a Gaussian's conditional mean.
    """

    def __init__(self, n_trees: int = 60, shrinkage: float = 0.3, noise: float = 0.1, seed: int = 0) -> None:
        self.n_trees = n_trees
        self.shrinkage = shrinkage
        self.noise = noise
        self.seed = seed

    def fit(
        self,
        scores: FloatArray,
        models: Sequence[str],
        tasks: Sequence[str],
        data: FloatArray,
        proxies: Sequence[str],
        cards: Mapping[str, Sequence[float]],
    ) -> Self:
        """Learn from known models.

        Parameters
        ----------
        scores : ndarray (n_models, n_tasks)
            In [0, 1]; NaN where unknown. Every proxy needs all its scores.
        models, tasks : sequence of str
            Names of the rows and columns.
        data : ndarray (n_tasks, n_features)
            Features of each task's data, as of :func:`text_features`.
        proxies : sequence of str
            The small models whose scores are known for every task.
        cards : mapping of str to sequence of float
            Features of every model, such as the logarithm of its size.

        Raises
        ------
        InputError
            When shapes disagree, a model has no card, or a proxy lacks a score.
        """
        y = np.asarray(scores, dtype=np.float64)
        if y.shape != (len(models), len(tasks)) or len(data) != len(tasks) or len(models) < 2:
            raise InputError(
                f"scores have shape {y.shape} for {len(models)} models and {len(tasks)} tasks: give one each."
            )
        absent = sorted(set(proxies) - set(models)) + sorted(set(models) - set(cards))
        if absent or not proxies:
            raise InputError(f"No scores or card of {', '.join(absent) or 'any proxy'}: give those of every model.")
        at = [list(models).index(p) for p in proxies]
        if not np.isfinite(y[at]).all():
            raise InputError("A proxy lacks a score: run the proxies on every task first.")
        empty = [m for m, row in zip(models, y, strict=True) if not np.isfinite(row).any()]
        if empty or not np.isfinite(y).any(axis=0).all():
            raise InputError(f"There is no score of {', '.join(empty) or 'a task'}: leave it out.")
        self.tasks_, self.data_, self.proxy_scores_ = tuple(tasks), np.asarray(data, dtype=np.float64), y[at]
        self.levels_, ability = _additive(y)
        where = [(i, j) for i in range(len(models)) for j in np.flatnonzero(np.isfinite(y[i]))]
        rows = np.array([self._row(int(j), np.asarray(cards[models[i]], dtype=np.float64)) for i, j in where])
        above = np.array([y[i, j] - self.levels_[j] for i, j in where])
        self.trees_ = _boosted(rows, above, np.array([i for i, _ in where]), self.n_trees, self.seed)
        spread = np.where(np.isfinite(y), y - self.levels_, ability[:, None])
        own = spread.T @ spread / len(models)
        variance = float(np.diag(own).mean()) + 1e-6
        plain = variance * (0.5 + 0.5 * np.eye(len(tasks)))
        self.covariance_ = (1 - self.shrinkage) * own + self.shrinkage * plain
        return self

    def predict(
        self,
        card: Sequence[float],
        stated: Mapping[str, float] | None = None,
        n_answers: Mapping[str, int] | None = None,
    ) -> FloatArray:
        """Scores of a model on every task, (n_tasks,), in [0, 1].

        Parameters
        ----------
        card : sequence of float
            Features of the model, as in ``fit``.
        stated : mapping of str to float
            Scores on some tasks, from its card or from answers paid for.
        n_answers : mapping of str to int
            How many answers a stated score rests on; one without is taken as it stands.
        """
        if not hasattr(self, "covariance_"):
            raise NotFittedError("ProxyLM was used before fit: call fit(...) first.")
        known = dict(stated or {})
        unknown = sorted(set(known) - set(self.tasks_))
        if unknown or not all(0 <= v <= 1 for v in known.values()):
            raise InputError(f"Stated scores are {known}: give numbers in [0, 1] on {', '.join(self.tasks_)}.")
        features = np.asarray(card, dtype=np.float64)
        found = self.levels_.copy()
        if self.trees_ is not None:
            found += self.trees_.predict(np.array([self._row(j, features) for j in range(len(self.tasks_))]))
        if known:
            at = [self.tasks_.index(task) for task in known]
            seen = np.array(list(known.values()))
            counts = np.array([(n_answers or {}).get(task, np.inf) for task in known])
            noise = self.noise * np.diag(self.covariance_).mean() + 0.25 / counts
            inner = self.covariance_[np.ix_(at, at)] + np.diag(noise)
            found = found + self.covariance_[:, at] @ np.linalg.solve(inner, seen - found[at])
            found[at] = np.where(np.isinf(counts), seen, found[at])
        return np.asarray(np.clip(found, 0.0, 1.0))

    def _row(self, task: int, card: FloatArray) -> FloatArray:
        return np.concatenate([self.proxy_scores_[:, task], self.data_[task], card])


def _additive(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Level of each task and ability of each model, with scores missing: the fit of level + ability."""
    ability = np.zeros(len(y))
    for _ in range(30):
        level = np.nanmean(y - ability[:, None], axis=0)
        ability = np.nanmean(y - level, axis=1)
        ability -= ability.mean()
    return np.nanmean(y - ability[:, None], axis=0), ability


def _boosted(x: FloatArray, y: FloatArray, models: IntArray, n_trees: int, seed: int) -> Any:
    """Small trees; None where they do not help for models held out."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.model_selection import GroupKFold, cross_val_predict

    n_models = len(set(models.tolist()))
    if len(y) < _LEAST_ROWS or n_models < _LEAST_MODELS:
        return None
    made = GradientBoostingRegressor(
        n_estimators=n_trees, max_depth=2, learning_rate=0.05, subsample=0.7, min_samples_leaf=5, random_state=seed
    )
    held_out = cross_val_predict(made, x, y, groups=models, cv=GroupKFold(_LEAST_MODELS))
    return made.fit(x, y) if float(((y - held_out) ** 2).mean()) < float((y**2).mean()) else None


def leave_one_out(
    scores: FloatArray,
    models: Sequence[str],
    tasks: Sequence[str],
    data: FloatArray,
    proxies: Sequence[str],
    cards: Mapping[str, Sequence[float]],
    published: Sequence[str] = (),
) -> FloatArray:
    """Forecast every model that is no proxy from all the others, (n_models, n_tasks); NaN for the proxies.

    Parameters
    ----------
    published : sequence of str
        Tasks whose scores a model's card states; they come back as stated.
    """
    out = np.full(np.shape(scores), np.nan)
    for i, model in enumerate(models):
        if model in proxies:
            continue
        rest = [k for k in range(len(models)) if k != i]
        known = ProxyLM().fit(scores[rest], [models[k] for k in rest], tasks, data, proxies, cards)
        stated = {t: float(scores[i, tasks.index(t)]) for t in published}
        out[i] = known.predict(cards[model], stated)
    return out
