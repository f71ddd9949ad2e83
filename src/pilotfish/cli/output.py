"""What commands share: the console, and files written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pilotfish.errors import InputError
from pilotfish.files import replacing
from pilotfish.protocols import Progress

__all__ = ["bar", "check_place", "console", "write_text"]

# A file or a pipe has no width of its own, and rich would cut numbers at 80 columns. Names of tasks, files and extras
# may hold brackets, which are no markup.
console = Console(markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """Show a bar while something goes on, and yield what it is told: how much is done, and of how much."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        shown = progress.add_task(escape(what), total=None)
        yield lambda done, total: progress.update(shown, completed=done, total=total)


def check_place(path: Path | None, option: str) -> None:
    """Refuse a place that cannot be written before the work that would be lost; its folder is made.

    Raises
    ------
    InputError
        When it is a folder, or lies in one that cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option} is {path}, which is a folder: give a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{option} is {path}, in a folder that cannot be written to: name another.")


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")
