"""Read documents from files: JSON lines, Parquet, Arrow, text and WARC, each as shards."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pilotfish.curation.documents import Document, Rejected, Shard, named
from pilotfish.curation.endings import DROPPED, REPORT, STATE, SUFFIXES, arrow, is_plain_lines, kind_of, packing
from pilotfish.curation.warc import read_warc
from pilotfish.errors import InputError

__all__ = ["line_blocks", "marked", "read", "records", "shards"]

_SHARD_BYTES = 64_000_000
_LONGEST = 64_000_000
_PART_BYTES, _PART = 1_000_000, 1000
_UNPACKED_BYTES = 4096
Read = tuple[list[Document], list[Rejected]]


def shards(paths: Iterable[str | Path], *, without: Path | None = None) -> list[Shard]:
    """List the shards of files and folders, in the order given; folders in the order of names.

    Hidden files of a folder are passed over, and in one that a run wrote its report and what it dropped. So is the
    folder ``without`` where it lies in one of those given: a run does not read what it writes.

    A plain JSON-lines file is cut at line ends into parts of about 64 MB, so that one large file keeps every core busy.

    Raises
    ------
    InputError
        When there is no file, or its kind is not known.
    """
    if isinstance(paths, str | Path):
        raise InputError(f"{paths} is one path: give a list of files and folders.")
    found: list[Shard] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise InputError(f"There is no file {path}: give files or folders of documents.")
        files = [p for p in (_inside(path, without) if path.is_dir() else [path]) if kind_of(p)]
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


def _inside(folder: Path, without: Path | None) -> Iterator[Path]:
    passed_over = None if without is None else without.resolve()
    if passed_over is not None and folder.resolve() not in passed_over.parents:
        passed_over = None
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if passed_over is not None and passed_over in path.resolve().parents:
            continue
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
            yield from _parts(_of_table(path, kind, field, longest))
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
            raise InputError(f"{path} cannot be read ({error.strerror or error}): mend it or leave it out.") from error
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
    if not packed:
        with path.open("rb", buffering=1 << 20) as file:
            yield file
        return
    with (
        gzip.open(path, "rb")
        if packed == ".gz"
        else arrow().input_stream(str(path), "zstd", buffer_size=None) as stream
    ):
        unpacked = _Unpacked(stream)
        yield io.BufferedReader(unpacked, 1 << 20)
        if unpacked.broken is not None:
            raise unpacked.broken


class _Unpacked(io.RawIOBase):
    """Unpacks little by little: where a file is broken, all before that is read first, and then the error raised.

    A larger read would lose with the error what it had unpacked already.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.broken: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.broken is not None:
            raise self.broken
        try:
            part = self.stream.read1(min(len(buffer), _UNPACKED_BYTES))
        except (EOFError, zlib.error, OSError) as error:
            self.broken = error
            return 0
        buffer[: len(part)] = part
        return len(part)


def _json_lines(file: BinaryIO, shard: Shard, field: str, longest: int) -> Iterator[Read]:
    mark = marked(shard)
    for content, _, n in line_blocks(file, shard, longest):
        yield ([], [content]) if isinstance(content, Rejected) else records(content, mark, n, field, longest)


def marked(shard: Shard) -> str:
    """The name of a shard, for the places of its records."""
    name = Path(shard.path).name
    return f"{name}@{shard.start}" if shard.start else name


def line_blocks(file: BinaryIO, shard: Shard, longest: int) -> Iterator[tuple[bytes | Rejected, int, int]]:
    """Yield whole lines in blocks of about a megabyte, each with the place of its first byte and the lines before it.

    A line of more than ``longest`` bytes that does not fit a block is passed over and comes as rejected. A mark of byte
    order before the first line is none of it.
    """
    at, n, rest, skipping, ended = shard.start, 0, b"", False, False
    if at:
        file.seek(at)
    elif (rest := file.read(len(codecs.BOM_UTF8))) == codecs.BOM_UTF8:
        at, rest = len(rest), b""
    left = shard.end - at - len(rest) if shard.end >= 0 else -1
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


def records(content: bytes, mark: str, n: int, field: str, longest: int = _LONGEST) -> Read:
    """The documents among whole lines, of which the first has ``n`` before it, and what is none."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    try:
        if max(map(len, lines), default=0) > longest:
            raise TypeError
        found = [orjson.loads(line) for line in lines]
        # The common case at once: every line is an object with a text.
        return [
            Document(_texts(record[field]), named(record, f"{mark}:{n + i + 1}"), record, line)
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
                made = (
                    _checked(orjson.loads(line), field, where, line)
                    if len(line) <= longest
                    else Rejected("too_long", where, line[:80].decode("utf-8", "replace"))
                )
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
        return Document(text, named(record, where), record, raw)
    missing = not isinstance(record, dict) or field not in record
    return Rejected("no_text" if missing else "text_is_no_string", where, str(record)[:80])


def _of_table(path: Path, kind: str, field: str, longest: int) -> Iterator[Document | Rejected]:
    pa, n = arrow("parquet"), 0
    try:
        with pa.memory_map(str(path)) as source:
            batches = (
                pa.parquet.ParquetFile(source).iter_batches(_PART) if kind == ".parquet" else pa.ipc.open_stream(source)
            )
            for batch in batches:
                for record in _records_of(batch):
                    n += 1
                    yield _of_record(record, field, f"{path.name}:{n}", longest)
    except (pa.ArrowException, OSError) as error:
        # Of the system's own errors there is a number, of what is wrong inside the file there is none.
        if isinstance(error, OSError) and error.errno:
            raise
        yield Rejected("broken_file", f"{path.name}:{n + 1}", str(error)[:80])


def _records_of(batch: Any) -> Iterator[Any]:
    """The rows of a batch as mappings; of one whose text is no UTF-8 the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield from batch.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error


def _of_record(record: Any, field: str, where: str, longest: int) -> Document | Rejected:
    if isinstance(record, UnicodeDecodeError):
        return Rejected("invalid_utf8", where, str(record)[:80])
    made = _checked(record, field, where, None)
    if isinstance(made, Document) and len(made.text.encode("utf-8", "replace")) > longest:
        return Rejected("too_long", where, made.text[:80])
    return made


def _plain(file: BinaryIO, name: str, longest: int) -> Document | Rejected:
    content = file.read(longest + 1)
    if len(content) > longest:
        return Rejected("too_long", name, content[:80].decode("utf-8", "replace"))
    file.read(1)  # a packed file that is broken says so after all that is whole
    try:
        return Document(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError:
        return Rejected("invalid_utf8", name, content[:80].decode("utf-8", "replace"))
