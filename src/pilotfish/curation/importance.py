"""Importance resampling: choose the raw texts that look most like a target, by hashed n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from pilotfish.curation.scan import Batch, Plan, count_ngrams
from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import Decision, FloatArray

__all__ = ["GumbelTopK", "ImportanceWeight"]


class ImportanceWeight:
    """Log-ratio of a text's probability under a target to that under the raw corpus, by words and pairs of words.

    Parameters
    ----------
    n_buckets : int
        Hashed n-grams told apart.
    smoothing : float
        Added to the count of every bucket.

    References
    ----------
    Xie 2023 (DSIR, arXiv:2302.03169), section 4.

    Examples
    --------
    >>> weight = ImportanceWeight(512).fit(["fish swim in water"], ["fish swim", "stones lie", "stones fall"])
    >>> weight.score(["stones", "water"]).argmax()
    np.int64(1)
    """

    def __init__(self, n_buckets: int = 10_000, smoothing: float = 1.0) -> None:
        self.n_buckets = n_buckets
        self.smoothing = smoothing

    def fit(self, target: Sequence[str], raw: Iterable[Sequence[str]] | Sequence[str]) -> Self:
        """Count the n-grams of the target and of the raw corpus, which may come in parts.

        Raises
        ------
        InputError
            When the target is empty.
        """
        if not len(target):
            raise InputError("The target has no text: give texts that are like what is wanted.")
        counts = np.zeros(self.n_buckets, dtype=np.int64)
        if isinstance(raw, Sequence) and (not raw or isinstance(raw[0], str)):
            raw = [raw]
        for part in raw:
            counts += count_ngrams(part, self.n_buckets)
        wanted = count_ngrams(target, self.n_buckets) + self.smoothing
        had = counts + self.smoothing
        self.weights_ = (np.log(wanted / wanted.sum()) - np.log(had / had.sum())).astype(np.float32)
        return self

    def plan(self, plan: Plan) -> None:
        """Ask for the sum of the weights."""
        if not hasattr(self, "weights_"):
            raise NotFittedError("ImportanceWeight is not fitted: call fit first.")
        plan.weights.append(self.weights_)
        self._column = len(plan.weights) - 1

    def of(self, batch: Batch) -> FloatArray:
        """Log-ratio of every text of a scanned batch, (n,)."""
        return np.asarray(batch.sums[:, self._column])

    def score(self, items: Sequence[str]) -> FloatArray:
        """Log-ratio of each text, (n,), in nats; higher is more like the target."""
        plan = Plan()
        self.plan(plan)
        return self.of(Batch(items).scan(plan))


class GumbelTopK:
    """Sample ``k`` items without replacement with probabilities proportional to the exponential of their scores.

    Parameters
    ----------
    k : int
        Items chosen, best first; all where there are fewer.
    seed : int
        Seed of the noise.

    References
    ----------
    Xie 2023 (arXiv:2302.03169), section 3; Vieira 2014.

    Examples
    --------
    >>> GumbelTopK(1, seed=0).decide(np.array([0.0, 50.0])).indices
    array([1])
    """

    def __init__(self, k: int, seed: int = 0) -> None:
        self.k = k
        self.seed = seed

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        noise = np.random.default_rng(self.seed).gumbel(size=scores.size)
        chosen = np.argsort(-(scores + noise), kind="stable")[: self.k]
        return Decision(chosen, np.ones(chosen.size))
