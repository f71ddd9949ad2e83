"""Duplicates: equal texts, and texts whose words nearly agree."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.documents import Document
from pilotfish.curation.ngrams import permutations
from pilotfish.curation.scan import Batch, Plan, Signing
from pilotfish.errors import InputError
from pilotfish.protocols import IntArray

__all__ = ["Deduplication", "ExactDedup", "MinHashDedup"]

Keys = tuple[NDArray[np.uint64], NDArray[np.unsignedinteger]]


class Deduplication(Protocol):
    """A step that compares every document with those that share a key with it; the first of each group stays.

    ``by_bytes`` says that its keys come of a batch's bytes, so that documents need not be given.
    """

    name: str
    rule: str
    least: float
    index: Path | None
    by_bytes: bool

    def plan(self, plan: Plan) -> None:
        """Say what the one pass over the text must yield."""
        ...

    def keys(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Keys:
        """Keys (n, n_bands) of each document, 0 matching nothing, and the checks (n, n_checks) that confirm a match."""
        ...


class ExactDedup:
    """Drop a document whose text has been seen, letter by letter.

    Parameters
    ----------
    index : path, optional
        Folder of the keys of documents kept by earlier runs; those of this run are added to it.

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> [d.text for d in curate(["one", "two", "one"], [ExactDedup()])]
    ['one', 'two']
    """

    name = "exact_dedup"
    rule = "duplicate"
    least = 1.0
    by_bytes = True

    def __init__(self, index: str | Path | None = None) -> None:
        self.index = None if index is None else Path(index)

    def plan(self, plan: Plan) -> None:
        """Nothing is needed of the pass."""

    def keys(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Keys:  # noqa: ARG002
        """One key and a 128-bit digest of each text."""
        memory = batch.buffer.data
        digests = b"".join(
            blake2b(memory[batch.offsets[i] : batch.offsets[i + 1]], digest_size=16).digest() for i in rows
        )
        checks = np.frombuffer(digests, dtype=np.uint32).reshape(-1, 4)
        return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)[:, :1] | np.uint64(1), checks


class MinHashDedup:
    """Drop a document most of whose word n-grams another has: MinHash, banding, groups; the first of a group stays.

    Parameters
    ----------
    n_bands, n_rows : int
        Bands of the signature, and numbers in each: two documents of similarity s meet with probability
        1 - (1 - s ** n_rows) ** n_bands.
    n_gram : int
        Words in an n-gram; words are runs of letters and digits in lower case.
    least : float
        Least estimated Jaccard similarity, from the whole signature, of two documents that are joined.
    index : path, optional
        Folder of the keys of documents kept by earlier runs; those of this run are added to it.
    seed : int
        Seed of the permutations; an index works only with its own.

    References
    ----------
    Broder 1997; Lee et al. 2022 (arXiv:2107.06499), appendix A; Penedo 2024 (arXiv:2406.17557): 14 bands of 8.

    Examples
    --------
    >>> from pilotfish.curation import curate
    >>> text = "the quick brown fox jumps over the lazy dog and runs far away into the dark green wood"
    >>> [d.text[:3] for d in curate([text, text + " again", "quite another text"], [MinHashDedup()])]
    ['the', 'qui']
    """

    name = "minhash_dedup"
    rule = "duplicate"
    by_bytes = True

    def __init__(
        self,
        n_bands: int = 14,
        n_rows: int = 8,
        n_gram: int = 5,
        least: float = 0.5,
        index: str | Path | None = None,
        seed: int = 1,
    ) -> None:
        if min(n_bands, n_rows, n_gram) < 1 or not 0 <= least <= 1:
            raise InputError(
                f"MinHashDedup has {n_bands} bands of {n_rows} rows, {n_gram}-grams and least {least}: "
                "use at least 1 of each, and a similarity from 0 to 1."
            )
        self.n_bands = n_bands
        self.n_rows = n_rows
        self.n_gram = n_gram
        self.least = least
        self.index = None if index is None else Path(index)
        self.seed = seed

    def plan(self, plan: Plan) -> None:
        """Ask for signatures."""
        plan.signing = Signing(self.n_gram, permutations(self.n_bands * self.n_rows, self.seed), self.n_bands)

    def keys(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Keys:  # noqa: ARG002
        """The bands and the signature of each document."""
        bands = batch.bands[rows]
        bands[batch.n_grams[rows] == 0] = 0
        return bands, batch.signatures[rows]
