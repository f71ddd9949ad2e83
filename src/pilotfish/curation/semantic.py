"""Duplicates in meaning: documents whose embeddings point almost the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pilotfish.curation.dedup import Keys
from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.errors import InputError
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import Embedder, FloatArray, IntArray

__all__ = ["SemanticDedup", "prototypicality"]


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
        self.embedder = embedder
        self.n_bits = n_bits
        self.band_bits = band_bits
        self.longest = longest
        self.index = None if index is None else Path(index)
        self.seed = seed

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def keys(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Keys:  # noqa: ARG002
        """A key for each band of signs, and the signs."""
        if self.embedder is None:
            self.embedder = StaticEmbedder()
        vectors = self.embedder.embed([batch.texts[i][: self.longest] for i in rows])
        axes = np.random.default_rng(self.seed).standard_normal((vectors.shape[1], self.n_bits), dtype=np.float32)
        signs = (vectors @ axes > 0).astype(np.uint64)
        grouped = signs.reshape(len(vectors), -1, self.band_bits)
        powers = np.left_shift(np.uint64(1), np.arange(self.band_bits, dtype=np.uint64))
        keys = (grouped * powers).sum(axis=2, dtype=np.uint64) + np.uint64(1)
        keys[~vectors.any(axis=1)] = 0
        return keys, signs.astype(np.uint32)


def prototypicality(vectors: FloatArray, n_clusters: int, seed: int = 0) -> FloatArray:
    """Closeness of each vector (n, d) to the centre of its cluster, (n,): its cosine; prototypes are highest.

    References
    ----------
    Sorscher 2022 (arXiv:2206.14486); Tirumala 2023 (D4, arXiv:2308.12284): drop the most prototypical after duplicates.

    Examples
    --------
    >>> prototypicality(np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.1]]), 1).argmin()
    np.int64(1)
    """
    from sklearn.cluster import MiniBatchKMeans

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    fitted = MiniBatchKMeans(min(n_clusters, len(unit)), random_state=seed, n_init=3, batch_size=1024).fit(unit)
    centres = fitted.cluster_centers_ / np.maximum(
        np.linalg.norm(fitted.cluster_centers_, axis=1, keepdims=True), 1e-12
    )
    return np.asarray((unit * centres[fitted.labels_]).sum(axis=1))
