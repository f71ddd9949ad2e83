"""Run a recipe: over an iterator of documents, or over shards to files with markers, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from uuid import uuid4

import numpy as np
import orjson

from pilotfish.curation.barriers import Fates, GatheredKeys, extend_index, resolve
from pilotfish.curation.characters import tables
from pilotfish.curation.dedup import Barrier
from pilotfish.curation.documents import (
    Document,
    Rejected,
    Shard,
    as_document,
    is_plain_lines,
    opened_to_write,
    read,
    shards,
    writer,
)
from pilotfish.curation.lines import copy_lines, documents_at, read_lines
from pilotfish.curation.scan import Batch
from pilotfish.curation.steps import Fate, Step, apply
from pilotfish.curation.tally import N_EXAMPLES, Tally
from pilotfish.errors import InputError

__all__ = ["Settings", "curate", "curate_files"]

_BATCH_BYTES = 1_000_000
_BATCH = 1000
Progress = Callable[[str, int, int], None]
AnyStep = Step | Barrier


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
class _Stage:
    """Steps up to one that must see every document."""

    steps: tuple[Step, ...]
    barrier: Barrier | None


def _stages(steps: Sequence[AnyStep]) -> list[_Stage]:
    made: list[_Stage] = []
    local: list[Step] = []
    for step in steps:
        if hasattr(step, "keys"):
            made.append(_Stage(tuple(local), cast(Barrier, step)))
            local = []
        elif hasattr(step, "judge"):
            local.append(step)
        else:
            raise InputError(f"A step is {step!r}: give Rules, a Filter, a deduplication, or another step.")
    return [*made, _Stage(tuple(local), None)]


def curate(
    documents: Iterable[Any],
    steps: Sequence[AnyStep],
    *,
    field: str = "text",
    on_dropped: Callable[[Document, str, str, float], None] | None = None,
    tally: Tally | None = None,
) -> Iterator[Document]:
    """Yield the documents that every step keeps, in their order.

    A recipe without deduplication streams. One with it keeps the documents in a temporary file until the last has come,
    so that the result is that of :func:`curate_files`.

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
                return
            spool = Path(folder) / f"{s}.jsonl"
            with spool.open("wb") as file:
                collected = GatheredKeys(stage.barrier)
                for group in _grouped(source):
                    if s == 0:
                        counted.read(group)
                    kept, fates = apply(group, stage.steps)
                    lose(fates)
                    collected.add(Batch([d.text for d in kept]), kept)
                    for d in kept:
                        file.write(orjson.dumps([d.text, d.id, d.fields], default=str) + b"\n")
            keys = Path(folder) / f"keys-{s}"
            collected.write(keys)
            fate = resolve(stage.barrier, [keys], 1_000_000_000)[0]
            extend_index(stage.barrier, [keys], [fate], uuid4().hex[:12])
            source = _after(spool, stage.barrier, fate, lose)


def _after(spool: Path, barrier: Barrier, fate: Fates, lose: Callable[[Sequence[Fate]], None]) -> Iterator[Document]:
    with spool.open("rb") as file:
        for i, line in enumerate(file):
            document = Document(*orjson.loads(line))
            if fate.kept[i]:
                yield document
            else:
                lose([(document, barrier.name, fate.rule, float(fate.scores[i]))])


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


@dataclass(frozen=True, slots=True)
class _Job:
    """One shard of one stage: files in, files out, a marker."""

    stage: int
    number: int
    source: Shard
    stem: str
    renamed: bool
    out: Path
    steps: _Stage
    before: Barrier | None
    settings: Settings

    def place(self, kind: str, ending: str, stage: int | None = None) -> Path:
        return self.out / ".state" / f"{kind}-{self.stage if stage is None else stage}-{self.number:06d}{ending}"

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


def _work(job: _Job) -> dict[str, Any]:
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


def _work_by_lines(job: _Job, tally: Tally) -> None:
    """Gather the keys of a shard's lines, or copy those that stay."""
    field = job.settings.field
    if job.steps.barrier is not None:
        collected, places = GatheredKeys(job.steps.barrier), [np.zeros((0, 3), dtype=np.int64)]
        for lines in read_lines(job.source, field, job.settings.longest):
            for bad in lines.rejected:
                _reject(job, bad, tally, None)
            collected.add(lines.batch)
            places.append(lines.places)
        collected.write(job.place("keys", ""))
        every = np.concatenate(places)
        tally.n_in, tally.characters_in = len(every), int(every[:, 2].sum())
        with opened_to_write(job.place("places", ".npy")) as file:
            np.save(file, every)
    elif job.before is not None:
        every, fates = np.load(job.place("places", ".npy", job.stage - 1)), _fates(job)
        with opened_to_write(job.target()) as file:
            copy_lines(job.source.path, every[fates.kept], file)

        def shown(which: np.ndarray) -> list[Document]:
            return documents_at(job.source.path, every[which][:N_EXAMPLES], field)

        kept, lost = np.flatnonzero(fates.kept), np.flatnonzero(~fates.kept)
        tally.keep(shown(kept), len(kept), int(every[kept, 2].sum()))
        name, scores = job.before.name, fates.scores[lost].tolist()
        told = [(d, name, fates.rule, score) for d, score in zip(shown(lost), scores, strict=False)]
        tally.drop(told)
        if told:
            tally.dropped[name][fates.rule] = [len(lost), int(every[lost, 2].sum())]


def _work_by_documents(job: _Job, tally: Tally) -> None:
    last = job.steps.barrier is None
    names = iter(orjson.loads(job.place("names", ".json", job.stage - 1).read_bytes())) if job.renamed else None
    collected = None if job.steps.barrier is None else GatheredKeys(job.steps.barrier)
    kept_names: list[str] = []
    rewrites = job.rewrites()
    text = job.place("text", ".jsonl")
    dropped = job.out / "dropped" / f"{job.number:06d}.{job.stage}.jsonl"
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


def _surviving(job: _Job, names: Iterator[str] | None, tally: Tally, lose: Any) -> Iterator[list[Document]]:
    """Documents of a shard part by part, less those that the barrier before has dropped."""
    fates = None if job.before is None else _fates(job)
    n = 0
    for documents, rejected in read(job.source, job.settings.field, job.settings.longest):
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
            tally.drop([(document, job.before.name, fates.rule, score)])
            if lose is not None:
                group = int(fates.groups[n + i])
                why = {"step": job.before.name, "rule": fates.rule, "score": score, "group": group}
                lose.write(document.line(job.settings.field, dropped=why))
        n += len(documents)
        yield [d for d, stay in zip(documents, stays, strict=True) if stay]


def _fates(job: _Job) -> Fates:
    with np.load(job.place("fates", ".npz", job.stage - 1)) as loaded:
        return Fates(loaded["kept"], loaded["scores"], loaded["groups"])


def _reject(job: _Job, bad: Rejected, tally: Tally, lose: Any) -> None:
    if job.settings.on_bad == "refuse":
        raise InputError(f"{bad.where} is no document ({bad.reason}): mend it, or let bad records be skipped.")
    if job.stage == 0:
        tally.reject(bad)
        if lose is not None:
            lose.write(orjson.dumps({"rejected": bad._asdict()}, option=orjson.OPT_APPEND_NEWLINE))


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
        Text of the recipe, which tells one run from another in the same folder.
    progress : callable, optional
        Called with the stage's name, shards done and shards in all.
    on : str
        ``ray://...`` runs the shards as tasks of that cluster.

    Raises
    ------
    InputError
        When the folder belongs to another run, or an input cannot be read.
    """
    settings = settings or Settings()
    if workers < 1 or settings.on_bad not in ("skip", "refuse"):
        raise InputError(
            f"workers is {workers} and on_bad {settings.on_bad!r}: use at least 1, and 'skip' or 'refuse'."
        )
    out, stages, given = Path(out), _stages(steps), [Path(path) for path in inputs]
    sources = shards(given)
    stems = [Path(shard.path).name.split(".")[0] for shard in sources]
    state = out / ".state"
    total = Tally()
    with _owned(out, state, _fingerprint(sources, recipe or repr([_said(s) for s in steps]), settings)):
        renamed = False
        for s, stage in enumerate(stages):
            before = stages[s - 1].barrier if s else None
            jobs = [
                _Job(s, i, source, stem, renamed, out, stage, before, settings)
                for i, (source, stem) in enumerate(zip(sources, stems, strict=True))
            ]
            title = stage.barrier.name if stage.barrier is not None else "write"
            for done in _mapped(jobs, workers, title, progress, on):
                total.add(done)
            if stage.barrier is not None:
                _settle(stage.barrier, jobs, settings.memory)
                if jobs[0].rewrites():
                    sources = [Shard(str(job.place("text", ".jsonl"))) for job in jobs]
                    renamed = True
        with opened_to_write(out / "report.json") as file:
            file.write(orjson.dumps(total.to_json(), option=orjson.OPT_INDENT_2))
        for path in state.iterdir():
            if path.name.startswith(("text-", "keys-", "fates-", "names-", "places-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return total


def _settle(barrier: Barrier, jobs: Sequence[_Job], memory: int) -> None:
    places = [job.place("fates", ".npz") for job in jobs]
    if all(place.exists() for place in places) or all(
        job.place("done", ".json", job.stage + 1).exists() for job in jobs
    ):
        return
    folders = [job.place("keys", "") for job in jobs]
    run = hashlib.sha256(str(jobs[0].out.resolve()).encode()).hexdigest()[:12]
    fates = resolve(barrier, folders, memory, run)
    extend_index(barrier, folders, fates, run)
    for place, fate in zip(places, fates, strict=True):
        with opened_to_write(place) as file:
            np.savez(file, kept=fate.kept, scores=fate.scores, groups=fate.groups)


def _mapped(
    jobs: Sequence[_Job], workers: int, title: str, progress: Progress | None, on: str
) -> Iterator[dict[str, Any]]:
    """Results of jobs in their order, from this process, a pool, or a cluster."""
    if on:
        from pilotfish.curation.cluster import mapped

        yield from mapped(_work, jobs, on)
        return
    tables()
    results: list[dict[str, Any] | None] = [None] * len(jobs)
    if workers == 1 or len(jobs) == 1:
        for i, job in enumerate(jobs):
            results[i] = _work(job)
            if progress is not None:
                progress(title, i + 1, len(jobs))
    else:
        # A child of a process with one thread may be its copy, which starts at once; with more it would be unsafe.
        safe = sys.platform == "linux" and threading.active_count() == 1
        context = multiprocessing.get_context("fork" if safe else "spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            waiting = {pool.submit(_work, job): i for i, job in enumerate(jobs)}
            for n, future in enumerate(as_completed(waiting)):
                results[waiting[future]] = future.result()
                if progress is not None:
                    progress(title, n + 1, len(jobs))
    yield from (result for result in results if result is not None)


@contextmanager
def _owned(out: Path, state: Path, fingerprint: str) -> Iterator[None]:
    """Hold the folder for one run; refuse it to a second, and to another recipe or other inputs."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write to.")
    if out.is_dir() and not state.exists() and any(out.iterdir()):
        raise InputError(f"{out} has files that no run of this recipe wrote: give an empty folder.")
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a") as lock:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"Another run is writing to {out}: wait for it, or give another folder.") from None
        known = state / "run.txt"
        if known.exists() and known.read_text() != fingerprint:
            raise InputError(f"{out} belongs to a run with another recipe or other inputs: give another folder.")
        with opened_to_write(known) as file:
            file.write(fingerprint.encode())
        yield


def _fingerprint(sources: Sequence[Shard], recipe: str, settings: Settings) -> str:
    parts = [recipe, repr(settings)]
    for shard in sources:
        parts.append(f"{Path(shard.path).resolve()} {shard.start} {shard.end} {Path(shard.path).stat().st_size}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _said(step: Any) -> str:
    plain = {k: v for k, v in sorted(vars(step).items()) if isinstance(v, str | int | float | tuple)}
    return f"{type(step).__name__} {plain}"
