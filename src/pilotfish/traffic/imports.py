"""Import of other tools' logs into the traffic log, as one step and any number of times."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, get_args

import orjson

from pilotfish.errors import InputError
from pilotfish.protocols import Progress
from pilotfish.traffic.calls import Call, answer_text
from pilotfish.traffic.formats import Format, Imported, format_of, read_record
from pilotfish.traffic.log import TrafficLog

__all__ = ["ImportReport", "import_file"]

MAX_TOLD = 20
MAX_CELL_CHARACTERS = 1 << 27
_KINDS = {"str": (str,), "float": (int, float), "int": (int,), "bool": (bool,), "None": (type(None),)}
_OWN_FIELDS = {
    f.name: tuple(kind for part in str(f.type).split(" | ") for kind in _KINDS[part])
    for f in fields(Call)
    if f.name not in ("seq", "request", "reply")
}


@dataclass(slots=True)
class ImportReport:
    """What became of a file's records.

    Parameters
    ----------
    n_new, n_known : int
        Calls written, and calls that the log had already.
    n_skipped : int
        Sound records that are no calls: failed ones, spans of a trace.
    n_bad : int
        Records that could not be read.
    bad : list of (int, str)
        Line and what is wrong with it, for the first of them.
    """

    n_new: int = 0
    n_known: int = 0
    n_skipped: int = 0
    n_bad: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)

    def reject(self, line: int, why: str) -> None:
        """Count a record that could not be read."""
        self.n_bad += 1
        if len(self.bad) < MAX_TOLD:
            self.bad.append((line, why))


def import_file(
    log: TrafficLog,
    path: Path,
    *,
    kind: Format | None = None,
    task: str | None = None,
    model: str = "",
    system: str | None = None,
    requests: Path | None = None,
    task_of: Callable[[Mapping[str, Any], Mapping[str, str]], str | None] | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import a file of calls: all of its sound records are written, or none.

    A record's id comes from what it says and from how often the file said so before: importing a file again, or a
    longer one that begins with it, writes only what is new.

    Parameters
    ----------
    log : TrafficLog
        Where the calls go.
    path : Path
        JSON lines, a JSON list or a table with a head row (``.csv``), plain or compressed with gzip (``.gz``).
    kind : str or None
        Which tool wrote it; found out record by record unless given.
    task : str or None
        The task of all calls that name none.
    model, system : str
        Model and system message of records that name none.
    requests : Path or None
        The input file of a batch, whose output file holds the replies only.
    task_of : callable or None
        Names the task of a call from its body and headers.
    progress : callable or None
        Told of bytes read and bytes in all.

    Raises
    ------
    InputError
        When the file cannot be read, or nothing in it can.
    LogError
        When the log cannot be written; nothing of the file is in it then.
    """
    if kind is not None and kind not in get_args(Format):
        raise InputError(f"Import format is {kind!r}: use one of {', '.join(get_args(Format))}.")
    report = ImportReport()
    bodies = _request_bodies(requests) if requests is not None else {}
    now = time.time()
    seen: Counter[str] = Counter()

    def calls() -> Iterator[Call]:
        for line, record in _records(path, report, progress):
            try:
                call = _call(record, kind or format_of(record), bodies, now, model, system)
            except InputError as error:
                report.reject(line, f"{error}.")
                continue
            if call is None:
                report.n_skipped += 1
                continue
            if not call.id:
                digest = _digest(record)
                seen[digest] += 1
                call = call.replace(id=f"import-{digest}-{seen[digest]}")
            if call.task is None:
                call = call.replace(task=task or (task_of(orjson.loads(call.request), {}) if task_of else None))
            yield call

    report.n_new, report.n_known = log.insert_new(calls())
    if report.n_bad and not (report.n_new or report.n_known or report.n_skipped):
        line, why = report.bad[0]
        raise InputError(f"Nothing in {path} could be imported; line {line}: {why}")
    return report


def _call(
    record: Mapping[str, Any],
    kind: Format,
    bodies: Mapping[str, Mapping[str, Any]],
    now: float,
    model: str,
    system: str | None,
) -> Call | None:
    if kind == "pilotfish":
        return _own(record)
    found = read_record(record, kind, bodies)
    if found is None:
        return None
    request = _completed(found.request, model, system)
    given = {name: value for name, value in found.fields.items() if value is not None}
    n_prompt, n_completion = _tokens(found)
    reply_id = found.reply.get("id")
    return Call(
        id="",
        created=given.pop("created", now),
        model=str(request.get("model") or ""),
        request=orjson.dumps(request),
        reply=orjson.dumps(found.reply),
        reason="imported",
        prompt_tokens=int(given.pop("prompt_tokens", n_prompt)),
        completion_tokens=int(given.pop("completion_tokens", n_completion)),
        reply_id=reply_id if isinstance(reply_id, str) else "",
        **given,
    )


def _completed(request: dict[str, Any], model: str, system: str | None) -> dict[str, Any]:
    if model and not request.get("model"):
        request = {**request, "model": model}
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise InputError("its request has no messages: only chat calls can be imported")
    if system and not any(m.get("role") in ("system", "developer") for m in messages):
        request = {**request, "messages": [{"role": "system", "content": system}, *messages]}
    return request


def _tokens(found: Imported) -> tuple[int, int]:
    if not answer_text(found.reply) and not found.reply.get("choices"):
        raise InputError("its reply has no choices: only chat calls can be imported")
    usage = found.reply.get("usage")
    if not isinstance(usage, Mapping):
        return 0, 0
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    n_prompt, n_completion = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    return n_prompt, n_completion


def _own(record: Mapping[str, Any]) -> Call:
    """A call of our own export, with its id."""
    given = {name: value for name, value in record.items() if name in _OWN_FIELDS}
    for name, value in given.items():
        kinds = _OWN_FIELDS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InputError(f"field '{name}' is {value!r:.40}: export the calls again")
    if not given.get("id") or "created" not in given:
        raise InputError("fields 'id' and 'created' are missing: export the calls again")
    return Call(**given, request=_body(record.get("request")), reply=_body(record.get("reply")))


def _body(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else orjson.dumps(value) if value is not None else b""


def _digest(record: Mapping[str, Any]) -> str:
    text = orjson.dumps(dict(record), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(text).hexdigest()[:32]


def _request_bodies(path: Path) -> dict[str, Mapping[str, Any]]:
    bodies: dict[str, Mapping[str, Any]] = {}
    for line, record in _records(path, ImportReport(), None):
        name, body = record.get("custom_id"), record.get("body")
        if not isinstance(name, str) or not isinstance(body, Mapping):
            raise InputError(f"Line {line} of {path} has no 'custom_id' and 'body': give the batch's input file.")
        bodies[name] = body
    return bodies


def _records(path: Path, report: ImportReport, progress: Progress | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records of a file with their lines; lines that hold none are counted as bad."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    with _opened(path) as (stream, position, size):
        rows = _table_rows(stream, path, report) if ".csv" in suffixes else _json_rows(stream, report)
        for n_rows, row in enumerate(rows):
            if progress is not None and n_rows % 256 == 0:
                progress(position(), size)
            yield row
        if progress is not None:
            progress(size, size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int], int]]:
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            yield stream, raw.tell, size
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"The file {path} cannot be read ({why}): give a readable one.") from error


def _json_rows(stream: IO[bytes], report: ImportReport) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(stream, 1):
        line = line.strip().removeprefix(b"\xef\xbb\xbf")
        if not line:
            continue
        if number == 1 and line.startswith(b"["):
            yield from _list_rows(line + b"\n" + stream.read(), report)
            return
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            report.reject(number, f"it is not valid JSON ({error}).")
            continue
        if not isinstance(record, dict):
            report.reject(number, "it is not a JSON object.")
            continue
        yield number, record


def _list_rows(text: bytes, report: ImportReport) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        records = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        report.reject(1, f"the list is not valid JSON ({error}).")
        return
    for number, record in enumerate(records, 1):
        if isinstance(record, dict):
            yield number, record
        else:
            report.reject(number, "it is not a JSON object.")


def _table_rows(stream: IO[bytes], path: Path, report: ImportReport) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text)
    try:
        names = reader.fieldnames or []
        if "input" not in names or "output" not in names:
            raise InputError(f"The head row of {path} is {','.join(names)[:200]!r}: name columns 'input' and 'output'.")
        for row in reader:
            if None in row:
                n_cells, n_names = len(names) + len(row[None]), len(names)
                why = f"it has {n_cells} cells under {n_names} names: quote the cells that hold a comma."
                report.reject(reader.line_num, why)
                continue
            yield reader.line_num, {name: value for name, value in row.items() if value != ""}
    except UnicodeDecodeError as error:
        raise InputError(f"The file {path} is no table in UTF-8 ({error}): save it as UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"The file {path} is no table ({error}): mend line {reader.line_num + 1}.") from error
    finally:
        # An import that ends early closes the file first.
        if not text.closed:
            text.detach()
