"""What earlier runs of a long part measured, kept beside the models: the next run goes on where they stopped."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.figures import Run
from pilotfish.models import catalog

__all__ = ["Kept"]


class Kept:
    """Rows of a part of a benchmark; nothing is kept of a quick run.

    Parameters
    ----------
    run : Run
        The run.
    name, part : str
        Of the benchmark, and of its part.
    """

    def __init__(self, run: Run, name: str, part: str) -> None:
        self.part = part
        self.path = None if run.quick else catalog.cache_dir("x").parent.parent / "benchmarks" / f"{name}.jsonl"
        lines = self.path.read_text().splitlines() if self.path is not None and self.path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["part"] == part]

    def add(self, **row: Any) -> None:
        """Keep a row."""
        self.rows.append({"part": self.part, **row})
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.rows[-1]) + "\n")
