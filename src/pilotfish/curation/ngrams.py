"""Kernels over runs of letters and of marks: hashed n-grams, and MinHash signatures. Numba, without the lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pilotfish.curation.characters import N_KNOWN, SPACE, WORD
from pilotfish.curation.words import character_at, finish

__all__ = ["add_counts", "bucket_of", "hash_words", "join_bands", "permutations", "runs", "sign", "sum_weights"]

_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def runs(buffer: Any, start: int, end: int, classes: Any, lower: Any, hashes: Any) -> int:
    """Hash each run of word characters, and each run of marks, in lower case; return how many there are.

    The lowest bit of a hash says whether the run is of word characters.
    """
    n, i = 0, start
    h, kind = _SEED, 0
    while i < end:
        c, i = character_at(buffer, i)
        c = min(c, np.uint32(N_KNOWN))
        bits = classes[c]
        now = 1 if bits & WORD else (0 if bits & SPACE else 2)
        if now != kind:
            if kind:
                hashes[n] = (finish(h) & ~_ONE) | np.uint64(kind & 1)
                n += 1
            h, kind = _SEED, now
        h = (h ^ np.uint64(lower[c])) * _PRIME
    if kind:
        hashes[n] = (finish(h) & ~_ONE) | np.uint64(kind & 1)
        n += 1
    return n


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def bucket_of(hashes: Any, i: int, pair: bool, n_buckets: Any) -> Any:
    """Bucket of run i, or of the pair of runs that ends there."""
    h = finish(hashes[i - 1] * _MIX + hashes[i]) if pair else hashes[i]
    # The high 32 bits, spread over the buckets without a division.
    return np.int64(((h >> np.uint64(32)) * n_buckets) >> np.uint64(32))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sum_weights(hashes: Any, n: int, weights: Any) -> float:
    """Sum over runs and pairs of runs of a weight from a table (n_buckets,)."""
    total, size = 0.0, np.uint64(weights.size)
    for i in range(n):
        total += weights[bucket_of(hashes, i, False, size)]
        if i:
            total += weights[bucket_of(hashes, i, True, size)]
    return total


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_counts(hashes: Any, n: int, counts: Any) -> None:
    """Count runs and pairs of runs into a table (n_buckets,)."""
    size = np.uint64(counts.size)
    for i in range(n):
        counts[bucket_of(hashes, i, False, size)] += 1
        if i:
            counts[bucket_of(hashes, i, True, size)] += 1


def permutations(n: int, seed: int = 1) -> NDArray[np.uint32]:
    """Random odd multipliers and offsets of n permutations of the 32-bit numbers, (2, n)."""
    drawn = np.random.default_rng(seed).integers(0, 2**32, size=(2, n), dtype=np.uint32)
    drawn[0] |= 1
    return drawn


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sign(hashes: Any, n: int, n_gram: int, permuted: Any, grams: Any, signature: Any) -> int:
    """MinHash of the n-grams of the words among runs (n,); return the number of n-grams.

    A document of fewer words than ``n_gram`` has one n-gram, of all its words; one without a word has none.
    ``grams`` (n + 32,) is working space.
    """
    signature[:] = np.uint32(0xFFFFFFFF)
    n_words = 0
    for i in range(n):
        hashes[n_words] = hashes[i]
        n_words += int(hashes[i] & _ONE)
    if n_words == 0:
        return 0
    size = min(n_gram, n_words)
    n_grams = n_words - size + 1
    for i in range(n_grams):
        h = _SEED
        for k in range(i, i + size):
            h = h * _MIX + hashes[k]
        grams[i] = np.uint32(finish(h) >> np.uint64(32))
    # Some n-grams once more, so that the loop below is made of whole vectors.
    filled = n_grams + -n_grams % 32
    for i in range(n_grams, filled):
        grams[i] = grams[0]
    for j in range(signature.size):
        multiply, add, least = permuted[0, j], permuted[1, j], signature[j]
        for i in range(filled):
            least = min(least, np.uint32(grams[i] * multiply + add))
        signature[j] = least
    return n_grams


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def join_bands(signature: Any, bands: Any) -> None:
    """Hash each band of a signature (n_bands * n_rows,) to one number, (n_bands,)."""
    n_rows = signature.size // bands.size
    for b in range(bands.size):
        h = np.uint64(b + 1) * _MIX
        for k in range(b * n_rows, (b + 1) * n_rows):
            h = finish((h ^ np.uint64(signature[k])) * _MIX)
        bands[b] = h


def hash_words(words: list[str]) -> NDArray[np.uint64]:
    """Hash words as the kernels of ``words`` do, sorted and each once."""
    made = set()
    for word in words:
        h = 0xCBF29CE484222325
        for character in word:
            h = ((h ^ ord(character)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
        h ^= h >> 33
        h = (h * 0xFF51AFD7ED558CCD) & 0xFFFFFFFFFFFFFFFF
        h ^= h >> 33
        h = (h * 0xC4CEB9FE1A85EC53) & 0xFFFFFFFFFFFFFFFF
        made.add(h ^ (h >> 33))
    return np.array(sorted(made), dtype=np.uint64)
