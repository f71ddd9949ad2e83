"""What the ending of a file's name says of it, and what a run writes beside its files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from pilotfish.errors import missing_extra

__all__ = ["DROPPED", "REPORT", "STATE", "SUFFIXES", "arrow", "is_plain_lines", "kind_of", "packing", "stem_of"]

STATE, REPORT, DROPPED = ".state", "report.json", "dropped"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt", ".md", ".warc", ".wet")


def is_plain_lines(path: str | Path) -> bool:
    """Whether a file holds JSON lines as they are, not packed."""
    return kind_of(Path(path)) in (".jsonl", ".ndjson", ".json") and not packing(Path(path))


def packing(path: Path) -> str:
    """The ending that says how a file is packed; empty where it is not."""
    return path.suffix if path.suffix in (".gz", ".zst") else ""


def kind_of(path: Path) -> str:
    """The ending that says what a file holds, packed or not; empty where it is not known."""
    name = path.with_suffix("") if packing(path) else path
    return name.suffix if name.suffix in SUFFIXES else ""


def stem_of(path: Path) -> str:
    """A file's name without the endings that say how it is packed and what it holds."""
    name = path.with_suffix("") if packing(path) else path
    return name.stem if name.suffix in SUFFIXES else name.name


def arrow(part: str = "") -> Any:
    """The package pyarrow, with one of its parts."""
    try:
        import pyarrow

        if part:
            import_module(f"pyarrow.{part}")
    except ImportError:
        raise missing_extra("pyarrow", "parquet", "Reading Parquet, Arrow or zstd files") from None
    return pyarrow
