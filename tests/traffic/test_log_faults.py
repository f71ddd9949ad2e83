"""Disk full, read-only, damaged, newer, locked: a clear error, and nothing lost."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilotfish.errors import LogCorruptError, LogError, LogFullError, LogVersionError
from pilotfish.traffic import Call, TrafficLog, schema


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "traffic.db"


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="pilotfish.traffic")


def _filled(path: Path, n_calls: int = 50) -> None:
    with TrafficLog(path, "fast") as log:
        for i in range(n_calls):
            log.append(Call.of(f"prompt {i}", "x" * 300))


def test_no_log(path):
    path.write_bytes(b"This is no database. " * 300)
    with pytest.raises(LogCorruptError, match="move it away"):
        TrafficLog(path)
    with pytest.raises(LogError, match="no traffic log"):
        TrafficLog(path.with_name("absent.db"), read_only=True)


def test_damaged_pages(path):
    _filled(path, 500)
    data = bytearray(path.read_bytes())
    data[8192:] = b"\x5a" * (len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(LogCorruptError, match="is damaged"), TrafficLog(path, read_only=True) as log:
        list(log.calls())
    log = TrafficLog(path)
    with pytest.raises(LogCorruptError, match="is damaged"):
        log.append(Call.of("kept", "x"))
    assert isinstance(log.failure, LogCorruptError)
    with pytest.raises(LogError, match="1 calls could not be written"):
        log.close()


def test_newer_version(path):
    _filled(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(LogVersionError, match=r"version 99.*upgrade"):
            TrafficLog(path, read_only=read_only)


def test_older_version_is_brought_up_to_date(path, monkeypatch):
    _filled(path)
    later = [*schema.MIGRATIONS, "ALTER TABLE states ADD COLUMN note TEXT; CREATE TABLE more (a)"]
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with pytest.raises(LogVersionError, match="open it once"):
        TrafficLog(path, read_only=True)
    with TrafficLog(path) as log:
        assert log.count() == 50
    with TrafficLog(path, read_only=True) as log:
        assert log._rows("SELECT note FROM states") == []


def test_failed_migration_changes_nothing(path, monkeypatch):
    _filled(path)
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, "CREATE TABLE more (a); CREATE TABLE calls (a)"])
    with pytest.raises(LogError, match="calls"):
        TrafficLog(path)
    monkeypatch.undo()
    with TrafficLog(path) as log:
        assert log.count() == 50
        assert log._rows("SELECT name FROM sqlite_master WHERE name = 'more'") == []


def test_read_only_log_is_never_written(path):
    _filled(path)
    before = path.read_bytes()
    with TrafficLog(path, read_only=True) as log:
        assert log.count() == 50
        for write in (
            lambda: log.append(Call.of("a", "b")),
            lambda: log.prune(max_rows=0),
            lambda: log.event("t", "k"),
        ):
            with pytest.raises(LogError, match="reading only"):
                write()
    assert path.read_bytes() == before


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from pilotfish.errors import LogError
from pilotfish.traffic import TrafficLog
os.setgroups([]); os.setgid(65534); os.setuid(65534)
path = Path(sys.argv[1])
with TrafficLog(path, read_only=True) as log:
    print(log.count())
try:
    TrafficLog(path)
except LogError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to drop privileges")
def test_a_log_one_may_only_read(path):
    _filled(path)
    path.chmod(0o644)
    for folder in path.parents:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, path], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("50\n"), done.stderr
    assert "cannot be opened for writing (Permission denied)" in done.stdout


def test_full_disk_and_recovery(path):
    """Files may not grow: what SQLite sees is what a full disk shows."""
    _filled(path)
    with TrafficLog(path) as log:
        log.append(Call.of("before", "x"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        try:
            with pytest.raises(LogError, match="traffic log"):
                log.append(Call.of("kept", "x" * 500_000))
            assert log.failure is not None
            with pytest.raises(LogError):
                log.append(Call.of("kept too", "x" * 500_000))
            assert log.n_queued == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        deadline = time.monotonic() + 10
        while log.failure is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        log.append(Call.of("after", "x"))
        assert [call.prompt for call in log.calls(newest_first=True, limit=4)] == [
            "after",
            "kept too",
            "kept",
            "before",
        ]


def test_out_of_space_is_named(path, monkeypatch):
    """SQLite's own page limit gives the very error of a full disk."""
    _filled(path)
    log = TrafficLog(path)
    log.append(Call.of("a", "b"))
    log._writer._connection.execute("PRAGMA max_page_count=1")
    with pytest.raises(LogFullError, match="free some"):
        log.append(Call.of("kept", "x" * 200_000))
    log.close()
    with TrafficLog(path, read_only=True) as log:
        assert next(log.calls(newest_first=True)).prompt == "kept"


def test_backlog_is_bounded_and_what_was_dropped_is_told(path):
    _filled(path)
    log = TrafficLog(path, "fast", max_backlog_bytes=10_000)
    path.write_bytes(b"\x5a" * path.stat().st_size)
    for i in range(20):
        log.append(Call.of(str(i), "x" * 1000))
    with pytest.raises(LogError, match="20 calls could not be written"):
        log.close()
    assert 0 < log.n_dropped < 20


def test_a_passing_lock_is_waited_for(path):
    _filled(path)
    with TrafficLog(path) as log:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        log.post(Call.of("waited", "x"))
        time.sleep(0.3)
        assert log.n_queued == 0
        assert log.failure is None
        blocker.execute("COMMIT")
        blocker.close()
        log.flush()
        assert next(log.calls(newest_first=True)).prompt == "waited"


KILLED = """
import sys, threading
from pilotfish.traffic import Call, TrafficLog
log = TrafficLog(sys.argv[1])
def work(name):
    for i in range(10**6):
        log.append(Call.of(f"{name}-{i}", "x"))
        sys.stdout.write(f"{name}-{i}\\n"); sys.stdout.flush()
for name in "abcd":
    threading.Thread(target=work, args=(name,)).start()
"""


@pytest.mark.parametrize("round_", range(3))
def test_what_was_acknowledged_outlives_a_kill(path, round_):
    with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(100 + 37 * round_)]
        process.kill()
        acknowledged += [line.strip() for line in process.stdout.read().split("\n")[:-1]]
    with TrafficLog(path) as log:
        written = {call.prompt for call in log.calls()}
    assert set(acknowledged) <= written
