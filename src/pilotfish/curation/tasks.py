"""One shard of one stage of a run: files in, files out, a marker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from pilotfish.curation.barriers import Barrier, Fates, Gathered
from pilotfish.curation.documents import Document, Rejected, Shard
from pilotfish.curation.endings import DROPPED, STATE, is_plain_lines
from pilotfish.curation.lines import copy_lines, documents_at, read_lines
from pilotfish.curation.reading import read
from pilotfish.curation.scan import Batch
from pilotfish.curation.steps import Step, apply
from pilotfish.curation.tally import N_EXAMPLES, Tally
from pilotfish.curation.writing import opened_to_write, save_array, writer
from pilotfish.errors import InputError

__all__ = ["Job", "Settings", "Stage", "work"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How files are read and written.

    Parameters
    ----------
    field : str
        Name of the text field.
    ending : str
        Ending of the files written: .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt.
    on_bad : {"skip", "refuse"}
        What to do with records that are no documents: count and skip them, or stop.
    write_dropped : bool
        Write dropped documents, with what dropped them, under ``dropped/``.
    longest : int
        Longest record read, in bytes.
    memory : int
        Bytes that the search for duplicates may sort at a time.
    """

    field: str = "text"
    ending: str = ".jsonl"
    on_bad: Literal["skip", "refuse"] = "skip"
    write_dropped: bool = False
    longest: int = 64_000_000
    memory: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps up to one that must see every document."""

    steps: tuple[Step, ...]
    barrier: Barrier | None


@dataclass(frozen=True, slots=True)
class Job:
    """What a task is given: shard and stage, the stage that wrote its names (-1: none), where to write, and how."""

    stage: int
    number: int
    source: Shard
    stem: str
    named: int
    out: Path
    steps: Stage
    before: Barrier | None
    settings: Settings

    def place(self, kind: str, ending: str, stage: int | None = None) -> Path:
        return self.out / STATE / f"{kind}-{self.stage if stage is None else stage}-{self.number:06d}{ending}"

    def target(self) -> Path:
        return self.out / f"{self.number:06d}-{self.stem}{self.settings.ending}"

    def rewrites(self) -> bool:
        """Whether the next stage reads what this one leaves, not what it has read."""
        return self.steps.barrier is not None and (bool(self.steps.steps) or self.before is not None)

    def by_lines(self) -> bool:
        """Whether lines can be read, and copied, without making documents of them."""
        if self.steps.steps or self.settings.write_dropped or not is_plain_lines(self.source.path):
            return False
        if self.steps.barrier is not None:
            return self.before is None and self.steps.barrier.by_bytes
        return is_plain_lines(self.target()) and self.place("places", ".npy", self.stage - 1).exists()


def work(job: Job) -> dict[str, Any]:
    """Run one stage of one shard; at once done where its marker says so."""
    marker = job.place("done", ".json")
    if marker.exists():
        done: dict[str, Any] = orjson.loads(marker.read_bytes())
        return done
    tally = Tally()
    if job.by_lines():
        _work_by_lines(job, tally)
    else:
        _work_by_documents(job, tally)
    with opened_to_write(marker) as file:
        file.write(orjson.dumps(tally.to_json()))
    return tally.to_json()


def _work_by_lines(job: Job, tally: Tally) -> None:
    """Gather the keys of a shard's lines, or copy those that stay."""
    field = job.settings.field
    if job.steps.barrier is not None:
        collected, places = Gathered(job.steps.barrier), [np.zeros((0, 4), dtype=np.int64)]
        for lines in read_lines(job.source, field, job.settings.longest):
            for bad in lines.rejected:
                _reject(job, bad, tally, None)
            collected.add(lines.batch)
            places.append(lines.places)
        collected.write(job.place("keys", ""))
        every = np.concatenate(places)
        tally.n_in, tally.characters_in = len(every), int(every[:, 2].sum())
        save_array(job.place("places", ".npy"), every)
    elif job.before is not None:
        every, fates = np.load(job.place("places", ".npy", job.stage - 1)), _fates(job)
        with opened_to_write(job.target()) as file:
            copy_lines(job.source.path, every[fates.kept], file)

        def shown(which: np.ndarray) -> list[Document]:
            return documents_at(job.source, every[which][:N_EXAMPLES], field)

        kept, lost = np.flatnonzero(fates.kept), np.flatnonzero(~fates.kept)
        tally.keep(shown(kept), len(kept), int(every[kept, 2].sum()))
        name, rule, scores = job.before.name, job.before.rule, fates.scores[lost].tolist()
        told = [(d, name, rule, score) for d, score in zip(shown(lost), scores, strict=False)]
        tally.drop(told)
        if told:
            tally.dropped[name][rule] = [len(lost), int(every[lost, 2].sum())]


def _work_by_documents(job: Job, tally: Tally) -> None:
    last = job.steps.barrier is None
    names = iter(orjson.loads(job.place("names", ".json", job.named).read_bytes())) if job.named >= 0 else None
    collected = None if job.steps.barrier is None else Gathered(job.steps.barrier)
    kept_names: list[str] = []
    rewrites = job.rewrites()
    text = job.place("text", ".jsonl")
    dropped = job.out / DROPPED / f"{job.number:06d}.{job.stage}.jsonl"
    with (
        writer(job.target() if last else text, job.settings.field) if last or rewrites else _nowhere() as keep,
        opened_to_write(dropped) if job.settings.write_dropped else _nowhere() as lose,
    ):
        first = job.stage == 0
        for group in _surviving(job, names, tally, lose):
            if first:
                tally.read(group)
            kept, lost = apply(group, job.steps.steps)
            tally.drop(lost)
            if job.settings.write_dropped:
                for document, step, rule, score in lost:
                    lose.write(document.line(job.settings.field, dropped={"step": step, "rule": rule, "score": score}))
            if collected is not None:
                collected.add(Batch([d.text for d in kept]), kept)
                kept_names += [d.id for d in kept] if rewrites else []
            if last or rewrites:
                keep(kept)
            if last:
                tally.keep(kept)
    if job.settings.write_dropped and not dropped.stat().st_size:
        dropped.unlink()
    if rewrites:
        with opened_to_write(job.place("names", ".json")) as file:
            file.write(orjson.dumps(kept_names))
    if collected is not None:
        collected.write(job.place("keys", ""))


@contextmanager
def _nowhere() -> Iterator[Any]:
    yield None


def _surviving(job: Job, names: Iterator[str] | None, tally: Tally, lose: Any) -> Iterator[list[Document]]:
    """Documents of a shard part by part, less those that the barrier before has dropped."""
    fates = None if job.before is None else _fates(job)
    n = 0
    # What an earlier stage wrote was let in already, and may have grown since.
    longest = job.settings.longest if names is None else sys.maxsize
    for documents, rejected in read(job.source, job.settings.field, longest):
        for bad in rejected:
            _reject(job, bad, tally, lose)
        if names is not None:
            documents = [d._replace(id=name) for d, name in zip(documents, names, strict=False)]
        if fates is None or job.before is None:
            yield documents
            continue
        stays = fates.kept[n : n + len(documents)].tolist()
        for i in [i for i, stay in enumerate(stays) if not stay]:
            document, score = documents[i], float(fates.scores[n + i])
            tally.drop([(document, job.before.name, job.before.rule, score)])
            if lose is not None:
                why = {"step": job.before.name, "rule": job.before.rule, "score": score}
                group = {"group": int(fates.groups[n + i])} if fates.groups.size else {}
                lose.write(document.line(job.settings.field, dropped=why | group))
        n += len(documents)
        yield [d for d, stay in zip(documents, stays, strict=True) if stay]


def _fates(job: Job) -> Fates:
    with np.load(job.place("fates", ".npz", job.stage - 1)) as loaded:
        return Fates(loaded["kept"], loaded["scores"], loaded["groups"])


def _reject(job: Job, bad: Rejected, tally: Tally, lose: Any) -> None:
    if job.settings.on_bad == "refuse":
        raise InputError(f"{bad.where} is no document ({bad.reason}): mend it, or let bad records be skipped.")
    if job.stage == 0:
        tally.reject(bad)
        if lose is not None:
            lose.write(orjson.dumps({"rejected": bad._asdict()}, option=orjson.OPT_APPEND_NEWLINE))
