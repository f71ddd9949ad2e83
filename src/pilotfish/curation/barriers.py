"""Steps that see every document before one is dropped: what they gather shard by shard, and what they decide on all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.dedup import Deduplication
from pilotfish.curation.described import described
from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.sorted_keys import join, write_keys
from pilotfish.curation.writing import opened_to_write, save_array
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = ["Barrier", "Fates", "Gathered", "Selection", "settle"]


class Selection(Protocol):
    """A step that chooses among all documents by numbers of each.

    An empty ``rule`` says that it drops nothing and only learns from the numbers what the next step needs.
    """

    name: str
    rule: str
    by_bytes: bool

    def plan(self, plan: Plan) -> None:
        """Say what the one pass over the text must yield."""
        ...

    def numbers(self, batch: Batch, documents: Sequence[Document]) -> NDArray[Any]:
        """What is to be known of the documents of a batch."""
        ...

    def joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The numbers of a shard, of those of its batches."""
        ...

    def choose(self, shards: Sequence[NDArray[Any]]) -> list[Fates]:
        """What becomes of the documents of each shard; nothing where there is no rule."""
        ...


Barrier = Deduplication | Selection


@dataclass(frozen=True, slots=True, eq=False)
class Fates:
    """What a barrier decided on the documents of a shard; ``groups`` are those of duplicates."""

    kept: NDArray[np.bool_]
    scores: FloatArray
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def split(cls, kept: NDArray[np.bool_], scores: FloatArray, sizes: Sequence[int]) -> list[Fates]:
        """The fates of each shard, of those of all documents (n,) and the sizes of the shards."""
        ends = np.cumsum(sizes)[:-1]
        return [cls(*parts) for parts in zip(np.split(kept, ends), np.split(scores, ends), strict=True)]


# Of an index: what its keys were made with.
_ABOUT = "settings.txt"
_NOTHING = Fates(np.zeros(0, bool), np.zeros(0))


class Gathered:
    """What a barrier needs of the documents of a shard, gathered batch by batch."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier = barrier
        self.parts: list[Any] = []

    def add(self, batch: Batch, documents: Sequence[Document] = ()) -> None:
        """Gather of a batch; documents may be left out where the barrier reads bytes alone."""
        if not len(batch):
            return
        plan = Plan()
        self.barrier.plan(plan)
        batch.scan(plan)
        if hasattr(self.barrier, "keys"):
            self.parts.append(self.barrier.keys(batch, np.arange(len(batch)), documents))
        else:
            self.parts.append(self.barrier.numbers(batch, documents))

    def write(self, folder: Path) -> None:
        """Write it; no folder where there is none."""
        if not self.parts:
            if folder.exists():
                shutil.rmtree(folder)
        elif hasattr(self.barrier, "keys"):
            write_keys(folder, *(np.concatenate(part) for part in zip(*self.parts, strict=True)))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_array(folder / "numbers.npy", self.barrier.joined(self.parts))


def settle(barrier: Barrier, folders: Sequence[Path], memory: int, run: str) -> list[Fates]:
    """What the barrier decides on the documents of each folder of what was gathered; one that is not there has none.

    An index is extended by what stays, under the name of the run. A barrier without a rule decides nothing.
    """
    if hasattr(barrier, "keys"):
        fates = _joined(cast(Deduplication, barrier), folders, memory, run)
        _extend_index(cast(Deduplication, barrier), folders, fates, run)
        return fates
    shards = {f: np.load(f / "numbers.npy", mmap_mode="r") for f in folders if f.exists()}
    if not shards:
        return [_NOTHING for _ in folders]
    fates = barrier.choose(list(shards.values()))
    made = dict(zip(shards, fates, strict=bool(barrier.rule)))
    return [made.get(folder, _NOTHING) for folder in folders]


def _joined(barrier: Deduplication, folders: Sequence[Path], memory: int, run: str) -> list[Fates]:
    """The groups of duplicates. What the run itself has put into the index, before it was killed, does not count."""
    earlier = sorted(barrier.index.iterdir()) if barrier.index is not None and barrier.index.is_dir() else []
    earlier = [f for f in earlier if f.name[0] != "." and (f / "keys.npy").exists() and f"-{run}-" not in f.name]
    have = [folder for folder in folders if folder.exists()]
    if not have:
        return [_NOTHING for _ in folders]
    shapes = {
        (len(np.load(folder / "keys.npy", mmap_mode="r")), np.load(folder / "checks.npy", mmap_mode="r").shape[1])
        for folder in (*earlier, *have)
    }
    about = None if barrier.index is None else barrier.index / _ABOUT
    if len(shapes) > 1 or (about is not None and about.exists() and about.read_text("utf-8") != _settings(barrier)):
        raise InputError(
            f"The index {barrier.index} has other settings than this {barrier.name}: use those it began with."
        )
    leaders, similarities, bounds = join([*earlier, *have], barrier.least, memory)
    first = int(bounds[len(earlier)])
    made = {}
    for folder, a, b in zip(have, bounds[len(earlier) :], bounds[len(earlier) + 1 :], strict=False):
        groups = leaders[a:b] - first
        made[folder] = Fates(leaders[a:b] == np.arange(a, b), similarities[a:b].astype(np.float64), groups)
    return [made.get(folder, _NOTHING) for folder in folders]


def _settings(barrier: Deduplication) -> str:
    """What the keys of documents come of: least similarity and place of the index aside."""
    return f"{barrier.name} {described({k: v for k, v in vars(barrier).items() if k not in ('index', 'least')})}"


def _extend_index(barrier: Deduplication, folders: Sequence[Path], fates: Sequence[Fates], name: str) -> None:
    """Add the keys of what was kept to the index, under the name of the run, whole or not at all."""
    if barrier.index is None:
        return
    if barrier.index.is_dir():
        for place in barrier.index.glob(f"*-{name}-*"):
            shutil.rmtree(place)
    with opened_to_write(barrier.index / _ABOUT) as file:
        file.write(_settings(barrier).encode())
    for i, (folder, fate) in enumerate(zip(folders, fates, strict=True)):
        if not folder.exists() or not fate.kept.any():
            continue
        checks = np.load(folder / "checks.npy")[fate.kept]
        keys, documents = np.load(folder / "keys.npy"), np.load(folder / "documents.npy")
        bands = np.empty((fate.kept.size, keys.shape[0]), dtype=np.uint64)
        for band in range(keys.shape[0]):
            bands[documents[band], band] = keys[band]
        n = sum(1 for made in barrier.index.glob("*") if made.is_dir()) if barrier.index.is_dir() else 0
        place = barrier.index / f"{n:06d}-{name}-{i:06d}"
        half = barrier.index / f".{place.name}"
        write_keys(half, bands[fate.kept], checks)
        half.rename(place)
