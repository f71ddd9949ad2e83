"""Write documents to files, each whole or not at all."""

from __future__ import annotations

import gzip
import tempfile
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

# Of rows of a table at a time.
_GROUP, _GROUP_CHARACTERS = 10_000, 64_000_000


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
        with opened_to_write(path) as file, tempfile.TemporaryFile(dir=path.parent) as spool:
            rows = _ParquetRows(field, spool)
            yield rows.add
            rows.write(file)
    else:
        with opened_to_write(path) as file:
            if kind == ".txt":
                yield lambda documents: file.writelines(
                    d.text.rstrip("\n").encode("utf-8", "replace") + b"\n\n" for d in documents
                )
            else:
                yield lambda documents: file.write(b"".join([d.line(field) for d in documents]))


class _ParquetRows:
    """Rows gathered to groups in a file that is soon gone, so that the columns are those of all groups.

    Where the first document has an ``id``, that is a column like another; else every row is named by its document.
    """

    def __init__(self, field: str, spool: Any) -> None:
        self.field, self.spool = field, spool
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.named = False
        self.schemas: list[Any] = []

    def add(self, documents: Iterable[Document]) -> None:
        for d in documents:
            if not self.rows and not self.schemas:
                self.named = "id" not in d.fields
            self.rows.append({**({"id": ""} if self.named else {}), **d.fields, self.field: d.text})
            if self.named:
                self.rows[-1]["id"] = d.id
            self.size += len(d.text)
        if len(self.rows) >= _GROUP or self.size >= _GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        pa = arrow("parquet")
        names = dict.fromkeys(name for row in self.rows for name in row)
        with _one_kind_each(self.field):
            table = pa.table({name: [row.get(name) for row in self.rows] for name in names})
        self.schemas.append(table.schema)
        with pa.ipc.new_stream(self.spool, table.schema) as out:
            out.write_table(table)
        self.rows, self.size = [], 0

    def write(self, file: Any) -> None:
        pa = arrow("parquet")
        if self.rows or not self.schemas:
            self.flush()
        with _one_kind_each(self.field):
            schema = pa.unify_schemas(
                [pa.schema([(self.field, pa.string())]), *self.schemas], promote_options="permissive"
            )
            self.spool.seek(0)
            with pa.parquet.ParquetWriter(file, schema, compression="zstd") as out:
                for _ in self.schemas:
                    table = pa.ipc.open_stream(self.spool).read_all()
                    out.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="permissive"))


@contextmanager
def _one_kind_each(field: str) -> Iterator[None]:
    try:
        yield
    except arrow().ArrowException as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(
            f"Documents cannot be rows of a table ({why}): give each field besides {field!r} one kind, or write .jsonl."
        ) from error
