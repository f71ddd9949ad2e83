"""One pass over a batch of texts that gives every step of a recipe what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pilotfish.curation.characters import tables
from pilotfish.curation.measures import MEASURES, measure
from pilotfish.curation.ngrams import add_counts, bucket_of, hash_words, join_bands, runs, sign, sum_weights
from pilotfish.curation.words import decode, split_words
from pilotfish.protocols import FloatArray

__all__ = ["Batch", "Plan", "Signing", "count_ngrams", "hashed_counts"]

_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_NONE = np.zeros((2, 0), dtype=np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Signing:
    """How to sign documents: n-grams of words, permutations (2, n_bands * n_rows), bands."""

    n_gram: int
    permuted: NDArray[np.uint32]
    n_bands: int


@dataclass(slots=True)
class Plan:
    """What the steps of a recipe need of the text.

    Parameters
    ----------
    measures : bool
        The measures that rules look at.
    blocked : set of str
        Words to count.
    signing : Signing or None
        MinHash signatures.
    weights : list of ndarray, (n_buckets,)
        Tables whose weights are summed over hashed n-grams.
    """

    measures: bool = False
    blocked: set[str] = field(default_factory=set)
    signing: Signing | None = None
    weights: list[NDArray[np.float32]] = field(default_factory=list)


class Batch:
    """Texts as one buffer of bytes, and what one pass over them gives.

    Parameters
    ----------
    texts : sequence of str
        The texts.

    Examples
    --------
    >>> batch = Batch(["One line.", "Two lines.\\nThe second."]).scan(Plan(measures=True))
    >>> batch.column("lines")
    array([1., 2.])
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        encoded = [text.encode("utf-8", "replace") for text in texts]
        sizes = np.fromiter((len(part) for part in encoded), dtype=np.int64, count=len(encoded))
        self.offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        self.buffer = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.rows: FloatArray = np.zeros((0, len(MEASURES)))
        self.signatures: NDArray[np.uint32] = _NONE
        self.bands: NDArray[np.uint64] = np.zeros((0, 0), dtype=np.uint64)
        self.n_grams: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.n_runs: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.sums: FloatArray = np.zeros((0, 0))

    @classmethod
    def of(cls, buffer: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Batch:
        """Texts that lie end to end as UTF-8 already, text i from offsets i to i + 1; they are not there as strings."""
        made = cls([])
        made.buffer, made.offsets = buffer, offsets
        return made

    def __len__(self) -> int:
        return self.offsets.size - 1

    def scan(self, plan: Plan) -> Batch:
        """Read the texts once and keep what the plan asks for."""
        n, classes_lower = len(self), tables()
        signing = plan.signing
        n_signs = 0 if signing is None else signing.permuted.shape[1]
        self.rows = np.zeros((n if plan.measures else 0, len(MEASURES)))
        self.signatures = np.empty((n, n_signs), dtype=np.uint32)
        self.bands = np.zeros((n, 0 if signing is None else signing.n_bands), dtype=np.uint64)
        self.n_grams = np.zeros(n, dtype=np.int64)
        self.n_runs = np.zeros(n, dtype=np.int64)
        self.sums = np.zeros((n, len(plan.weights)))
        _scan(
            self.buffer,
            self.offsets,
            *classes_lower,
            _stop_words(),
            _blocked(frozenset(plan.blocked)),
            0 if signing is None else signing.n_gram,
            _NONE if signing is None else signing.permuted,
            np.concatenate([np.zeros(0, dtype=np.float32), *plan.weights]).astype(np.float32),
            np.cumsum([0, *(weights.size for weights in plan.weights)]),
            self.rows,
            self.signatures,
            self.bands,
            self.n_grams,
            self.n_runs,
            self.sums,
        )
        return self

    def count_ngrams(self, n_buckets: int) -> NDArray[np.int64]:
        """Count the hashed words, marks and pairs of them of all texts, (n_buckets,)."""
        counts = np.zeros(n_buckets, dtype=np.int64)
        _count(self.buffer, self.offsets, *tables(), counts)
        return counts

    def column(self, name: str) -> FloatArray:
        """One measure of every text, (n,)."""
        return np.asarray(self.rows[:, MEASURES.index(name)])


def count_ngrams(texts: Sequence[str], n_buckets: int) -> NDArray[np.int64]:
    """Count the hashed words, marks and pairs of them of texts, (n_buckets,).

    Examples
    --------
    >>> int(count_ngrams(["one two", "two"], 64).sum())
    4
    """
    return Batch(texts).count_ngrams(n_buckets)


def hashed_counts(texts: Sequence[str], n_buckets: int) -> csr_array:
    """Counts of hashed words, marks and pairs of them in each text, (n, n_buckets), sparse.

    Examples
    --------
    >>> hashed_counts(["one two", "two"], 64).sum(axis=1)
    array([3., 1.])
    """
    batch = Batch(texts)
    places = np.empty(2 * batch.buffer.size + 2, dtype=np.int32)
    ends = np.zeros(len(texts) + 1, dtype=np.int64)
    _places(batch.buffer, batch.offsets, *tables(), n_buckets, places, ends)
    made = csr_array((np.ones(ends[-1]), places[: ends[-1]], ends.astype(np.int32)), shape=(len(texts), n_buckets))
    made.sum_duplicates()
    return made


@lru_cache(maxsize=1)
def _stop_words() -> NDArray[np.uint64]:
    return hash_words(list(_STOP_WORDS))


@lru_cache(maxsize=8)
def _blocked(words: frozenset[str]) -> NDArray[np.uint64]:
    return hash_words(sorted({form for word in words for form in (word.lower(), word.capitalize(), word.upper())}))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _scan(
    buffer: Any,
    offsets: Any,
    classes: Any,
    lower: Any,
    stop_words: Any,
    blocked: Any,
    n_gram: int,
    permuted: Any,
    weights: Any,
    bounds: Any,
    rows: Any,
    signatures: Any,
    bands: Any,
    n_grams: Any,
    n_runs: Any,
    sums: Any,
) -> None:
    n = offsets.size - 1
    longest = 1
    for d in range(n):
        longest = max(longest, offsets[d + 1] - offsets[d])
    hashes = np.empty(longest + 1, dtype=np.uint64)
    gram_hashes = np.empty(longest + 33, dtype=np.uint32)
    signs, sums_wanted = signatures.shape[1] > 0, weights.size > 0
    if rows.shape[0]:
        size = 16
        while size < 2 * longest + 16:
            size *= 2
        codes = np.empty(longest + 1, dtype=np.uint32)
        kinds = np.empty(longest + 1, dtype=np.uint16)
        starts = np.empty(longest + 1, dtype=np.int32)
        ends = np.empty(longest + 1, dtype=np.int32)
        grams = np.empty(longest + 1, dtype=np.uint64)
        slots = np.empty(2 * size, dtype=np.uint64)
        counts = np.empty(size, dtype=np.int32)
    for d in range(n):
        if rows.shape[0]:
            n_codes = decode(buffer, offsets[d], offsets[d + 1], classes, codes, kinds)
            n_words = split_words(codes, kinds, n_codes, starts, ends, hashes)
            rows[d, 0] = offsets[d + 1] - offsets[d]
            measure(
                codes, kinds, n_codes, n_words, starts, ends, hashes, stop_words, blocked, grams, slots, counts, rows[d]
            )
        if signs or sums_wanted:
            found = runs(buffer, offsets[d], offsets[d + 1], classes, lower, hashes)
            n_runs[d] = found
            for k in range(bounds.size - 1):
                sums[d, k] = sum_weights(hashes, found, weights[bounds[k] : bounds[k + 1]])
            if signs:
                n_grams[d] = sign(hashes, found, n_gram, permuted, gram_hashes, signatures[d])
                join_bands(signatures[d], bands[d])


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(buffer: Any, offsets: Any, classes: Any, lower: Any, counts: Any) -> None:
    longest = 1
    for d in range(offsets.size - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    hashes = np.empty(longest + 1, dtype=np.uint64)
    for d in range(offsets.size - 1):
        add_counts(hashes, runs(buffer, offsets[d], offsets[d + 1], classes, lower, hashes), counts)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _places(buffer: Any, offsets: Any, classes: Any, lower: Any, n_buckets: int, places: Any, ends: Any) -> None:
    longest = 1
    for d in range(offsets.size - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    hashes = np.empty(longest + 1, dtype=np.uint64)
    size, n = np.uint64(n_buckets), 0
    for d in range(offsets.size - 1):
        found = runs(buffer, offsets[d], offsets[d + 1], classes, lower, hashes)
        for i in range(found):
            places[n] = bucket_of(hashes, i, False, size)
            n += 1
            if i:
                places[n] = bucket_of(hashes, i, True, size)
                n += 1
        ends[d + 1] = n
