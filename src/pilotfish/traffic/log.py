"""The traffic log: calls, tasks' states and events in one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import orjson

from pilotfish.errors import InputError, LogError
from pilotfish.protocols import Transform
from pilotfish.traffic.calls import Call, Event, Totals
from pilotfish.traffic.masking import mask_call, mask_text
from pilotfish.traffic.rows import CHARGE_CHANGE, call_of, conditions, day_of, insert_new
from pilotfish.traffic.schema import COLUMNS, check_version, connect, log_error, prepare
from pilotfish.traffic.writer import Durability, Job, Writer

__all__ = ["TrafficLog"]

BATCH = 512
PRUNE_BATCH = 2000
_CALL_COLUMNS = ", ".join(f"c.{name}" for name in COLUMNS)
_AMENDABLE = frozenset(COLUMNS) - {"seq", "id"}


class TrafficLog:
    """The log of calls, in one SQLite file that several processes may write and read at a time.

    Calls are written by one thread; all that was queued since its last commit goes into one transaction. With
    ``durable`` an append is done when its commit is on the disk; with ``fast`` it is handed to the operating system
    within 5 ms, so that it outlives the process but not a power cut.

    While the file cannot be written (disk full, read-only, damaged), ``failure`` says why, whoever waits for a write
    is told, and the calls stay in memory, up to ``max_backlog_bytes``; they are written as soon as that is possible.

    Parameters
    ----------
    path : Path or str
        The file; it is created where absent, readable by its owner only.
    durability : {'durable', 'fast'}
        When an append counts as done.
    mask : Transform of str or None
        Applied to every text of a call before it is written, see ``PatternMasker``.
    on_written : callable or None
        Told of the calls of each commit, in the writer's thread; it must return at once.
    read_only : bool
        Open without writing anything.
    max_backlog_bytes : int
        What is kept in memory while the log cannot be written; the oldest calls are dropped beyond it.

    Raises
    ------
    LogVersionError
        When the log was written by a newer version.
    LogCorruptError
        When the file is damaged or no log.
    LogError
        When the file cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with TrafficLog(Path(folder.name) / "traffic.db") as log:
    ...     log.append(Call.of("Where is my card?", "card_arrival", task="intents"))
    ...     [call.answer for call in log.calls(task="intents")]
    ['card_arrival']
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: Path | str,
        durability: Durability = "durable",
        *,
        mask: Transform[str, str] | None = None,
        on_written: Callable[[Sequence[Call]], None] | None = None,
        read_only: bool = False,
        max_backlog_bytes: int = 64 << 20,
    ) -> None:
        if durability not in ("durable", "fast"):
            raise InputError(f"Log durability is {durability!r}: use 'durable' or 'fast'.")
        self.path = Path(path)
        self.durability = durability
        self.read_only = read_only
        self._mask = mask
        self._readers: list[sqlite3.Connection] = []
        self._reader_lock = threading.Lock()
        self._side: sqlite3.Connection | None = None
        self._side_lock = threading.Lock()
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        self._seen = (-1, -1)
        self._documents: dict[str, tuple[str, dict[str, Any]]] = {}
        if read_only:
            if not self.path.is_file():
                raise LogError(f"There is no traffic log at {self.path}: give the path of one.")
        else:
            prepare(self.path)
        with self._reading() as connection:
            check_version(connection, self.path)
        self._writer = Writer(self.path, durability, mask, on_written, max_backlog_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def failure(self) -> LogError | None:
        """Why the log could not be written last time; None while it can."""
        return self._writer.failure

    @property
    def n_queued(self) -> int:
        """Calls that are not written yet."""
        return self._writer.n_queued

    @property
    def n_written(self) -> int:
        """Calls written by this object."""
        return self._writer.n_written

    @property
    def n_dropped(self) -> int:
        """Calls that could not be kept."""
        return self._writer.n_dropped

    def append(self, call: Call) -> None:
        """Write a call from plain code; with ``durable`` this waits for the commit.

        Raises
        ------
        LogError
            With ``durable``, when the call could not be written (it is kept in memory and tried again).
        """
        self._check_writable()
        if self.durability == "fast":
            self._writer.put(Job(call))
        else:
            self._wait(Job(call))

    def submit(self, call: Call | Callable[[], Call]) -> asyncio.Future[None]:
        """Queue a call from an event loop; the future is done once the call is committed.

        Parameters
        ----------
        call : Call or callable
            The call, or what makes it: that is then done in the writer's thread.
        """
        self._check_writable()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.put(Job(call, waiter=waiter))
        return waiter

    def post(self, call: Call | Callable[[], Call]) -> None:
        """Queue a call and wait for nothing, whatever the durability."""
        self._check_writable()
        self._writer.put(Job(call))

    def amend(self, call_id: str, **changes: Any) -> None:
        """Queue a change of a call's columns (not its bodies): the audit of a local answer, for example."""
        self._check_writable()
        unknown = set(changes) - _AMENDABLE
        if unknown:
            raise InputError(f"A call has no column {sorted(unknown)[0]!r} to amend: use one of {sorted(_AMENDABLE)}.")
        if self._mask is not None and isinstance(changes.get("audit"), str):
            changes["audit"] = mask_text(changes["audit"], self._mask)
        if "cost" in changes:
            # What an audit cost is spent with the key of the call that it audits.
            self._writer.put(Job(statement=CHARGE_CHANGE, parameters=(changes["cost"], call_id)))
        names = ", ".join(f"{name} = ?" for name in changes)
        statement = f"UPDATE calls SET {names} WHERE id = ?"  # noqa: S608
        self._writer.put(Job(statement=statement, parameters=(*changes.values(), call_id)))

    def flush(self) -> None:
        """Wait until everything queued so far is written.

        Raises
        ------
        LogError
            When it could not be.
        """
        self._wait(Job())

    def close(self) -> None:
        """Write what is queued and let go of the file.

        Raises
        ------
        LogError
            When calls could not be written and are lost.
        """
        n_lost = self._writer.finish()
        with self._reader_lock, self._side_lock, self._watch_lock:
            for connection in [*self._readers, self._side, self._watch]:
                if connection is not None:
                    connection.close()
            self._readers.clear()
            self._side = self._watch = None
        # Last, since only a connection that may write folds the write-ahead file into the log.
        self._writer.disconnect()
        if n_lost:
            raise LogError(f"{n_lost} calls could not be written to the traffic log {self.path}: {self.failure}")

    def calls(
        self,
        *,
        task: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: int = 0,
        answered_by: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Call]:
        """Read calls in the order of the log, in batches that hold up no writer.

        Parameters
        ----------
        task : str or None
            Only calls of this task.
        since, until : float or None
            Only calls made from ``since`` on and before ``until``, unix seconds.
        after : int
            Only calls whose ``seq`` is higher: what is new since the last look.
        answered_by : str or None
            Only calls answered by this model; ``student`` takes every version.
        limit : int or None
            At most so many.
        newest_first : bool
            In reverse order.
        """
        clauses, values = conditions(task, since, until, answered_by)
        order = "DESC" if newest_first else "ASC"
        position = after
        if newest_first:
            clauses.append("c.seq > ?")
            values.append(after)
            position = 1 << 62
        clauses.append("c.seq < ?" if newest_first else "c.seq > ?")
        query = (
            f"SELECT {_CALL_COLUMNS}, b.request, b.reply FROM calls c JOIN bodies b ON b.seq = c.seq "  # noqa: S608
            f"WHERE {' AND '.join(clauses)} ORDER BY c.seq {order} LIMIT ?"
        )
        remaining = limit
        while remaining is None or remaining > 0:
            size = BATCH if remaining is None else min(BATCH, remaining)
            rows = self._rows(query, (*values, position, size))
            yield from map(call_of, rows)
            if len(rows) < size:
                return
            position = rows[-1][0]
            if remaining is not None:
                remaining -= size

    def get(self, call_id: str) -> Call | None:
        """Read one call by its id or its reply's id; None when there is none."""
        rows = self._rows(
            f"SELECT {_CALL_COLUMNS}, b.request, b.reply FROM calls c JOIN bodies b ON b.seq = c.seq "  # noqa: S608
            "WHERE c.id = ?1 OR (c.reply_id = ?1 AND c.reply_id <> '') ORDER BY c.seq DESC LIMIT 1",
            (call_id,),
        )
        return call_of(rows[0]) if rows else None

    def totals(self, *, since: float | None = None, until: float | None = None) -> list[Totals]:
        """Sum up the calls by task and by who answered, the most frequent first."""
        clauses, values = conditions(None, since, until, None)
        query = (
            "SELECT task, answered_by, COUNT(*), COUNT(gold), COUNT(audit), SUM(prompt_tokens), "  # noqa: S608
            f"SUM(completion_tokens), SUM(cost), SUM(latency), MIN(created), MAX(created) FROM calls c "
            f"WHERE {' AND '.join(clauses or ['1'])} GROUP BY task, answered_by ORDER BY COUNT(*) DESC"
        )
        return [Totals(*row) for row in self._rows(query, values)]

    def count(self, *, task: str | None = None, after: int = 0) -> int:
        """Count the calls, of one task where one is given, whose ``seq`` is above ``after``."""
        clauses, values = conditions(task, None, None, None)
        query = f"SELECT COUNT(*) FROM calls c WHERE {' AND '.join([*clauses, 'c.seq > ?'])}"  # noqa: S608
        return int(self._rows(query, (*values, after))[0][0])

    def feedback(self, call_id: str, gold: str) -> bool:
        """Record the right answer to a call, named by its id or its reply's id; False when there is no such call."""
        if self._mask is not None:
            gold = mask_text(gold, self._mask)
        for attempt in range(2):
            with self._writing() as connection:
                n_changed = connection.execute(
                    "UPDATE calls SET gold = ?1 WHERE seq = (SELECT MAX(seq) FROM calls WHERE id = ?2 "
                    "OR (reply_id = ?2 AND reply_id <> ''))",
                    (gold, call_id),
                ).rowcount
            if n_changed or attempt:
                break
            self.flush()
        return n_changed > 0

    def spent(self, key_id: str, at: float | None = None) -> float:
        """US dollars spent with a gateway key on the UTC day of a moment, now unless given."""
        day = day_of(time.time() if at is None else at)
        rows = self._rows("SELECT cost FROM spend WHERE key_id = ? AND day = ?", (key_id, day))
        return float(rows[0][0]) if rows else 0.0

    def state(self, task: str) -> dict[str, Any]:
        """Read a task's document; empty when there is none."""
        rows = self._rows("SELECT document FROM states WHERE task = ?", (task,))
        return _document(rows[0][0]) if rows else {}

    def states(self) -> dict[str, dict[str, Any]]:
        """Read the documents of all tasks, by task; one that has not changed is the very object of the time before."""
        before, found = self._documents, {}
        for task, text in self._rows("SELECT task, document FROM states ORDER BY task"):
            known = before.get(task)
            found[task] = known if known is not None and known[0] == text else (text, _document(text))
        self._documents = found
        return {task: document for task, (_, document) in found.items()}

    def update_state(self, task: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        """Change a task's document as one step over all processes.

        Parameters
        ----------
        task : str
            The task.
        change : callable
            Gets the present document (empty when there is none) and returns the new one, plain JSON. It runs while the
            log is locked: it must be quick. When it raises, nothing changes.

        Returns
        -------
        dict
            The new document.
        """
        with self._writing() as connection:
            row = connection.execute("SELECT document FROM states WHERE task = ?", (task,)).fetchone()
            document = dict(change(_document(row[0]) if row else {}))
            connection.execute(
                "INSERT INTO states VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE "
                "SET document = excluded.document, updated = excluded.updated",
                (task, orjson.dumps(document).decode(), time.time()),
            )
            connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'states'")
        return document

    def changed(self) -> bool:
        """Whether any task's document was changed, by any process, since this was last asked; microseconds."""
        with self._watch_lock:
            first = self._watch is None
            if self._watch is None:
                self._watch = connect(self.path, read_only=True)
            try:
                version = int(self._watch.execute("PRAGMA data_version").fetchone()[0])
                if version == self._seen[0]:
                    return False
                row = self._watch.execute("SELECT value FROM counters WHERE name = 'states'").fetchone()
            except sqlite3.Error as error:
                raise log_error(error, self.path) from error
            before, self._seen = self._seen, (version, int(row[0]))
            return not first and before[1] != self._seen[1]

    def event(self, task: str, kind: str, detail: Mapping[str, Any] | None = None) -> None:
        """Record that something happened to a task; ``detail`` is plain JSON."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO events (created, task, kind, detail) VALUES (?, ?, ?, ?)",
                (time.time(), task, kind, orjson.dumps(dict(detail or {})).decode()),
            )

    def events(self, task: str | None = None, *, after: int = 0) -> list[Event]:
        """Read what happened, to one task or to all, in the order of the log."""
        clause, values = ("task = ? AND", [task]) if task is not None else ("", [])
        query = f"SELECT seq, created, task, kind, detail FROM events WHERE {clause} seq > ? ORDER BY seq"  # noqa: S608
        return [
            Event(seq, created, about, kind, _document(text))
            for seq, created, about, kind, text in self._rows(query, (*values, after))
        ]

    def insert_new(self, calls: Iterable[Call]) -> tuple[int, int]:
        """Write many calls as one step, leaving out those whose id is in the log; all or none are written.

        Returns
        -------
        tuple of int
            How many were written and how many were there already.
        """
        self._check_writable()
        if self._mask is not None:
            calls = map(partial(mask_call, mask=self._mask), calls)
        connection = connect(self.path)
        try:
            return insert_new(connection, calls)
        except sqlite3.Error as error:
            raise log_error(error, self.path) from error
        finally:
            connection.close()

    def prune(self, *, before: float | None = None, max_rows: int | None = None) -> int:
        """Delete old calls, a few at a time so that writers are not held up.

        Parameters
        ----------
        before : float or None
            Delete calls made before this moment, unix seconds.
        max_rows : int or None
            Keep at most so many, the newest.

        Returns
        -------
        int
            How many were deleted.
        """
        n_deleted = 0
        if max_rows is not None:
            rows = self._rows("SELECT seq FROM calls ORDER BY seq DESC LIMIT 1 OFFSET ?", (max_rows,))
            if rows:
                n_deleted += self._delete("seq <= ?", rows[0][0])
        if before is not None:
            n_deleted += self._delete("created < ?", before)
        return n_deleted

    def _delete(self, condition: str, value: float) -> int:
        n_deleted = 0
        while True:
            with self._writing() as connection:
                query = f"SELECT seq FROM calls WHERE {condition} LIMIT ?"  # noqa: S608
                found = connection.execute(query, (value, PRUNE_BATCH)).fetchall()
                connection.executemany("DELETE FROM bodies WHERE seq = ?", found)
                connection.executemany("DELETE FROM calls WHERE seq = ?", found)
            n_deleted += len(found)
            if len(found) < PRUNE_BATCH:
                return n_deleted

    def _check_writable(self) -> None:
        if self.read_only:
            raise LogError(f"The traffic log {self.path} was opened for reading only: open it with read_only=False.")

    def _wait(self, job: Job) -> None:
        waiter: Future[None] = Future()
        job.waiter = waiter
        self._writer.put(job)
        waiter.result()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._check_writable()
        with self._side_lock:
            if self._side is None:
                self._side = connect(self.path)
            connection = self._side
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise log_error(error, self.path) from error
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._reader_lock:
            connection = self._readers.pop() if self._readers else None
        if connection is None:
            connection = connect(self.path, read_only=True)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._reader_lock:
            self._readers.append(connection)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            with self._reading() as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise log_error(error, self.path) from error


def _document(text: str) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(text)
    return document
