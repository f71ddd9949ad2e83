"""What commands share: the console, and files written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pilotfish.files import replacing

__all__ = ["console", "write_text"]

console = Console()


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        half.write_text(text, encoding="utf-8")
