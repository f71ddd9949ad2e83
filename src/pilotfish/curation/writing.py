"""Write documents to files, each whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilotfish.curation.documents import Document
from pilotfish.curation.endings import arrow, kind_of, packing
from pilotfish.errors import InputError

__all__ = ["check_ending", "opened_to_write", "save_array", "writer"]


@contextmanager
def opened_to_write(path: Path) -> Iterator[Any]:
    """Open a file to write, packed by its ending, under a temporary name; rename it when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".gz":
            # No name and no time inside, so that equal content gives equal files.
            with half.open("wb") as plain, gzip.GzipFile("", "wb", 6, plain, mtime=0) as packed:
                yield packed
        elif path.suffix == ".zst":
            pa = arrow()
            with half.open("wb") as plain, pa.CompressedOutputStream(plain, "zstd") as packed:
                yield packed
        else:
            with half.open("wb", buffering=1 << 20) as file:
                yield file
        half.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): free space or choose another."
        ) from error
    finally:
        half.unlink(missing_ok=True)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write one array as a .npy file, whole or not at all."""
    with opened_to_write(path) as file:
        np.save(file, array)


def check_ending(name: str) -> None:
    """Refuse a name that no file of documents can have.

    Raises
    ------
    InputError
        When the ending is not known, or is one of a table that is packed once more.
    """
    path = Path(f"-{name}")
    kind = kind_of(path)
    if kind not in (".jsonl", ".ndjson", ".json", ".txt", ".parquet") or (kind == ".parquet" and packing(path)):
        raise InputError(f"{name} has no known ending: write .jsonl, .parquet or .txt, .jsonl with .gz or .zst.")


@contextmanager
def writer(path: Path, field: str = "text") -> Iterator[Any]:
    """Open a file for documents by its ending: JSON lines, Parquet, or text apart by empty lines; yields ``write``,
    which takes a list of them.

    The file appears whole or not at all.
    """
    check_ending(path.name)
    kind = kind_of(path)
    if kind == ".parquet":
        with opened_to_write(path) as file:
            rows = _ParquetRows(file, field)
            yield rows.add
            rows.close()
    else:
        with opened_to_write(path) as file:
            if kind == ".txt":
                yield lambda documents: file.writelines(
                    d.text.rstrip("\n").encode("utf-8", "replace") + b"\n\n" for d in documents
                )
            else:
                yield lambda documents: file.write(b"".join([d.line(field) for d in documents]))


class _ParquetRows:
    """Rows gathered to groups; the columns are those of the first group."""

    def __init__(self, file: Any, field: str) -> None:
        self.file, self.field = file, field
        self.rows: list[dict[str, Any]] = []
        self.out: Any = None

    def add(self, documents: Iterable[Document]) -> None:
        self.rows += [{"id": d.id, **d.fields, self.field: d.text} for d in documents]
        if len(self.rows) >= 10_000:
            self.flush()

    def flush(self) -> None:
        pa = arrow("parquet")
        if self.out is None:
            table = pa.Table.from_pylist(self.rows or [], None if self.rows else pa.schema([(self.field, pa.string())]))
            self.out = pa.parquet.ParquetWriter(self.file, table.schema, compression="zstd")
        else:
            table = pa.Table.from_pylist(self.rows, self.out.schema)
        self.out.write_table(table)
        self.rows = []

    def close(self) -> None:
        if self.rows or self.out is None:
            self.flush()
        self.out.close()
