"""What earlier runs of a long part measured, kept beside the models: the next run goes on where they stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.figures import Run
from pilotfish.files import read_arrays, write_arrays
from pilotfish.models import catalog

__all__ = ["Kept", "kept_arrays"]


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


def kept_arrays(
    run: Run, name: str, made_of: object, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that take long to make, kept under their name for as long as they are made of the same.

    Parameters
    ----------
    run : Run
        The run; a quick one keeps nothing.
    name : str
        Of the file.
    made_of : object
        What they depend on; its ``repr`` tells whether it is the same.
    make : callable
        Makes them.
    """
    if run.quick:
        return dict(make())
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    path = catalog.cache_dir("x").parent.parent / "benchmarks" / f"{name}-{key}.npz"
    if path.exists():
        with read_arrays(path, "columns") as file:
            return {column: file[column] for column in file}
    made = dict(make())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, made)
    return made
