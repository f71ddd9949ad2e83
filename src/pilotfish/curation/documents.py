"""Documents and the files that hold them: JSON lines, Parquet, Arrow, text and WARC, each as shards."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from pilotfish.errors import InputError, missing_extra

__all__ = [
    "Document",
    "Rejected",
    "Shard",
    "as_document",
    "is_plain_lines",
    "line_blocks",
    "marked",
    "opened_to_write",
    "read",
    "records",
    "shards",
    "writer",
]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt", ".md", ".warc", ".wet")
_SHARD_BYTES = 64_000_000
_LONGEST = 64_000_000
_PART_BYTES, _PART = 1_000_000, 1000


class Document(NamedTuple):
    """One text with where it comes from.

    Parameters
    ----------
    text : str
        The text.
    id : str
        Its ``id`` field, or its file and place in it.
    fields : mapping
        Every field of the record, the text included.
    raw : bytes or None
        The line it was read from, written again as it is while the text is unchanged.
    """

    text: str
    id: str = ""
    fields: Mapping[str, Any] = {}
    raw: bytes | None = None

    def line(self, field: str = "text", **more: Any) -> bytes:
        """The record as one JSON line, with further fields."""
        if self.raw is not None and not more and self.fields.get(field) is self.text:
            return self.raw + b"\n"
        record = {**({"id": self.id} if self.id else {}), **self.fields, field: self.text, **more}
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY, default=str)


class Rejected(NamedTuple):
    """Input that is no document: why, where, and its beginning."""

    reason: str
    where: str
    start: str = ""


class Shard(NamedTuple):
    """A file, or a part of one cut at line ends: from byte ``start`` to ``end`` (-1: the end of the file)."""

    path: str
    start: int = 0
    end: int = -1


Read = tuple[list[Document], list[Rejected]]


def as_document(item: Any, field: str = "text", where: str = "") -> Document:
    """Make a document of a text, a mapping with a text field, or a document.

    Raises
    ------
    InputError
        When the field is missing or is no text.

    Examples
    --------
    >>> as_document({"id": 7, "text": "One."}).id
    '7'
    """
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(item, where)
    if not isinstance(item, Mapping):
        raise InputError(f"A document is a {type(item).__name__}: give a text, or a mapping with field {field!r}.")
    text = item.get(field)
    if not isinstance(text, str):
        raise InputError(f"Field {field!r} of document {where or '?'} is {type(text).__name__}: give text.")
    return Document(text, str(item.get("id", where)), item)


def shards(paths: Iterable[str | Path]) -> list[Shard]:
    """List the shards of files and folders, in the order given; folders in the order of names.

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
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files = [p for p in inside if _kind(p)]
        if not files:
            raise InputError(f"{path} has none of the known endings: use {', '.join(_SUFFIXES)}, with .gz or .zst.")
        for file in files:
            size = file.stat().st_size
            if _kind(file) in (".jsonl", ".ndjson") and not _packing(file) and size > 2 * _SHARD_BYTES:
                found += _cut(file, size)
            else:
                found.append(Shard(str(file)))
    if not found:
        raise InputError("There is no file to read: give files or folders of documents.")
    return found


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
    kind = _kind(path)
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
                yield from _parts(_warc(file, path.name, longest))
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
            pa = _arrow()
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


def is_plain_lines(path: str | Path) -> bool:
    """Whether a file holds JSON lines as they are, not packed."""
    return _kind(Path(path)) in (".jsonl", ".ndjson", ".json") and not _packing(Path(path))


def _packing(path: Path) -> str:
    return path.suffix if path.suffix in (".gz", ".zst") else ""


def _kind(path: Path) -> str:
    name = path.with_suffix("") if _packing(path) else path
    return name.suffix if name.suffix in _SUFFIXES else ""


def _cut(path: Path, size: int) -> list[Shard]:
    edges = [0]
    with path.open("rb") as file:
        while size - edges[-1] > _SHARD_BYTES:
            file.seek(edges[-1] + _SHARD_BYTES)
            file.readline()
            if file.tell() >= size:
                break
            edges.append(file.tell())
    return [Shard(str(path), a, b) for a, b in zip(edges, [*edges[1:], -1], strict=True)]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    packing = _packing(path)
    if packing == ".gz":
        with gzip.open(path, "rb") as file:
            yield file  # type: ignore[misc]
    elif packing == ".zst":
        with _arrow().input_stream(str(path), compression="zstd", buffer_size=1 << 20) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    else:
        with path.open("rb", buffering=1 << 20) as file:
            yield file


def _arrow(part: str = "") -> Any:
    try:
        import pyarrow

        if part:
            import_module(f"pyarrow.{part}")
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Reading Parquet, Arrow or zstd files") from None
    return pyarrow


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
    pa = _arrow("parquet")
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


def _warc(file: BinaryIO, name: str, longest: int) -> Iterator[Document | Rejected]:
    n = 0
    while line := file.readline(1 << 16):
        if not line.strip():
            continue
        n += 1
        where = f"{name}:{n}"
        if not line.startswith(b"WARC/"):
            yield Rejected("broken_warc", where, line[:80].decode("utf-8", "replace"))
            return
        headers = _headers(file)
        size = headers.get("content-length", "")
        if not size.isdigit():
            yield Rejected("broken_warc", where, str(headers)[:80])
            return
        if int(size) > longest:
            yield Rejected("too_long", where, headers.get("warc-target-uri", ""))
            left = int(size)
            while left and (part := file.read(min(left, 1 << 20))):
                left -= len(part)
            continue
        content = file.read(int(size))
        if len(content) < int(size):
            yield Rejected("truncated_file", where, headers.get("warc-target-uri", ""))
            return
        uri = headers.get("warc-target-uri", where)
        if headers.get("warc-type") == "conversion":
            yield Document(content.decode("utf-8", "replace"), uri, {"url": uri})
        elif headers.get("warc-type") == "response":
            inner = io.BytesIO(content)
            inner.readline()
            http = _headers(inner)
            if "html" in http.get("content-type", "html"):
                charset = http.get("content-type", "").partition("charset=")[2].strip(' "') or "utf-8"
                yield Document(_page_text(inner.read(), charset), uri, {"url": uri})


def _headers(file: Any) -> dict[str, str]:
    found = {}
    while (line := file.readline(1 << 16)) and line.strip():
        key, _, value = line.decode("utf-8", "replace").partition(":")
        found[key.strip().lower()] = value.strip()
    return found


class _PageText(HTMLParser):
    """Keeps what a page shows: a line for each block, nothing of scripts and styles."""

    _HIDDEN = frozenset({"script", "style", "noscript", "template", "head", "nav", "footer"})
    _BLOCKS = frozenset({"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002 - the parser's own shape
        self.hidden += tag in self._HIDDEN
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self._HIDDEN and self.hidden > 0
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _page_text(content: bytes, charset: str) -> str:
    try:
        page = content.decode(charset, "replace")
    except LookupError:
        page = content.decode("utf-8", "replace")
    parser = _PageText()
    parser.feed(page)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


@contextmanager
def writer(path: Path, field: str = "text") -> Iterator[Any]:
    """Open a file for documents by its ending: JSON lines, Parquet, or text apart by empty lines; yields ``write``,
    which takes a list of them.

    The file appears whole or not at all.
    """
    kind = _kind(path)
    if kind == ".parquet":
        with opened_to_write(path) as file:
            rows = _ParquetRows(file, field)
            yield rows.add
            rows.close()
    elif kind in (".jsonl", ".ndjson", ".json", ".txt"):
        with opened_to_write(path) as file:
            if kind == ".txt":
                yield lambda documents: file.writelines(
                    d.text.rstrip("\n").encode("utf-8", "replace") + b"\n\n" for d in documents
                )
            else:
                yield lambda documents: file.write(b"".join([d.line(field) for d in documents]))
    else:
        raise InputError(f"{path.name} has no known ending: write .jsonl, .parquet or .txt, .jsonl with .gz or .zst.")


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
        pa = _arrow("parquet")
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
