"""Find equal keys among the shards of a corpus by sorted files, and join what they link, within a bound of memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pilotfish.curation.writing import save_array

__all__ = ["join", "write_keys"]

_MEMORY = 1_000_000_000
_LEADERS = 8


def write_keys(folder: Path, bands: NDArray[np.uint64], checks: NDArray[np.unsignedinteger]) -> None:
    """Write the keys of a shard, sorted within each band, and what tells true matches from chance ones.

    Parameters
    ----------
    folder : Path
        Made anew.
    bands : ndarray of uint64, (n, n_bands)
        Keys of each document; 0 matches nothing.
    checks : ndarray of unsigned int, (n, n_checks)
        The share of equal numbers is the similarity of two documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = np.ascontiguousarray(bands.T)
    order = np.argsort(columns, axis=1, kind="stable").astype(np.uint32)
    save_array(folder / "keys.npy", np.take_along_axis(columns, order, axis=1))
    save_array(folder / "documents.npy", order)
    save_array(folder / "checks.npy", checks)


def join(
    folders: Sequence[Path], least: float, memory: int = _MEMORY
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Join documents that share a key and are similar enough; the first of each group leads it.

    Parameters
    ----------
    folders : sequence of Path
        What :func:`write_keys` wrote, in the order of the corpus.
    least : float
        Least share of equal checks of two documents that are joined.
    memory : int
        Bytes that sorting may take at a time; keys are worked off by their leading bits.

    Returns
    -------
    leaders : ndarray of int64, (n,)
        Number of the document that leads each document's group; its own where it stays.
    similarities : ndarray of float32, (n,)
        Of the match that joined it; 1 for a leader.
    bounds : ndarray of int64, (n_folders + 1,)
        Number of the first document of each folder.
    """
    keys = [np.load(folder / "keys.npy", mmap_mode="r") for folder in folders]
    documents = [np.load(folder / "documents.npy", mmap_mode="r") for folder in folders]
    checks = [np.load(folder / "checks.npy", mmap_mode="r") for folder in folders]
    bounds = np.concatenate([[0], np.cumsum([part.shape[0] for part in checks])]).astype(np.int64)
    n = int(bounds[-1])
    parents = np.arange(n, dtype=np.int64)
    similarities = np.ones(n, dtype=np.float32)
    if n == 0:
        return parents, similarities, bounds
    joined = np.concatenate(checks) if sum(part.nbytes for part in checks) <= memory else None
    n_parts = max(1, -(-n * 48 // memory))
    edges = [int(i * 2**64 // n_parts) for i in range(1, n_parts)]
    for band in range(keys[0].shape[0]):
        cuts = [np.searchsorted(part[band], np.array(edges, dtype=np.uint64)) for part in keys]
        cuts = [np.concatenate([[0], cut, [part.shape[1]]]) for cut, part in zip(cuts, keys, strict=True)]
        for p in range(n_parts):
            key = np.concatenate([part[band, c[p] : c[p + 1]] for part, c in zip(keys, cuts, strict=True)])
            number = np.concatenate(
                [
                    part[band, c[p] : c[p + 1]].astype(np.int64) + start
                    for part, c, start in zip(documents, cuts, bounds, strict=False)
                ]
            )
            order = np.argsort(key, kind="stable")
            key, number = key[order], number[order]
            same = key[1:] == key[:-1]
            in_group = np.zeros(key.size, dtype=bool)
            in_group[1:] |= same
            in_group[:-1] |= same
            in_group &= key != 0
            key, number = key[in_group], number[in_group]
            if not key.size:
                continue
            if joined is None:
                needed, at = np.unique(number, return_inverse=True)
                _link(key, number, at, _gathered(checks, bounds, needed), least, parents, similarities)
            else:
                _link(key, number, number, joined, least, parents, similarities)
    return _roots(parents), similarities, bounds


def _gathered(
    checks: Sequence[NDArray[np.unsignedinteger]], bounds: NDArray[np.int64], needed: NDArray[np.int64]
) -> NDArray[np.unsignedinteger]:
    """The checks of some documents, read from their files."""
    rows = np.empty((needed.size, checks[0].shape[1]), dtype=np.result_type(*checks))
    edges = np.searchsorted(needed, bounds)
    for part, start, a, b in zip(checks, bounds, edges, edges[1:], strict=False):
        rows[a:b] = part[needed[a:b] - start]
    return rows


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _root(parents: Any, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _link(key: Any, number: Any, at: Any, checks: Any, least: float, parents: Any, similarities: Any) -> None:
    """Join documents of equal keys (sorted, then by number) to the first similar ones of their run."""
    leaders = np.empty(_LEADERS, dtype=np.int64)
    n_checks = checks.shape[1]
    i = 0
    while i < key.size:
        j = i + 1
        leaders[0], n_leaders = i, 1
        while j < key.size and key[j] == key[i]:
            matched = False
            for k in range(n_leaders):
                a, b = _root(parents, number[leaders[k]]), _root(parents, number[j])
                if a == b:
                    matched = True
                    break
                equal = 0
                for c in range(n_checks):
                    equal += checks[at[leaders[k]], c] == checks[at[j], c]
                if equal >= least * n_checks:
                    similarity = np.float32(equal / n_checks)
                    low, high = min(a, b), max(a, b)
                    parents[high] = low
                    similarities[high] = similarity
                    if high != number[j]:
                        similarities[number[j]] = similarity
                    matched = True
                    break
            if not matched and n_leaders < _LEADERS:
                leaders[n_leaders] = j
                n_leaders += 1
            j += 1
        i = j


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _roots(parents: Any) -> Any:
    for i in range(parents.size):
        parents[i] = _root(parents, i)
    return parents
