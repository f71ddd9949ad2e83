"""What a deduplication decides: keys of documents gathered, joined to groups, and added to an index."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.curation.dedup import Barrier
from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.sorted_keys import join, write_keys
from pilotfish.errors import InputError

__all__ = ["Fates", "GatheredKeys", "extend_index", "resolve"]


@dataclass(frozen=True, slots=True, eq=False)
class Fates:
    """What a barrier decided on the documents of a shard."""

    kept: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    rule: str = "duplicate"


class GatheredKeys:
    """Keys of the documents of a shard, gathered batch by batch."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier = barrier
        self.bands: list[Any] = []
        self.checks: list[Any] = []

    def add(self, batch: Batch, documents: Sequence[Document] = ()) -> None:
        """Gather the keys of a batch; documents may be left out where the barrier reads bytes alone."""
        if len(batch):
            plan = Plan()
            self.barrier.plan(plan)
            bands, checks = self.barrier.keys(batch.scan(plan), np.arange(len(batch)), documents)
            self.bands.append(bands)
            self.checks.append(checks)

    def write(self, folder: Path) -> None:
        """Write them; no folder where there are none."""
        if self.bands:
            write_keys(folder, np.concatenate(self.bands), np.concatenate(self.checks))
        elif folder.exists():
            shutil.rmtree(folder)


def resolve(barrier: Barrier, folders: Sequence[Path], memory: int, run: str = "") -> list[Fates]:
    """What the barrier decides on the documents of each folder of keys; a folder that is not there has none.

    What the run itself has put into the index, before it was killed, does not count.
    """
    earlier = sorted(barrier.index.iterdir()) if barrier.index is not None and barrier.index.is_dir() else []
    earlier = [f for f in earlier if (f / "keys.npy").exists() and not (run and f"-{run}-" in f.name)]
    have = [folder for folder in folders if folder.exists()]
    if not have:
        return [Fates(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64)) for _ in folders]
    widths = {np.load(folder / "checks.npy", mmap_mode="r").shape[1] for folder in (*earlier, *have)}
    if len(widths) > 1:
        raise InputError(
            f"The index {barrier.index} has other settings than this {barrier.name}: use those it began with."
        )
    leaders, similarities, bounds = join([*earlier, *have], barrier.least, memory)
    first = int(bounds[len(earlier)])
    made = {}
    for folder, a, b in zip(have, bounds[len(earlier) :], bounds[len(earlier) + 1 :], strict=False):
        groups = leaders[a:b] - first
        made[folder] = Fates(leaders[a:b] == np.arange(a, b), similarities[a:b].astype(np.float64), groups)
    empty = Fates(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
    return [made.get(folder, empty) for folder in folders]


def extend_index(barrier: Barrier, folders: Sequence[Path], fates: Sequence[Fates], name: str) -> None:
    """Add the keys of what was kept to the index, under the name of the run, whole or not at all."""
    if barrier.index is None:
        return
    if barrier.index.is_dir():
        for place in barrier.index.glob(f"*-{name}-*"):
            shutil.rmtree(place)
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
