"""How a large model would do on a task, before it is paid for: from small proxies and what its card says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.files import ArrayFile
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import Embedder, FloatArray, IntArray
from pilotfish.vectors import unit_rows

__all__ = ["ProxyLM", "leave_one_out", "task_similarity", "text_features"]

_LEAST_ROWS, _LEAST_MODELS, _DEPTH = 30, 4, 2
_N_QUERIES, _CHARACTERS = 500, 2000
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


def task_similarity(
    queries: Sequence[Sequence[str]], metrics: Sequence[str] | None = None, embedder: Embedder | None = None
) -> FloatArray:
    """How alike tasks are, (n_tasks, n_tasks) in [-1, 1], from what they ask and how their answers are scored.

    Half is the cosine of their mean queries, less what all tasks share; half whether their answers are scored alike.

    Parameters
    ----------
    queries : sequence of sequences of str
        Some queries of each task; the first 500 are looked at.
    metrics : sequence of str, optional
        How each task's answers are scored, such as ``exact_match`` or ``f1``; the cosine alone counts without them.
    embedder : Embedder, optional
        A :class:`~pilotfish.models.embedder.StaticEmbedder` by default.

    Examples
    --------
    >>> task_similarity([["2 + 2?"], ["3 + 4?"], ["Who wrote Hamlet?"]], ["number", "number", "f1"])[0, 0].item()
    1.0
    """
    if not queries or not all(queries) or (metrics is not None and len(metrics) != len(queries)):
        raise InputError(f"There are {len(queries)} tasks: give queries, and a metric or none, of each.")
    embedder = embedder or StaticEmbedder()
    mean = np.array([embedder.embed([q[:_CHARACTERS] for q in part[:_N_QUERIES]]).mean(axis=0) for part in queries])
    mean -= mean.mean(axis=0)
    unit = unit_rows(mean)
    near = np.clip(unit @ unit.T, -1, 1).astype(np.float64)
    np.fill_diagonal(near, 1.0)
    if metrics is None:
        return np.asarray(near)
    return np.asarray((near + (np.array(metrics)[:, None] == np.array(metrics)[None])) / 2)


class ProxyLM(ArrayFile):
    """Predict a model's score on a task from the scores of small proxies, the data, and the model's card.

    Gradient-boosted trees predict how far a model lies above a task's level, from the proxies' scores on the task, the
    features of its data and those of the model; they are left out where they do not help for known models held out. The
    scores that the model's card states, or that a few paid answers gave, then move the others, by how the known models'
    scores go together. With few known models that is told badly, so it is drawn towards how alike the tasks are; how
    far, and how much a stated score may be off, is what forecasts the known models best, each held out in turn.

    Parameters
    ----------
    n_trees : int
        Boosting rounds.
    seed : int
        Seed of the trees.

    Attributes
    ----------
    levels_ : ndarray (n_tasks,)
        Level of each task.
    scores_ : ndarray (n_models, n_tasks)
        Scores of the known models; missing ones filled by level and ability.

    References
    ----------
    Anugraha et al. 2024 (ProxyLM, arXiv:2406.09334), section 2; the update is a Gaussian's conditional mean.
    """

    _kept_as = "forecast"

    def __init__(self, n_trees: int = 60, seed: int = 0) -> None:
        self.n_trees = n_trees
        self.seed = seed

    def fit(
        self,
        scores: FloatArray,
        models: Sequence[str],
        tasks: Sequence[str],
        data: FloatArray,
        proxies: Sequence[str],
        cards: Mapping[str, Sequence[float]],
        alike: FloatArray | None = None,
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
        alike : ndarray (n_tasks, n_tasks), optional
            How alike the tasks are, as of :func:`task_similarity`; without it all pairs are taken to be equally so.

        Raises
        ------
        InputError
            When shapes disagree, a model has no card, or a proxy lacks a score.
        """
        y, n = np.asarray(scores, dtype=np.float64), len(tasks)
        if y.shape != (len(models), n) or len(data) != n:
            raise InputError(f"scores have shape {y.shape} for {len(models)} models and {n} tasks: give one each.")
        if len(models) < 2:
            raise InputError(f"The only model with scores is {', '.join(models)}: give those of at least 2.")
        if alike is not None and np.shape(alike) != (n, n):
            raise InputError(f"alike has shape {np.shape(alike)} for {n} tasks: give a number for each pair.")
        absent = sorted(set(proxies) - set(models)) + sorted(set(models) - set(cards))
        if absent or not proxies:
            raise InputError(f"No scores or card of {', '.join(absent) or 'any proxy'}: give those of every model.")
        at = [list(models).index(p) for p in proxies]
        if not np.isfinite(y[at]).all():
            row, column = np.argwhere(~np.isfinite(y[at]))[0]
            raise InputError(
                f"Proxy {proxies[row]!r} has no score on task {tasks[column]!r}: run the proxies on every task first."
            )
        empty = [m for m, row in zip(models, y, strict=True) if not np.isfinite(row).any()]
        if empty or not np.isfinite(y).any(axis=0).all():
            raise InputError(f"There is no score of {', '.join(empty) or 'a task'}: leave it out.")
        self.tasks_, self.data_, self.proxy_scores_ = tuple(tasks), np.asarray(data, dtype=np.float64), y[at]
        self.levels_, ability = _additive(y)
        where = [(i, j) for i in range(len(models)) for j in np.flatnonzero(np.isfinite(y[i]))]
        rows = np.array([self._row(int(j), np.asarray(cards[models[i]], dtype=np.float64)) for i, j in where])
        above = np.array([y[i, j] - self.levels_[j] for i, j in where])
        self.trees_ = _boosted(rows, above, np.array([i for i, _ in where]), self.n_trees, self.seed)
        self.scores_ = np.where(np.isfinite(y), y, self.levels_ + ability[:, None])
        plain = np.eye(n)
        self.plain_ = 0.5 + 0.5 * plain if alike is None else 0.25 + 0.5 * np.asarray(alike) + 0.25 * plain
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
        self._check_fitted()
        known = dict(stated or {})
        unknown = sorted(set(known) - set(self.tasks_))
        if unknown or not all(0 <= v <= 1 for v in known.values()):
            raise InputError(f"Stated scores are {known}: give numbers in [0, 1] on {', '.join(self.tasks_)}.")
        features = np.asarray(card, dtype=np.float64)
        found = self.levels_.copy()
        if self.trees_ is not None:
            found += self.trees_.predict(np.array([self._row(j, features) for j in range(len(self.tasks_))]))
        if known:
            at = np.array([self.tasks_.index(task) for task in known])
            seen = np.array(list(known.values()))
            counts = np.array([(n_answers or {}).get(task, np.inf) for task in known])
            exact = np.isinf(counts)
            how = self._chosen(at[exact] if exact.any() else at)
            found = _moved(found, self.scores_ - self.levels_, self.plain_, at, seen, 0.25 / counts, *how)
            found[at] = np.where(exact, seen, found[at])
        return np.asarray(np.clip(found, 0.0, 1.0))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""
        self._check_fitted()
        trees = {} if self.trees_ is None else {f"trees_{k}": v for k, v in vars(self.trees_).items()}
        arrays = {name: getattr(self, f"{name}_") for name in _SAVED}
        sizes = np.array([self.n_trees, self.seed])
        return {"sizes": sizes, "tasks": np.array(self.tasks_), **arrays, **trees}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""
        made = cls(*map(int, arrays["sizes"]))
        made.tasks_ = tuple(map(str, arrays["tasks"]))
        for name in _SAVED:
            setattr(made, f"{name}_", arrays[name])
        trees = {k.removeprefix("trees_"): arrays[k] for k in arrays if k.startswith("trees_")}
        made.trees_ = _Trees(**trees) if trees else None
        return made

    def _chosen(self, at: IntArray) -> tuple[float, float]:
        """The share of likeness and the noise that forecast the known models best from their scores on some tasks."""
        n, rest = len(self.scores_), np.delete(np.arange(len(self.tasks_)), at)
        if n < _LEAST_MODELS or not rest.size:
            return _LIKENESS[1], _NOISE[1]
        none = np.zeros(len(at))

        def error(how: tuple[float, float]) -> float:
            total = 0.0
            for i in range(n):
                others = np.delete(self.scores_, i, axis=0)
                level = others.mean(axis=0)
                made = _moved(level, others - level, self.plain_, at, self.scores_[i, at], none, *how)
                total += float(((np.clip(made, 0, 1) - self.scores_[i])[rest] ** 2).sum())
            return total

        return min(product(_LIKENESS, _NOISE), key=error)

    def _row(self, task: int, card: FloatArray) -> FloatArray:
        return np.concatenate([self.proxy_scores_[:, task], self.data_[task], card])

    def _check_fitted(self) -> None:
        if not hasattr(self, "scores_"):
            raise NotFittedError("ProxyLM was used before fit: call fit(...) first.")


_SAVED = ("levels", "scores", "plain", "data", "proxy_scores")
_LIKENESS = (0.1, 0.3, 0.5, 0.7)
_NOISE = (0.01, 0.03, 0.1, 0.3)


def _moved(
    found: FloatArray,
    spread: FloatArray,
    plain: FloatArray,
    at: IntArray,
    seen: FloatArray,
    variances: FloatArray,
    share: float,
    noise: float,
) -> FloatArray:
    """A forecast moved by stated scores.

    ``share`` in [0, 1] is that of the tasks' likeness in the covariance, ``noise`` what a stated score says of its own
    task alone, in shares of the mean variance; ``variances`` come on top where a score rests on few answers.
    """
    own = spread.T @ spread / len(spread)
    mean = float(np.diag(own).mean()) + 1e-6
    wide = np.sqrt(np.diag(own) + 0.1 * mean)
    covariance = (1 - share) * own + share * plain * np.outer(wide, wide)
    inner = covariance[np.ix_(at, at)] + np.diag(noise * mean + variances)
    return np.asarray(found + covariance[:, at] @ np.linalg.solve(inner, seen - found[at]))


def _additive(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Level of each task and ability of each model, with scores missing: the fit of level + ability."""
    ability = np.zeros(len(y))
    for _ in range(30):
        level = np.nanmean(y - ability[:, None], axis=0)
        ability = np.nanmean(y - level, axis=1)
        ability -= ability.mean()
    return np.nanmean(y - ability[:, None], axis=0), ability


@dataclass(frozen=True, eq=False)
class _Trees:
    """Boosted trees in arrays (n_trees, n_nodes); a leaf is its own child."""

    feature: IntArray
    threshold: FloatArray
    below: IntArray
    above: IntArray
    value: FloatArray
    start: FloatArray

    def predict(self, x: FloatArray) -> FloatArray:
        # The thresholds were found among numbers of single precision.
        rows, single = np.arange(len(x)), x.astype(np.float32)
        total = np.full(len(x), float(self.start))
        for tree in range(len(self.feature)):
            node = np.zeros(len(x), dtype=np.int64)
            for _ in range(_DEPTH):
                left = single[rows, self.feature[tree, node]] <= self.threshold[tree, node]
                node = np.where(left, self.below[tree, node], self.above[tree, node])
            total += self.value[tree, node]
        return total


def _arrays(made: Any) -> _Trees:
    """The trees of a fitted model of scikit-learn."""
    n_nodes = 2 ** (_DEPTH + 1) - 1
    shape = (len(made.estimators_), n_nodes)
    feature, below, above = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    threshold, value = np.zeros(shape), np.zeros(shape)
    for k, (one,) in enumerate(made.estimators_):
        tree = one.tree_
        leaf, own = tree.children_left < 0, np.arange(tree.node_count)
        feature[k, own] = np.where(leaf, 0, tree.feature)
        threshold[k, own] = tree.threshold
        below[k, own], above[k, own] = np.where(leaf, own, tree.children_left), np.where(leaf, own, tree.children_right)
        value[k, own] = made.learning_rate * tree.value[:, 0, 0]
    return _Trees(feature, threshold, below, above, value, np.array(float(made.init_.constant_.ravel()[0])))


def _boosted(x: FloatArray, y: FloatArray, models: IntArray, n_trees: int, seed: int) -> _Trees | None:
    """Small trees; None where they do not help for models held out."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.model_selection import GroupKFold, cross_val_predict

    n_models = len(set(models.tolist()))
    if len(y) < _LEAST_ROWS or n_models < _LEAST_MODELS:
        return None
    made = GradientBoostingRegressor(
        n_estimators=n_trees, max_depth=_DEPTH, learning_rate=0.05, subsample=0.7, min_samples_leaf=5, random_state=seed
    )
    held_out = cross_val_predict(made, x, y, groups=models, cv=GroupKFold(_LEAST_MODELS))
    helps = float(((y - held_out) ** 2).mean()) < float((y**2).mean())
    return _arrays(made.fit(x, y)) if helps else None


def leave_one_out(
    scores: FloatArray,
    models: Sequence[str],
    tasks: Sequence[str],
    data: FloatArray,
    proxies: Sequence[str],
    cards: Mapping[str, Sequence[float]],
    published: Sequence[str] = (),
    alike: FloatArray | None = None,
) -> FloatArray:
    """Forecast every model that is no proxy from all the others, (n_models, n_tasks); NaN for the proxies.

    Parameters
    ----------
    published : sequence of str
        Tasks whose scores a model's card states; they come back as stated.
    alike : ndarray (n_tasks, n_tasks), optional
        How alike the tasks are.
    """
    out = np.full(np.shape(scores), np.nan)
    for i, model in enumerate(models):
        if model in proxies:
            continue
        rest = [k for k in range(len(models)) if k != i]
        known = ProxyLM().fit(scores[rest], [models[k] for k in rest], tasks, data, proxies, cards, alike)
        stated = {t: float(scores[i, tasks.index(t)]) for t in published}
        out[i] = known.predict(cards[model], stated)
    return out
