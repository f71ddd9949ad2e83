"""Run a recipe: over an iterator of documents, or over shards to files with markers, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import numpy as np
import orjson

from pilotfish.curation.barriers import Barrier, Fates, Gathered, settle
from pilotfish.curation.characters import tables
from pilotfish.curation.described import described
from pilotfish.curation.documents import Document, Shard, as_document
from pilotfish.curation.endings import REPORT, STATE
from pilotfish.curation.reading import shards
from pilotfish.curation.scan import Batch
from pilotfish.curation.steps import Fate, Step, apply
from pilotfish.curation.tally import Tally
from pilotfish.curation.tasks import Job, Settings, Stage, work
from pilotfish.curation.writing import check_ending, opened_to_write
from pilotfish.errors import InputError
from pilotfish.files import locked

__all__ = ["Settings", "curate", "curate_files"]

_BATCH_BYTES = 1_000_000
_BATCH = 1000
Progress = Callable[[str, int, int], None]


class Composed(Protocol):
    """A step made of others, run in their order."""

    name: str

    @property
    def steps(self) -> Sequence[AnyStep]:
        """What it is made of."""
        ...


AnyStep = Step | Barrier | Composed


def _flat(steps: Sequence[AnyStep]) -> Iterator[Any]:
    for step in steps:
        if hasattr(step, "steps"):
            yield from _flat(step.steps)
        else:
            yield step


def _stages(steps: Sequence[AnyStep]) -> list[Stage]:
    made: list[Stage] = []
    local: list[Step] = []
    for step in _flat(steps):
        if hasattr(step, "keys") or hasattr(step, "choose"):
            made.append(Stage(tuple(local), cast(Barrier, step)))
            local = []
        elif hasattr(step, "judge"):
            local.append(step)
        else:
            raise InputError(f"A step is {step!r}: give Rules, a Filter, a deduplication, or another step.")
    return [*made, Stage(tuple(local), None)]


def curate(
    documents: Iterable[Any],
    steps: Sequence[AnyStep],
    *,
    field: str = "text",
    on_dropped: Callable[[Document, str, str, float], None] | None = None,
    tally: Tally | None = None,
) -> Iterator[Document]:
    """Yield the documents that every step keeps, in their order.

    A recipe without a step that sees every document streams. One with such a step keeps the documents in a temporary
    file until the last has come, so that the result is that of :func:`curate_files`.

    Parameters
    ----------
    documents : iterable of Document, mapping or str
        The documents.
    steps : sequence of step
        What to do with them.
    field : str
        Name of the text field of mappings.
    on_dropped : callable, optional
        Called with each dropped document, step, rule and score.
    tally : Tally, optional
        Counts what happens.

    Raises
    ------
    InputError
        When an item is no document or a step is none.

    Examples
    --------
    >>> from pilotfish.curation import Rules
    >>> [d.id for d in curate([{"id": "a", "text": "Too short."}], [Rules.gopher()])]
    []
    """
    if isinstance(documents, str | bytes | Mapping):
        raise InputError(f"The documents are one {type(documents).__name__}: give a list of them.")
    stages = _stages(steps)
    counted = Tally() if tally is None else tally

    def lose(fates: Sequence[Fate]) -> None:
        counted.drop(fates)
        if on_dropped is not None:
            for fate in fates:
                on_dropped(*fate)

    def read_all() -> Iterator[Document]:
        for n, item in enumerate(documents):
            yield as_document(item, field, str(n))

    source = read_all()
    with tempfile.TemporaryDirectory(prefix="pilotfish-") as folder:
        for s, stage in enumerate(stages):
            if stage.barrier is None:
                for group in _grouped(source):
                    if s == 0:
                        counted.read(group)
                    kept, fates = apply(group, stage.steps)
                    lose(fates)
                    counted.keep(kept)
                    yield from kept
                counted.sort([step.name for step in _flat(steps)])
                return
            spool, spooled = Path(folder) / f"{s}.pickle", 0
            with spool.open("wb") as file:
                collected = Gathered(stage.barrier)
                for group in _grouped(source):
                    if s == 0:
                        counted.read(group)
                    kept, fates = apply(group, stage.steps)
                    lose(fates)
                    collected.add(Batch([d.text for d in kept]), kept)
                    spooled += len(kept)
                    for d in kept:
                        pickle.dump(d, file)
            keys = Path(folder) / f"keys-{s}"
            collected.write(keys)
            fate = settle(stage.barrier, [keys], 1_000_000_000, uuid4().hex[:12])[0]
            source = _after(spool, spooled, stage.barrier, fate, lose)


def _after(
    spool: Path, spooled: int, barrier: Barrier, fate: Fates, lose: Callable[[Sequence[Fate]], None]
) -> Iterator[Document]:
    with spool.open("rb") as file:
        for i in range(spooled):
            # Of a file that this very call wrote, into a folder of its own: so documents come out as they were given.
            document: Document = pickle.load(file)  # noqa: S301
            if not barrier.rule or fate.kept[i]:
                yield document
            else:
                lose([(document, barrier.name, barrier.rule, float(fate.scores[i]))])


def _grouped(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES or len(group) >= _BATCH:
            yield group
            group, size = [], 0
    if group:
        yield group


def curate_files(
    inputs: Iterable[str | Path],
    out: str | Path,
    steps: Sequence[AnyStep],
    *,
    workers: int = 1,
    settings: Settings | None = None,
    recipe: str = "",
    progress: Progress | None = None,
    on: str = "",
) -> Tally:
    """Run steps over files into a folder; the same files come out for any number of workers.

    Each shard of each stage ends with a marker, so that a run that was killed goes on where it stopped.

    Parameters
    ----------
    inputs : iterable of path
        Files and folders.
    out : path
        Folder to write; one run at a time, and one recipe.
    steps : sequence of step
        What to do.
    workers : int
        Processes.
    settings : Settings, optional
        How files are read and written.
    recipe : str
        Text that tells one run from another in the same folder, such as the ``fingerprint`` of a recipe.
    progress : callable, optional
        Called with the stage's name, shards done and shards in all.
    on : str
        ``ray://...`` runs the shards as tasks of that cluster.

    Raises
    ------
    InputError
        When the folder belongs to another run (another recipe, other inputs, or other content of a file that a step
        reads), or an input cannot be read.
    """
    settings = settings or Settings()
    if workers < 1 or settings.on_bad not in ("skip", "refuse"):
        raise InputError(
            f"workers is {workers} and on_bad {settings.on_bad!r}: use at least 1, and 'skip' or 'refuse'."
        )
    if settings.longest < 1 or settings.memory < 1:
        raise InputError(f"longest is {settings.longest} and memory {settings.memory}: give numbers of bytes.")
    # Said now, and not when all is done but the writing.
    check_ending(settings.ending)
    out, stages = Path(out), _stages(steps)
    sources = shards(inputs, without=out)
    stems = [Path(shard.path).name.split(".")[0] for shard in sources]
    state = out / STATE
    total = Tally()
    fingerprint = _fingerprint(sources, recipe or described(list(_flat(steps))), settings)
    with _owned(out, state, fingerprint), _hands(min(workers, len(sources)), on) as mapped:
        named = -1
        for s, stage in enumerate(stages):
            before = stages[s - 1].barrier if s else None
            before = before if before is not None and before.rule else None
            jobs = [
                Job(s, i, source, stem, named, out, stage, before, settings)
                for i, (source, stem) in enumerate(zip(sources, stems, strict=True))
            ]
            title = stage.barrier.name if stage.barrier is not None else "write"
            for n, done in enumerate(mapped(jobs), 1):
                total.add(done)
                if progress is not None:
                    progress(title, n, len(jobs))
            if stage.barrier is not None:
                _settle(stage.barrier, jobs, settings.memory, fingerprint)
                if jobs[0].rewrites():
                    sources = [Shard(str(job.place("text", ".jsonl"))) for job in jobs]
                    named = s
        gone = [job.target() for job in jobs if not job.target().exists()]
        if gone:
            raise InputError(f"{gone[0]} was written by this run and is gone: delete {out} and give the command again.")
        total.sort([step.name for step in _flat(steps)])
        with opened_to_write(out / REPORT) as file:
            file.write(orjson.dumps(total.to_json(), option=orjson.OPT_INDENT_2))
        for path in state.iterdir():
            if path.name.startswith(("text-", "keys-", "fates-", "names-", "places-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return total


def _settle(barrier: Barrier, jobs: Sequence[Job], memory: int, fingerprint: str) -> None:
    places = [job.place("fates", ".npz") for job in jobs]
    if all(place.exists() for place in places) or all(
        job.place("done", ".json", job.stage + 1).exists() for job in jobs
    ):
        return
    folders = [job.place("keys", "") for job in jobs]
    # A folder may be emptied and used for other inputs: that is another run, for which an index has seen this one.
    run = hashlib.sha256(f"{jobs[0].out.resolve()} {fingerprint}".encode()).hexdigest()[:12]
    fates = settle(barrier, folders, memory, run)
    for place, fate in zip(places, fates if barrier.rule else [], strict=bool(barrier.rule)):
        with opened_to_write(place) as file:
            np.savez(file, kept=fate.kept, scores=fate.scores, groups=fate.groups)


@contextmanager
def _hands(workers: int, on: str) -> Iterator[Callable[[Sequence[Job]], Iterator[dict[str, Any]]]]:
    """Who does the jobs of all stages, with results in their order: this process, a pool, or a cluster."""
    if on:
        from pilotfish.curation.cluster import mapped

        yield lambda jobs: mapped(work, jobs, on)
        return
    tables()
    if workers < 2:
        yield lambda jobs: map(work, jobs)
        return
    # A child of a process with one thread may be its copy, which starts at once; with more it would be unsafe.
    safe = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if safe else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield lambda jobs: pool.map(work, jobs)
        except BrokenProcessPool as error:
            raise InputError(
                f"One of {workers} workers was killed, most often for want of memory: give the same command again, "
                "with fewer workers."
            ) from error


def _end_with_parent() -> None:
    """Let a worker end at once, and without a word, when its parent is gone or the user interrupts.

    A worker that outlived its parent would hold the lock of the folder, and go on writing to it.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextmanager
def _owned(out: Path, state: Path, fingerprint: str) -> Iterator[None]:
    """Hold the folder for one run; refuse it to a second, and to another recipe or other inputs."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write to.")
    known = state / "run.txt"
    if out.is_dir() and not known.exists() and any(path != state for path in out.iterdir()):
        raise InputError(f"{out} has files that no run of this recipe wrote: give an empty folder.")
    with locked(state / "lock") as free:
        if not free:
            raise InputError(f"Another run is writing to {out}: wait for it, or give another folder.")
        if known.exists() and known.read_text() != fingerprint:
            raise InputError(
                f"{out} belongs to a run with another recipe, other inputs, or files of steps that have changed since: "
                "give another folder."
            )
        with opened_to_write(known) as file:
            file.write(fingerprint.encode())
        yield


def _fingerprint(sources: Sequence[Shard], recipe: str, settings: Settings) -> str:
    parts = [recipe, repr(settings)]
    for shard in sources:
        about = Path(shard.path).stat()
        where = f"{Path(shard.path).resolve()} {shard.start} {shard.end}"
        parts.append(f"{where} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
