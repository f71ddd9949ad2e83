"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Self
from zipfile import BadZipFile

from pilotfish.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ArrayFile",
    "json_lines",
    "locked",
    "read_arrays",
    "refuse_changed",
    "replacing",
    "sha256_of",
    "write_arrays",
]


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file between processes, and say whether it was free.

    Parameters
    ----------
    path : Path
        Made with its folder where it is missing.
    wait : bool
        Wait until it is free.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder) / "lock") as one, locked(Path(folder) / "lock") as other:
    ...         print(one, other)
    True False
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield _held(file, wait)


def _held(file: IO[str], wait: bool) -> bool:
    # The system drops the lock when the file is closed, also when the process is killed.
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
                time.sleep(0.1)
            else:
                return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            raise
        return False
    return True


@contextmanager
def replacing(path: str | Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary name beside a path; what was written there takes the path's place, unless something failed.

    Parameters
    ----------
    path : str or Path
        The file or folder to be written.
    private : bool
        Whether only the file's owner may read it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as half:
    ...         _ = half.write_text("whole")
    ...     [file.name for file in Path(folder).iterdir()]
    ['a.txt']
    """
    target = Path(path)
    half = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if private:
            half.touch(mode=0o600)
        yield half
        if half.is_dir() and target.is_dir():
            # A folder that holds something cannot be replaced in one step.
            shutil.rmtree(target)
        half.replace(target)
    except OSError as error:
        if error.filename == str(half):  # what was asked for is the target
            error.filename = str(target)
        raise
    finally:
        if half.is_dir():
            shutil.rmtree(half, ignore_errors=True)
        else:
            with suppress(OSError):
                half.unlink(missing_ok=True)


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with the numbers of their lines; blank lines are passed over.

    Half of a surrogate pair, as a text has that was cut within an emoji, is read as U+FFFD.

    Raises
    ------
    InputError
        When the file cannot be read, or a line is no JSON object; the sentence names the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.jsonl").write_text('{"x": 1}')
    ...     list(json_lines(Path(folder) / "a.jsonl"))
    [(1, {'x': 1})]
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a file of JSON lines in UTF-8.") from error
    # Not splitlines: JSON may hold other ends of lines, such as U+2028, inside a text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\ud" in line.lower():
                whole = json.dumps(row, ensure_ascii=False).encode("utf-16", "surrogatepass")
                row = json.loads(whole.decode("utf-16", "replace"))
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise InputError(f"{path} line {number} is no JSON ({why}): give one object a line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is no JSON object: give one object a line.")
        yield number, row


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_changed(path: str | Path, sha256: str) -> None:
    """Refuse a saved file that is gone or no longer the one that was saved.

    Raises
    ------
    InputError
        When it cannot be read.
    IntegrityError
        When its SHA-256 is another.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: give a folder of a saved student.") from error
    if found != sha256:
        raise IntegrityError(f"{path} is not the file that was saved: learn the task again.")


def write_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]], *, private: bool = False) -> None:
    """Write named arrays as a compressed npz archive, as :func:`replacing` writes."""
    import numpy as np

    with replacing(path, private=private) as half, half.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def read_arrays(path: str | Path, what: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Open an npz archive; pickled objects are refused, and whatever fails inside the block is put down to the file.

    Parameters
    ----------
    path : str or Path
        The file.
    what : str
        What it should be, for the sentence of the error.

    Raises
    ------
    InputError
        When the file is something else, damaged, or lacks an array that is asked for.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_arrays(Path(folder) / "a.npz", {"x": np.arange(3)})
    ...     with read_arrays(Path(folder) / "a.npz", "list") as arrays:
    ...         arrays["x"]
    array([0, 1, 2])
    """
    import numpy as np

    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        why = str(getattr(error, "strerror", None) or error)
        if "pickle" in why:  # so numpy says of any other file, and how to load it at one's own risk
            why = "it is no npz archive"
        raise InputError(f"{path} is no saved {what} ({why}): give a file that was written as one.") from error


class ArrayFile(ABC):
    """Something learned that is saved as one npz archive, without pickle: its arrays, under their names."""

    _kept_as: ClassVar[str]

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Write what was learned as plain arrays."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what :meth:`to_arrays` wrote."""

    def save(self, path: str | Path) -> None:
        """Save as an npz archive, without pickle."""
        write_arrays(path, self.to_arrays())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is something else.
        """
        with read_arrays(path, cls._kept_as) as file:
            return cls.from_arrays(file)
