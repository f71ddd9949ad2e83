"""The thread that writes: everything queued since the last commit goes into one transaction."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pilotfish.errors import LogError
from pilotfish.protocols import Transform
from pilotfish.traffic.calls import Call
from pilotfish.traffic.masking import mask_call
from pilotfish.traffic.rows import insert
from pilotfish.traffic.schema import connect, log_error

__all__ = ["Durability", "Job", "Writer"]

Durability = Literal["durable", "fast"]
Build = Callable[[], Call]
Waiter = asyncio.Future[None] | Future[None]

GATHER_SECONDS = 0.004
POLL_SECONDS = 0.1
RETRY_SECONDS = 1.0
MAX_BATCH = 1024
CHECKPOINT_PAGES = 4000

_logger = logging.getLogger("pilotfish.traffic")


@dataclass(slots=True)
class Job:
    """Something to write: a call (or how to make it), or a statement; and who waits for it."""

    call: Call | Build | None = None
    statement: str = ""
    parameters: Sequence[Any] = ()
    waiter: Waiter | None = None


class Writer:
    """Write jobs in their order, many to a transaction, in a thread of its own.

    Parameters
    ----------
    path : Path
        The log.
    durability : {'durable', 'fast'}
        Whether a commit waits for the disk.
    mask : Transform or None
        Applied to every text of a call before it is written.
    on_written : callable or None
        Told of the calls of each commit, with their ``seq``, in the writer's thread.
    max_backlog_bytes : int
        What is kept in memory while the log cannot be written; older calls are dropped beyond it.
    """

    def __init__(
        self,
        path: Path,
        durability: Durability,
        mask: Transform[str, str] | None,
        on_written: Callable[[Sequence[Call]], None] | None,
        max_backlog_bytes: int,
    ) -> None:
        self.path = path
        self.durability = durability
        self.mask = mask
        self.on_written = on_written
        self.max_backlog_bytes = max_backlog_bytes
        self.failure: LogError | None = None
        self.n_dropped = 0
        self.n_written = 0
        self._queue: deque[Job] = deque()
        self._backlog: deque[Job] = deque()
        self._backlog_bytes = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @property
    def n_queued(self) -> int:
        """Jobs that are not written yet."""
        return len(self._queue) + len(self._backlog)

    def put(self, job: Job) -> None:
        """Queue a job."""
        if self._closing:
            raise LogError(f"The traffic log {self.path} is closed: open it again.")
        self._queue.append(job)
        if self._thread is None:
            self._start()
        if not self._wake.is_set():
            self._wake.set()

    def finish(self) -> int:
        """Write what is queued and end the thread; returns how many calls could not be written."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        while self._queue:
            self._step()
        return self.n_dropped + len(self._backlog)

    def disconnect(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None:
                # A daemon: a process that ends without closing must not hang; its queue is written by ``finish``.
                self._thread = threading.Thread(target=self._run, name="pilotfish-log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        last_busy = 0.0
        while True:
            if self._queue:
                self._step()
                last_busy = time.monotonic()
                if self.durability == "fast" and not self._closing:
                    time.sleep(GATHER_SECONDS)
            elif self._closing:
                break
            elif self.failure is not None:
                self._wake.clear()
                if not self._queue:
                    self._wake.wait(RETRY_SECONDS)
                self._retry()
            elif self.durability == "fast" and time.monotonic() - last_busy < POLL_SECONDS:
                # Waking a thread costs the event loop more than this poll does while calls keep coming.
                time.sleep(GATHER_SECONDS)
            else:
                self._wake.clear()
                if not self._queue:
                    self._wake.wait()
        if self._backlog:
            self._retry()

    def _step(self) -> None:
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
        jobs = [job for job in jobs if self._build(job)]
        if self.failure is not None:
            self._keep(jobs, self.failure)
            self._retry()
            return
        self._write(jobs)

    def _build(self, job: Job) -> bool:
        """Make the call of a job; a body that cannot be made into a call must not hold up the others."""
        if job.call is None:
            return True
        try:
            call = job.call.replace() if isinstance(job.call, Call) else job.call()
            job.call = call if self.mask is None else mask_call(call, self.mask)
        except Exception as error:
            _logger.exception("A call could not be recorded.")
            self.n_dropped += 1
            if job.waiter is not None:
                _settle([job.waiter], LogError(f"The call could not be recorded ({error!r})."))
            return False
        return True

    def _write(self, jobs: list[Job]) -> None:
        try:
            calls = self._commit(jobs)
        except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._write([job])
                return
            self.n_dropped += jobs[0].call is not None
            known = isinstance(error, sqlite3.IntegrityError)
            what = "is in the traffic log already" if known else "could not be written to the traffic log"
            _settle_jobs(jobs, LogError(f"The call {what}, {self.path} ({error})."))
        except sqlite3.Error as error:
            self._fail(jobs, log_error(error, self.path))
        except LogError as error:
            self._fail(jobs, error)
        except Exception as error:
            # The thread must live on: whoever waits is told, and the log goes on with the next batch.
            _logger.exception("A batch of calls could not be written.")
            self.n_dropped += sum(job.call is not None for job in jobs)
            _settle_jobs(jobs, LogError(f"The calls could not be written to the traffic log {self.path} ({error!r})."))
        else:
            _settle_jobs(jobs, None)
            self._tell(calls)

    def _commit(self, jobs: Sequence[Job]) -> list[Call]:
        if self._connection is None:
            synchronous = "FULL" if self.durability == "durable" else "NORMAL"
            self._connection = connect(self.path, synchronous=synchronous)
            self._connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            calls = [job.call for job in jobs if isinstance(job.call, Call)]
            first = insert(connection, calls)
            for job in jobs:
                if job.statement:
                    connection.execute(job.statement, job.parameters)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        # Before anyone is told that a call is written.
        self.n_written += len(calls)
        if self.on_written is None:
            return calls
        for seq, call in enumerate(calls, first):
            # Our own copies, see ``_build``: ``replace`` would take longer than the insert.
            object.__setattr__(call, "seq", seq)
        return calls

    def _fail(self, jobs: list[Job], failure: LogError) -> None:
        if self.failure is None:
            _logger.error("%s Calls are kept in memory until it can be written.", failure)
        self.failure = failure
        self.disconnect()
        self._keep(jobs, failure)

    def _keep(self, jobs: list[Job], failure: LogError) -> None:
        _settle_jobs(jobs, failure)
        for job in jobs:
            job.waiter = None
        self._backlog.extend(jobs)
        self._backlog_bytes += sum(map(_size, jobs))
        while self._backlog_bytes > self.max_backlog_bytes:
            self._backlog_bytes -= _size(self._backlog.popleft())
            self.n_dropped += 1

    def _retry(self) -> None:
        """Write the backlog; without one, find out by a small write whether the log can be written again."""
        try:
            if not self._backlog:
                self._commit([Job(statement="UPDATE counters SET value = value + 1 WHERE name = 'probes'")])
            while self._backlog:
                jobs = [self._backlog[i] for i in range(min(len(self._backlog), MAX_BATCH))]
                calls = self._commit_new(jobs)
                for job in jobs:
                    self._backlog.popleft()
                    self._backlog_bytes -= _size(job)
                self._tell(calls)
        except sqlite3.Error as error:
            self.failure = log_error(error, self.path)
            self.disconnect()
        except LogError as error:
            self.failure = error
        else:
            self.failure = None
            _logger.warning("The traffic log %s can be written again.", self.path)

    def _commit_new(self, jobs: Sequence[Job]) -> list[Call]:
        """Commit jobs of which some may be on disk already, though their commit was reported as failed."""
        try:
            return self._commit(jobs)
        except sqlite3.IntegrityError:
            if len(jobs) == 1:
                return []
            return [call for job in jobs for call in self._commit_new([job])]

    def _tell(self, calls: Sequence[Call]) -> None:
        if self.on_written is None or not calls:
            return
        try:
            self.on_written(calls)
        except Exception:
            _logger.exception("Telling of written calls failed.")


def _size(job: Job) -> int:
    call = job.call
    return 500 + (len(call.request) + len(call.reply) if isinstance(call, Call) else 0)


def _settle_jobs(jobs: Sequence[Job], error: LogError | None) -> None:
    waiters = [job.waiter for job in jobs if job.waiter is not None]
    if waiters:
        _settle(waiters, error)


def _settle(waiters: Sequence[Waiter], error: LogError | None) -> None:
    """Tell those who wait, each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, Future):
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        else:
            by_loop.setdefault(waiter.get_loop(), []).append(waiter)
    for loop, futures in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle_on_loop, futures, error)


def _settle_on_loop(futures: Sequence[asyncio.Future[None]], error: LogError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
