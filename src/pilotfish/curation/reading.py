"""Read documents from files: JSON lines, Parquet, Arrow, text and WARC, each as shards."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pilotfish.curation.documents import Document, Rejected, Shard
from pilotfish.curation.endings import DROPPED, REPORT, STATE, SUFFIXES, arrow, is_plain_lines, kind_of, packing
from pilotfish.curation.warc import read_warc
from pilotfish.errors import InputError

__all__ = ["line_blocks", "marked", "read", "records", "shards"]

_SHARD_BYTES = 64_000_000
_LONGEST = 64_000_000
_PART_BYTES, _PART = 1_000_000, 1000
Read = tuple[list[Document], list[Rejected]]


def shards(paths: Iterable[str | Path]) -> list[Shard]:
    """List the shards of files and folders, in the order given; folders in the order of names.

    Hidden files of a folder are passed over, and in one that a run wrote its report and what it dropped.

    A plain JSON-lines file is cut at line ends into parts of about 64 MB, so that one large file keeps every core busy.

    Raises
    ------
    InputError
        When there is no file, or its kind is not known.
    """
    found: list[Shard] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise InputError(f"There is no file {path}: give files or folders of documents.")
        files = [p for p in (_inside(path) if path.is_dir() else [path]) if kind_of(p)]
        if not files:
            raise InputError(f"{path} has none of the known endings: use {', '.join(SUFFIXES)}, with .gz or .zst.")
        for file in files:
            size = file.stat().st_size
            if is_plain_lines(file) and file.suffix != ".json" and size > 2 * _SHARD_BYTES:
                found += _cut(file, size)
            else:
                found.append(Shard(str(file)))
    if not found:
        raise InputError("There is no file to read: give files or folders of documents.")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if path.is_file() and not any(name.startswith(".") for name in names):
            wrote = (path.parents[i] for i in range(len(names)) if (path.parents[i] / STATE).is_dir())
            below = [path.relative_to(run).parts for run in wrote]
            if not any(parts[0] == DROPPED or parts == (REPORT,) for parts in below):
                yield path


def read(shard: Shard, field: str = "text", longest: int = _LONGEST) -> Iterator[Read]:
    """Yield the documents of a shard in parts of about a megabyte, and what is no document with its reason.

    Parameters
    ----------
    shard : Shard
        What to read.
    field : str
        Name of the text field.
    longest : int
        A longer record, in bytes, is rejected unread.

    Yields
    ------
    documents : list of Document
    rejected : list of Rejected
    """
    path = Path(shard.path)
    kind = kind_of(path)
    try:
        if kind in (".jsonl", ".ndjson", ".json"):
            with _opened(path) as file:
                yield from _json_lines(file, shard, field, longest)
        elif kind in (".parquet", ".arrow"):
            yield from _parts(
                _checked(record, field, f"{path.name}:{n + 1}", None)
                for n, record in enumerate(_table_rows(path, kind))
            )
        elif kind in (".warc", ".wet"):
            with _opened(path) as file:
                yield from _parts(read_warc(file, path.name, longest))
        else:
            with _opened(path) as file:
                yield from _parts([_plain(file, path.name, longest)])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield [], [Rejected("truncated_file", path.name, str(error))]
    except OSError as error:
        if "zstd" not in str(error).lower() and "truncated" not in str(error).lower():
            raise
        yield [], [Rejected("truncated_file", path.name, str(error))]


def _parts(found: Iterable[Document | Rejected]) -> Iterator[Read]:
    documents: list[Document] = []
    rejected: list[Rejected] = []
    size = 0
    for item in found:
        if isinstance(item, Rejected):
            rejected.append(item)
        else:
            documents.append(item)
            size += len(item.text)
        if size > _PART_BYTES or len(documents) + len(rejected) >= _PART:
            yield documents, rejected
            documents, rejected, size = [], [], 0
    if documents or rejected:
        yield documents, rejected


def _cut(path: Path, size: int) -> list[Shard]:
    edges = [0]
    with path.open("rb") as file:
        while size - edges[-1] > _SHARD_BYTES:
            file.seek(edges[-1] + _SHARD_BYTES)
            # Little by little: one line may be longer than the memory.
            while (part := file.readline(_PART_BYTES)) and not part.endswith(b"\n"):
                pass
            if file.tell() >= size:
                break
            edges.append(file.tell())
    return [Shard(str(path), a, b) for a, b in zip(edges, [*edges[1:], -1], strict=True)]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    packed = packing(path)
    if packed == ".gz":
        with gzip.open(path, "rb") as file:
            yield file  # type: ignore[misc]
    elif packed == ".zst":
        with arrow().input_stream(str(path), compression="zstd", buffer_size=1 << 20) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    else:
        with path.open("rb", buffering=1 << 20) as file:
            yield file


def _json_lines(file: BinaryIO, shard: Shard, field: str, longest: int) -> Iterator[Read]:
    mark = marked(shard)
    for content, _, n in line_blocks(file, shard, longest):
        yield ([], [content]) if isinstance(content, Rejected) else records(content, mark, n, field)


def marked(shard: Shard) -> str:
    """The name of a shard, for the places of its records."""
    name = Path(shard.path).name
    return f"{name}@{shard.start}" if shard.start else name


def line_blocks(file: BinaryIO, shard: Shard, longest: int) -> Iterator[tuple[bytes | Rejected, int, int]]:
    """Yield whole lines in blocks of about a megabyte, each with the place of its first byte and the lines before it.

    A line of more than ``longest`` bytes is passed over and comes as rejected.
    """
    if shard.start:
        file.seek(shard.start)
    left = shard.end - shard.start if shard.end >= 0 else -1
    at, n, rest, skipping, ended = shard.start, 0, b"", False, False
    while not ended:
        content = file.read(_PART_BYTES if left < 0 else min(_PART_BYTES, left))
        left -= len(content) if left > 0 else 0
        ended = not content
        content = rest + content
        if skipping:
            end = content.find(b"\n") + 1 or len(content)
            skipping = not content.endswith(b"\n", 0, end)
            at, content = at + end, content[end:]
        whole = len(content) if ended else content.rfind(b"\n") + 1
        rest, content = content[whole:], content[:whole]
        if content:
            yield content, at, n
            n, content = n + content.count(b"\n"), b""
        at += whole
        if len(rest) > longest:
            n += 1
            where = f"{marked(shard)}:{n}"
            yield Rejected("too_long", where, rest[:80].decode("utf-8", "replace")), at, n
            at, rest, skipping = at + len(rest), b"", True


def records(content: bytes, mark: str, n: int, field: str) -> Read:
    """The documents among whole lines, of which the first has ``n`` before it, and what is none."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    try:
        found = [orjson.loads(line) for line in lines]
        # The common case at once: every line is an object with a text.
        return [
            Document(_texts(record[field]), str(record.get("id", f"{mark}:{n + i + 1}")), record, line)
            for i, (record, line) in enumerate(zip(found, lines, strict=True))
        ], []
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        documents: list[Document] = []
        rejected: list[Rejected] = []
        for i, line in enumerate(lines):
            where = f"{mark}:{n + i + 1}"
            if not line or line.isspace():
                continue
            try:
                made = _checked(orjson.loads(line), field, where, line)
            except orjson.JSONDecodeError:
                made = Rejected(_why_broken(line), where, line[:80].decode("utf-8", "replace"))
            documents.append(made) if isinstance(made, Document) else rejected.append(made)
        return documents, rejected


def _texts(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _why_broken(line: bytes) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid_utf8"
    return "broken_json"


def _checked(record: Any, field: str, where: str, raw: bytes | None) -> Document | Rejected:
    text = record.get(field) if isinstance(record, dict) else None
    if isinstance(text, str):
        name = record.get("id")
        return Document(text, where if name is None else str(name), record, raw)
    missing = not isinstance(record, dict) or field not in record
    return Rejected("no_text" if missing else "text_is_no_string", where, str(record)[:80])


def _table_rows(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    pa = arrow("parquet")
    if kind == ".parquet":
        try:
            batches: Any = pa.parquet.ParquetFile(str(path)).iter_batches(1000)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is no Parquet file ({error}): leave it out or write it again.") from error
    else:
        with pa.memory_map(str(path)) as source:
            batches = pa.ipc.open_stream(source)
            for batch in batches:
                yield from batch.to_pylist()
        return
    for batch in batches:
        yield from batch.to_pylist()


def _plain(file: BinaryIO, name: str, longest: int) -> Document | Rejected:
    content = file.read(longest + 1)
    if len(content) > longest:
        return Rejected("too_long", name, content[:80].decode("utf-8", "replace"))
    try:
        return Document(content.decode("utf-8"), name)
    except UnicodeDecodeError:
        return Rejected("invalid_utf8", name, content[:80].decode("utf-8", "replace"))
