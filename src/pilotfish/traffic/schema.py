"""The log's tables, their versions, and SQLite's errors in plain words."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from pilotfish.errors import LogCorruptError, LogError, LogFullError, LogVersionError

__all__ = ["COLUMNS", "MIGRATIONS", "connect", "log_error", "prepare"]

BUSY_SECONDS = 10.0
COLUMNS = (
    "seq",
    "id",
    "created",
    "task",
    "endpoint",
    "model",
    "status",
    "answered_by",
    "prediction",
    "confidence",
    "reason",
    "audit",
    "gold",
    "latency",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "key_id",
    "stream",
    "complete",
    "sampled",
    "reply_id",
)

# Bodies live in a table of their own: totals and updates then touch small rows only.
MIGRATIONS: list[str] = [
    """
    CREATE TABLE calls (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        created REAL NOT NULL,
        task TEXT,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        status INTEGER NOT NULL,
        answered_by TEXT NOT NULL,
        prediction TEXT,
        confidence REAL,
        reason TEXT NOT NULL,
        audit TEXT,
        gold TEXT,
        latency REAL NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cost REAL NOT NULL,
        key_id TEXT,
        stream INTEGER NOT NULL,
        complete INTEGER NOT NULL,
        sampled INTEGER NOT NULL,
        reply_id TEXT NOT NULL
    );
    CREATE INDEX calls_by_task ON calls (task);
    CREATE INDEX calls_by_created ON calls (created);
    CREATE INDEX calls_by_reply ON calls (reply_id) WHERE reply_id <> '';
    CREATE TABLE bodies (seq INTEGER PRIMARY KEY, request BLOB NOT NULL, reply BLOB NOT NULL);
    CREATE TABLE states (task TEXT PRIMARY KEY, document TEXT NOT NULL, updated REAL NOT NULL);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        created REAL NOT NULL,
        task TEXT NOT NULL,
        kind TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE INDEX events_by_task ON events (task);
    CREATE TABLE spend (
        key_id TEXT NOT NULL,
        day TEXT NOT NULL,
        cost REAL NOT NULL,
        PRIMARY KEY (key_id, day)
    ) WITHOUT ROWID;
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO counters VALUES ('states', 0), ('probes', 0);
    """,
]


def connect(path: Path, *, read_only: bool = False, synchronous: str = "FULL") -> sqlite3.Connection:
    """Open one connection; transactions are begun and ended by the caller.

    Raises
    ------
    LogError
        When the file cannot be opened.
    """
    try:
        if read_only:
            mode = "immutable=1" if _frozen(path) else "mode=ro"
            uri = f"file:{_quoted(path)}?{mode}"
            connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        else:
            connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA cache_size=-8192")
    except sqlite3.Error as error:
        raise log_error(error, path) from error
    return connection


def prepare(path: Path) -> None:
    """Create the log, or bring an older one up to date; nobody but its owner may read the file.

    Raises
    ------
    LogVersionError
        When the log was written by a newer version.
    LogError
        When the file cannot be opened, read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise LogError(
            f"The traffic log {path} cannot be opened for writing ({error.strerror}): give a file in a folder that "
            f"you may write to."
        ) from error
    connection = connect(path)
    try:
        _use_wal(connection)
        _migrate(connection, path)
    except sqlite3.Error as error:
        raise log_error(error, path) from error
    finally:
        connection.close()


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless the log is of this version."""
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise log_error(error, path) from error
    if version > len(MIGRATIONS):
        raise _too_new(path, version)
    if version < len(MIGRATIONS):
        raise LogVersionError(
            f"The traffic log {path} has schema version {version}, this release reads {len(MIGRATIONS)}: open it once "
            f"for writing to bring it up to date."
        )


def log_error(error: sqlite3.Error, path: Path) -> LogError:
    """Say in one sentence what SQLite complains of."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return LogFullError(f"No space is left for the traffic log {path}: free some, or prune the log.")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LogCorruptError(
            f"The traffic log {path} is damaged ({error}): move it away to start a new one, or restore a copy."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return LogError(f"The traffic log {path} cannot be written ({error}): make the file and its folder writable.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogError(
            f"The traffic log {path} was locked by another process for over {BUSY_SECONDS:g} s: end what holds it."
        )
    if code == sqlite3.SQLITE_IOERR:
        return LogError(f"The traffic log {path} cannot be read or written ({error}): check the disk.")
    return LogError(f"The traffic log {path} failed ({error}).")


def _use_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            # Changing the journal mode does not wait for a lock by itself.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise _too_new(path, version)
        for script in MIGRATIONS[version:]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _too_new(path: Path, version: int) -> LogVersionError:
    return LogVersionError(
        f"The traffic log {path} has schema version {version}, this release knows {len(MIGRATIONS)}: upgrade pilotfish."
    )


def _frozen(path: Path) -> bool:
    """Whether the log lies in a folder where SQLite cannot put its shared memory, and nobody writes to it."""
    return not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
