"""Importance resampling: choose the raw texts that look most like a target, by hashed n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.barriers import Fates
from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan, count_ngrams
from pilotfish.errors import InputError, NotFittedError
from pilotfish.protocols import Decision, FloatArray

__all__ = ["GumbelTopK", "ImportanceResampling", "ImportanceWeight"]


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
        return self.fit_counts(count_ngrams(target, self.n_buckets), counts)

    def fit_counts(self, target: NDArray[np.int64], raw: NDArray[np.int64]) -> Self:
        """Weigh n-grams that are counted already: in the target and in the raw corpus, (n_buckets,) each."""
        wanted, had = target + self.smoothing, raw + self.smoothing
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
        if k < 0:
            raise InputError(f"GumbelTopK k is {k}: give a number of items of at least 0.")
        self.k = k
        self.seed = seed

    def decide(self, scores: FloatArray) -> Decision:
        """Choose among n items by their scores (n,)."""
        # In place: at a billion documents each array is 8 GB.
        keys = np.random.default_rng(self.seed).gumbel(size=scores.size)
        keys += scores
        np.negative(keys, out=keys)
        chosen = np.argsort(keys, kind="stable")[: self.k]
        return Decision(chosen, np.ones(chosen.size))


class ImportanceResampling:
    """Keep ``k`` documents, drawn with probabilities like a target's, of all that come: two passes of a recipe.

    The first counts the n-grams of the corpus, the second scores every document; the draw takes one number of each.

    Parameters
    ----------
    target : sequence of str
        Texts like what is wanted.
    k : int
        Documents that stay.
    seed : int
        Seed of the draw.

    References
    ----------
    Xie 2023 (DSIR, arXiv:2302.03169).

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> raw = ["fish swim far", "stones fall", "fish eat fish", "stones lie", "stones roll"]
    >>> [d.text for d in curate(raw, [ImportanceResampling(["fish swim", "fish eat"] * 50, 2)])]
    ['fish swim far', 'fish eat fish']
    """

    name = "importance_resampling"

    def __init__(self, target: Sequence[str], k: int, seed: int = 0) -> None:
        if k < 1 or not len(target):
            raise InputError(
                f"ImportanceResampling has k {k} and {len(target)} texts of the target: give at least one of each."
            )
        weight = ImportanceWeight()
        self.steps = (_Counted(weight, count_ngrams(target, weight.n_buckets)), _Drawn(weight, k, seed))


class _Counted:
    """Counts the n-grams of the corpus, so that the weights are known."""

    name = "importance_resampling: counts"
    rule = ""
    by_bytes = False

    def __init__(self, weight: ImportanceWeight, target: NDArray[np.int64]) -> None:
        self._weight = weight
        self.target = target

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def numbers(self, batch: Batch, documents: Sequence[Document]) -> NDArray[np.int64]:  # noqa: ARG002
        """Counts of the batch, (n_buckets,)."""
        return batch.count_ngrams(self._weight.n_buckets)

    def joined(self, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Counts of the shard, (n_buckets,)."""
        return np.asarray(np.sum(parts, axis=0))

    def choose(self, shards: Sequence[NDArray[np.int64]]) -> list[Fates]:
        """Learn the weights; nothing is dropped."""
        self._weight.fit_counts(self.target, self.joined(shards))
        return []


class _Drawn:
    """Draws by the log-ratios of all documents."""

    name = "importance_resampling"
    rule = "not_drawn"
    by_bytes = False

    def __init__(self, weight: ImportanceWeight, k: int, seed: int) -> None:
        self._weight = weight
        self.k = k
        self.seed = seed

    def plan(self, plan: Plan) -> None:
        """Ask for the sum of the weights."""
        self._weight.plan(plan)

    def numbers(self, batch: Batch, documents: Sequence[Document]) -> FloatArray:  # noqa: ARG002
        """Log-ratio of each document, (n,)."""
        return self._weight.of(batch)

    def joined(self, parts: Sequence[FloatArray]) -> FloatArray:
        """Log-ratios of the shard, (n,)."""
        return np.concatenate(parts)

    def choose(self, shards: Sequence[FloatArray]) -> list[Fates]:
        """Draw among all."""
        scores = np.concatenate(shards)
        kept = np.zeros(scores.size, dtype=bool)
        kept[GumbelTopK(self.k, self.seed).decide(scores).indices] = True
        return Fates.split(kept, scores, [len(shard) for shard in shards])
