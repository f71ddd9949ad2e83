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

from pilotfish.curation.characters import tables
from pilotfish.curation.dedup import Barrier
from pilotfish.curation.documents import (
    Document,
    Shard,
    as_document,
    opened_to_write,
    read,
    shards,
    writer,
)
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.sorted_keys import join, write_keys
from pilotfish.curation.steps import Fate, Step, apply
from pilotfish.curation.tally import Tally
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
                collected = _Keys(stage.barrier)
                for group in _grouped(source):
                    if s == 0:
                        counted.read(group)
                    kept, fates = apply(group, stage.steps)
                    lose(fates)
                    collected.add(kept)
                    for d in kept:
                        file.write(orjson.dumps([d.text, d.id, d.fields], default=str) + b"\n")
            keys = Path(folder) / f"keys-{s}"
            collected.write(keys)
            fate = _resolve(stage.barrier, [keys], 1_000_000_000)[0]
            _extend_index(stage.barrier, [keys], [fate], uuid4().hex[:12])
            source = _after(spool, stage.barrier, fate, lose)


def _after(spool: Path, barrier: Barrier, fate: _Fates, lose: Callable[[Sequence[Fate]], None]) -> Iterator[Document]:
    with spool.open("rb") as file:
        for i, line in enumerate(file):
            document = Document(*orjson.loads(line))
            if fate.kept[i]:
                yield document
            else:
                lose([(document, barrier.name, fate.rule, float(fate.scores[i]))])


@dataclass(frozen=True, slots=True, eq=False)
class _Fates:
    """What a barrier decided on the documents of a shard."""

    kept: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    rule: str = "duplicate"


class _Keys:
    """Keys of the documents of a shard, gathered batch by batch."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier = barrier
        self.bands: list[Any] = []
        self.checks: list[Any] = []

    def add(self, documents: Sequence[Document]) -> None:
        if documents:
            plan = Plan()
            self.barrier.plan(plan)
            batch = Batch([d.text for d in documents]).scan(plan)
            bands, checks = self.barrier.keys(batch, np.arange(len(documents)), documents)
            self.bands.append(bands)
            self.checks.append(checks)

    def write(self, folder: Path) -> None:
        if self.bands:
            write_keys(folder, np.concatenate(self.bands), np.concatenate(self.checks))
        elif folder.exists():
            shutil.rmtree(folder)


def _resolve(barrier: Barrier, folders: Sequence[Path], memory: int, run: str = "") -> list[_Fates]:
    """What the barrier decides on the documents of each folder of keys; a folder that is not there has none.

    What the run itself has put into the index, before it was killed, does not count.
    """
    earlier = sorted(barrier.index.iterdir()) if barrier.index is not None and barrier.index.is_dir() else []
    earlier = [f for f in earlier if (f / "keys.npy").exists() and not (run and f"-{run}-" in f.name)]
    have = [folder for folder in folders if folder.exists()]
    if not have:
        return [_Fates(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64)) for _ in folders]
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
        made[folder] = _Fates(leaders[a:b] == np.arange(a, b), similarities[a:b].astype(np.float64), groups)
    empty = _Fates(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
    return [made.get(folder, empty) for folder in folders]


def _extend_index(barrier: Barrier, folders: Sequence[Path], fates: Sequence[_Fates], name: str) -> None:
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


def _work(job: _Job) -> dict[str, Any]:
    """Run one stage of one shard; at once done where its marker says so."""
    marker = job.place("done", ".json")
    if marker.exists():
        done: dict[str, Any] = orjson.loads(marker.read_bytes())
        return done
    tally, last = Tally(), job.steps.barrier is None
    names = iter(orjson.loads(job.place("names", ".json", job.stage - 1).read_bytes())) if job.renamed else None
    collected = None if job.steps.barrier is None else _Keys(job.steps.barrier)
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
                collected.add(kept)
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
    with opened_to_write(marker) as file:
        file.write(orjson.dumps(tally.to_json()))
    return tally.to_json()


@contextmanager
def _nowhere() -> Iterator[Any]:
    yield None


def _surviving(job: _Job, names: Iterator[str] | None, tally: Tally, lose: Any) -> Iterator[list[Document]]:
    """Documents of a shard part by part, less those that the barrier before has dropped."""
    fates = None
    if job.before is not None:
        with np.load(job.place("fates", ".npz", job.stage - 1)) as loaded:
            fates = _Fates(loaded["kept"], loaded["scores"], loaded["groups"])
    n = 0
    for documents, rejected in read(job.source, job.settings.field, job.settings.longest):
        for bad in rejected:
            if job.settings.on_bad == "refuse":
                raise InputError(f"{bad.where} is no document ({bad.reason}): mend it, or let bad records be skipped.")
            if job.stage == 0:
                tally.reject(bad)
                if lose is not None:
                    lose.write(orjson.dumps({"rejected": bad._asdict()}, option=orjson.OPT_APPEND_NEWLINE))
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
            if path.name.startswith(("text-", "keys-", "fates-", "names-")):
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
    fates = _resolve(barrier, folders, memory, run)
    _extend_index(barrier, folders, fates, run)
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
