"""Choose a number of documents of files, beside a random and a full control."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pilotfish.curation.documents import Document
from pilotfish.curation.endings import REPORT, STATE
from pilotfish.curation.importance import GumbelTopK, ImportanceWeight
from pilotfish.curation.picks import Pick
from pilotfish.curation.reading import read, shards
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.writing import opened_to_write, writer
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, IntArray

__all__ = ["Chosen", "choose_files", "resample_files"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a selection gave.

    Parameters
    ----------
    n_in, n_out, n_rejected : int
        Documents read and chosen, and records that are none.
    likeness : dict
        Mean log-ratio to the target per word, mark and pair, in nats: of what was chosen, of as many at random, of all.
    """

    n_in: int
    n_out: int
    n_rejected: int
    likeness: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain data."""
        counts = {"n_in": self.n_in, "n_out": self.n_out, "n_rejected": self.n_rejected}
        return {**counts, "likeness": {k: round(v, 4) for k, v in self.likeness.items()}}


def _documents(inputs: Iterable[str | Path], field: str, rejected: list[int]) -> Iterator[list[Document]]:
    for shard in shards(inputs):
        for documents, bad in read(shard, field):
            rejected[0] += len(bad)
            if documents:
                yield documents


def _scores(weight: ImportanceWeight, documents: Sequence[Document]) -> tuple[FloatArray, FloatArray]:
    plan = Plan()
    weight.plan(plan)
    batch = Batch([d.text for d in documents]).scan(plan)
    return weight.of(batch), np.maximum(2 * batch.n_runs - 1, 1).astype(np.float64)


def _controls(scores: FloatArray, sizes: FloatArray, chosen: IntArray, seed: int) -> dict[str, float]:
    random = np.random.default_rng(seed + 1).permutation(scores.size)[: chosen.size]
    parts = {"chosen": chosen, "random": random, "full": np.arange(scores.size)}
    return {name: float(scores[at].sum() / sizes[at].sum()) if at.size else 0.0 for name, at in parts.items()}


def resample_files(
    inputs: Sequence[str | Path],
    like: Sequence[str | Path],
    out: str | Path,
    n: int,
    *,
    field: str = "text",
    seed: int = 0,
    ending: str = ".jsonl",
) -> Chosen:
    """Choose ``n`` documents by importance resampling, reading the files part by part: to count, to score, to write.

    Raises
    ------
    InputError
        When there is nothing to choose from, or the folder has files already.
    """
    _check_free(out)
    target = [d.text for part in _documents(like, field, [0]) for d in part]
    rejected = [0]
    weight = ImportanceWeight().fit(target, ([d.text for d in part] for part in _documents(inputs, field, rejected)))
    found = [_scores(weight, part) for part in _documents(inputs, field, [0])]
    if not found:
        raise InputError("The files have no document: give files with texts.")
    scores, sizes = (np.concatenate([pair[i] for pair in found]) for i in range(2))
    chosen = GumbelTopK(n, seed).decide(scores).indices
    _write((d for part in _documents(inputs, field, [0]) for d in part), chosen, out, field, ending)
    return _finished(Chosen(scores.size, chosen.size, rejected[0], _controls(scores, sizes, chosen, seed)), out)


def choose_files(
    inputs: Sequence[str | Path],
    like: Sequence[str | Path],
    out: str | Path,
    pick: Pick,
    *,
    field: str = "text",
    seed: int = 0,
    ending: str = ".jsonl",
) -> Chosen:
    """Choose by a function of all documents and of those that are like what is wanted; all are kept in memory.

    Raises
    ------
    InputError
        When there is nothing to choose from, or the folder has files already.
    """
    _check_free(out)
    rejected = [0]
    pool = [d for part in _documents(inputs, field, rejected) for d in part]
    target = [d for part in _documents(like, field, [0]) for d in part]
    if not pool or not target:
        raise InputError(f"There are {len(pool)} documents and {len(target)} of the target: give both.")
    chosen = np.asarray(pick(pool, target), dtype=np.int64)
    _write(iter(pool), chosen, out, field, ending)
    weight = ImportanceWeight().fit([d.text for d in target], [d.text for d in pool])
    scores, sizes = _scores(weight, pool)
    return _finished(Chosen(len(pool), chosen.size, rejected[0], _controls(scores, sizes, chosen, seed)), out)


def _check_free(out: str | Path) -> None:
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: give another folder.")


def _write(documents: Iterator[Document], chosen: IntArray, out: str | Path, field: str, ending: str) -> None:
    wanted = set(chosen.tolist())
    with writer(Path(out) / f"chosen{ending}", field) as write:
        write([document for i, document in enumerate(documents) if i in wanted])


def _finished(made: Chosen, out: str | Path) -> Chosen:
    # Says that a run wrote the folder, so that its report is not read as documents.
    (Path(out) / STATE).mkdir(exist_ok=True)
    with opened_to_write(Path(out) / REPORT) as file:
        file.write(orjson.dumps(made.to_json(), option=orjson.OPT_INDENT_2))
    return made
