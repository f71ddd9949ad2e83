"""Export of the traffic log to JSON lines and Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from pilotfish.errors import InputError, missing_extra
from pilotfish.protocols import Progress
from pilotfish.traffic.calls import Call
from pilotfish.traffic.log import TrafficLog

__all__ = ["export_file"]

ROWS_PER_GROUP = 4096
_FIELDS = tuple(f.name for f in fields(Call) if f.name != "seq")


def export_file(
    log: TrafficLog,
    path: Path,
    *,
    task: str | None = None,
    since: float | None = None,
    until: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Write calls to a file, under a temporary name first; ``import_file`` reads the JSON lines back.

    Parameters
    ----------
    log : TrafficLog
        Where the calls are.
    path : Path
        ``.jsonl`` or ``.parquet`` (which needs the extra ``parquet``).
    task, since, until
        Which calls, as in ``TrafficLog.calls``.
    progress : callable or None
        Told of calls written and calls in all.

    Returns
    -------
    int
        How many calls were written.

    Raises
    ------
    InputError
        When the file's ending is another.
    MissingExtraError
        When Parquet is asked for and pyarrow is not installed.
    """
    writers = {".jsonl": _write_lines, ".parquet": _write_parquet}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InputError(f"Export file is {path}: end its name in {' or '.join(writers)}.")
    total = log.count(task=task)
    n_written = 0

    def counted() -> Iterator[Call]:
        nonlocal n_written
        for call in log.calls(task=task, since=since, until=until):
            yield call
            n_written += 1
            if progress is not None and n_written % 256 == 0:
                progress(n_written, total)

    with _renamed(path) as half:
        writer(counted(), half)
    if progress is not None:
        progress(total, total)
    return n_written


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # What users said is for the owner's eyes.
        os.close(os.open(half, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _write_lines(calls: Iterator[Call], path: Path) -> None:
    with path.open("wb") as file:
        for call in calls:
            row: dict[str, Any] = {name: getattr(call, name) for name in _FIELDS}
            row |= {name: _parsed(row[name]) for name in ("request", "reply")}
            file.write(orjson.dumps(row) + b"\n")


def _parsed(body: bytes) -> Any:
    """A body as JSON where that gives it back byte for byte, else as text."""
    if not body:
        return None
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")
    return data if not isinstance(data, str) and orjson.dumps(data) == body else body.decode()


def _write_parquet(calls: Iterator[Call], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", "Export to Parquet") from error
    kinds = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "bytes": pa.binary(), "str": pa.string()}
    schema = pa.schema([(f.name, kinds[str(f.type).split(" ")[0]]) for f in fields(Call) if f.name in _FIELDS])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(calls, ROWS_PER_GROUP)):
            columns = {name: [getattr(call, name) for call in group] for name in _FIELDS}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
