"""Embeddings of documents: duplicates in meaning point almost the same way, prototypes lie amid their clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.barriers import Fates
from pilotfish.curation.dedup import Keys
from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.errors import InputError
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import Embedder, FloatArray, IntArray
from pilotfish.rules import TopK
from pilotfish.vectors import unit_rows

__all__ = ["D4", "SemanticDedup", "prototypicality"]

_PER_CLUSTER = 256
_ROWS = 4096


class SemanticDedup:
    """Drop a document whose embedding is within an angle of another's; the first of a group stays.

    Embeddings become signs on random axes; documents that share all signs of a band form a cluster, and the share of
    equal signs in all estimates the angle. So the search runs on the same sorted files as MinHash, within a bound of
    memory and against an index.

    Parameters
    ----------
    least : float
        Least cosine of two documents that are joined, in (0, 1).
    embedder : Embedder, optional
        Static token vectors when left out.
    n_bits, band_bits : int
        Signs in all, and in a band, at most 64.
    longest : int
        Characters of each text that are read.
    index : path, optional
        Folder of the keys of documents kept by earlier runs; those of this run are added to it.
    seed : int
        Seed of the axes.

    References
    ----------
    Abbas 2023 (SemDeDup, arXiv:2303.09540); Charikar 2002 for the clusters by signs.

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> from pilotfish.features import HashedNgrams
    >>> texts = ["the fish swims in water", "The fish swims in water!", "stocks fell on Monday"]
    >>> [d.id for d in curate(texts, [SemanticDedup(0.8, HashedNgrams(256))])]
    ['0', '2']
    """

    name = "semantic_dedup"
    rule = "duplicate"
    by_bytes = False

    def __init__(
        self,
        least: float = 0.95,
        embedder: Embedder | None = None,
        n_bits: int = 1024,
        band_bits: int = 16,
        longest: int = 4000,
        index: str | Path | None = None,
        seed: int = 1,
    ) -> None:
        if not 0 < least < 1 or not 1 <= band_bits <= 64 or n_bits % band_bits:
            raise InputError(
                f"SemanticDedup has least {least}, {n_bits} bits, bands of {band_bits}: use a cosine between 0 and 1, "
                "and bands of at most 64 bits that divide all."
            )
        # Two unit vectors at an angle differ in that share of half turns of their signs.
        self.least = 1 - math.acos(least) / math.pi
        self.embedder = embedder or StaticEmbedder()
        self.n_bits = n_bits
        self.band_bits = band_bits
        self.longest = longest
        self.index = None if index is None else Path(index)
        self.seed = seed

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def keys(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Keys:  # noqa: ARG002
        """A key for each band of signs, and the signs."""
        vectors = self.embedder.embed([batch.texts[i][: self.longest] for i in rows])
        axes = np.random.default_rng(self.seed).standard_normal((vectors.shape[1], self.n_bits), dtype=np.float32)
        signs = (vectors @ axes > 0).astype(np.uint8)
        grouped = signs.reshape(len(vectors), -1, self.band_bits)
        powers = np.left_shift(np.uint64(1), np.arange(self.band_bits, dtype=np.uint64))
        keys = (grouped * powers).sum(axis=2, dtype=np.uint64) + np.uint64(1)
        keys[~vectors.any(axis=1)] = 0
        return keys, signs


class D4:
    """Drop duplicates in meaning, then the documents nearest to the centres of their clusters.

    Parameters
    ----------
    share : float
        Part of the deduplicated documents that stays, in (0, 1]: the least typical ones.
    least : float
        Least cosine of two documents that are joined as duplicates, in (0, 1).
    n_clusters : int
        Clusters of what is left; the paper takes about the square root of the number of documents.
    embedder : Embedder, optional
        Static token vectors when left out.
    longest : int
        Characters of each text that are read.
    seed : int
        Seed of the axes and of the clusters.

    References
    ----------
    Tirumala 2023 (D4, arXiv:2308.12284), section 3.4.

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> from pilotfish.features import HashedNgrams
    >>> texts = ["the fish swims", "The fish swims!", "the fish swims on", "the fish swims in", "stocks fell"]
    >>> [d.text for d in curate(texts, [D4(0.25, 0.95, 1, HashedNgrams(256))])]
    ['stocks fell']
    """

    name = "d4"

    def __init__(
        self,
        share: float,
        least: float = 0.95,
        n_clusters: int = 100,
        embedder: Embedder | None = None,
        longest: int = 4000,
        seed: int = 1,
    ) -> None:
        if not 0 < share <= 1 or n_clusters < 1:
            raise InputError(
                f"D4 has share {share} and {n_clusters} clusters: use a part of 1, and at least one cluster."
            )
        embedder = embedder or StaticEmbedder()
        self.steps = (
            SemanticDedup(least, embedder, longest=longest, seed=seed),
            _Diverse(share, n_clusters, embedder, longest, seed),
        )


class _Diverse:
    """Drops the documents that are most typical of their cluster."""

    name = "d4"
    rule = "prototype"
    by_bytes = False

    def __init__(self, share: float, n_clusters: int, embedder: Embedder, longest: int, seed: int) -> None:
        self.share = share
        self.n_clusters = n_clusters
        self.embedder = embedder
        self.longest = longest
        self.seed = seed

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def numbers(self, batch: Batch, documents: Sequence[Document]) -> NDArray[np.float16]:  # noqa: ARG002
        """The embedding of each document, (n, d), at half precision: clusters need no more."""
        return self.embedder.embed([d.text[: self.longest] for d in documents]).astype(np.float16)

    def joined(self, parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
        """The embeddings of the shard, (n, d)."""
        return np.concatenate(parts)

    def choose(self, shards: Sequence[NDArray[np.float16]]) -> list[Fates]:
        """Drop the most typical; the score is the cosine to the centre."""
        scores = prototypicality(shards, self.n_clusters, self.seed)
        kept = np.ones(scores.size, dtype=bool)
        kept[TopK(scores.size - round(self.share * scores.size)).decide(scores).indices] = False
        return Fates.split(kept, scores, [len(shard) for shard in shards])


def prototypicality(shards: Sequence[NDArray[Any]], n_clusters: int, seed: int = 0) -> FloatArray:
    """Closeness of each vector to the centre of its cluster, (n,): its cosine; prototypes are highest.

    Parameters
    ----------
    shards : sequence of ndarray, (n_i, d)
        The vectors in parts, which may lie in files: they are read little by little.
    n_clusters : int
        Clusters, found on up to 256 vectors for each, evenly spaced.
    seed : int
        Seed of the clusters.

    References
    ----------
    Sorscher 2022 (arXiv:2206.14486); Tirumala 2023 (D4, arXiv:2308.12284): drop the most prototypical after duplicates.

    Examples
    --------
    >>> prototypicality([np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.1]])], 1).argmin()
    np.int64(1)
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    n = int(starts[-1])
    spaced = np.unique(np.linspace(0, n - 1, min(n, _PER_CLUSTER * n_clusters)).astype(np.int64))
    edges = np.searchsorted(spaced, starts)
    parts = [shard[spaced[a:b] - at] for shard, at, a, b in zip(shards, starts, edges, edges[1:], strict=False)]
    sample = unit_rows(np.concatenate(parts).astype(np.float32))
    k = min(n_clusters, len(sample))
    # One thread, so that the sums, and with them the choice, are the same on any number of cores.
    with threadpool_limits(1):
        centres = MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=1024).fit(sample).cluster_centers_
    directions, half_squares = unit_rows(centres), (centres**2).sum(axis=1) / 2
    out = np.empty(n, dtype=np.float64)
    for shard, start in zip(shards, starts.tolist(), strict=False):
        for i in range(0, len(shard), _ROWS):
            rows = unit_rows(np.asarray(shard[i : i + _ROWS], dtype=np.float32))
            nearest = (rows @ centres.T - half_squares).argmax(axis=1)
            out[start + i : start + i + len(rows)] = (rows * directions[nearest]).sum(axis=1)
    return out
