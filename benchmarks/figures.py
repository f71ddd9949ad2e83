"""One figure of a benchmark, printed as one JSON line and saved with the set-up it was measured on."""

from __future__ import annotations

import gzip
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.files import replacing

RESULTS = Path(__file__).parent / "results"


@dataclass
class Run:
    """One run of a benchmark.

    Parameters
    ----------
    name : str
        The benchmark.
    data : Path
        Folder of the shared data.
    quick : bool
        Two minutes on two cores.
    only : frozenset of str
        Parts to run; empty means all.
    figures : list of dict
        What was measured so far.
    started : float
        Seconds since the epoch.
    ended : bool
        Whether the run got to its end.
    """

    name: str
    data: Path
    quick: bool = False
    only: frozenset[str] = frozenset()
    figures: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    ended: bool = False

    def wants(self, part: str) -> bool:
        """Whether a part was asked for."""
        return not self.only or part in self.only

    def wants_long(self, part: str) -> bool:
        """Whether a part that takes long was asked for: a quick run leaves it out unless it is named."""
        return self.wants(part) and (part in self.only or not self.quick)

    def figure(
        self,
        figure: str,
        value: float,
        *,
        unit: str,
        better: str,
        n: int,
        seeds: int = 1,
        low: float | None = None,
        high: float | None = None,
        peer: str | None = None,
        peer_value: float | None = None,
        peer_source: str | None = None,
        **more: Any,
    ) -> None:
        """Print one figure as a JSON line; ``better`` is ``higher`` or ``lower``."""
        row = {
            "benchmark": self.name,
            "figure": figure,
            "value": _rounded(value),
            "unit": unit,
            "better": better,
            "peer": peer,
            "peer_value": _rounded(peer_value),
            "peer_source": peer_source,
            "n": n,
            "seeds": seeds,
            "low": _rounded(low),
            "high": _rounded(high),
            **more,
        }
        row = {key: item for key, item in row.items() if item is not None}
        self.figures.append(row)
        print(json.dumps(row), flush=True)

    def rows(self, path: str) -> Iterator[dict[str, Any]]:
        """Read a gzip-compressed JSONL file of the shared data."""
        with gzip.open(self.data / path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def save(self) -> None:
        """Save the figures with their set-up under ``benchmarks/results/``; those of quick runs are not saved.

        A run of some parts, or one that was stopped, replaces the figures it measured and leaves the others, each with
        its own date.
        """
        if self.quick or not self.figures:
            return
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        kept = (
            json.loads(path.read_text(encoding="utf-8"))["figures"]
            if path.exists() and (self.only or not self.ended)
            else []
        )
        date = time.strftime("%Y-%m-%d", time.gmtime(self.started))
        rows = {row["figure"]: row for row in [*kept, *({**row, "date": date} for row in self.figures)]}
        setup = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": {
                name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "onnxruntime", "aiohttp")
            },
        }
        text = json.dumps({"setup": setup, "figures": list(rows.values())}, indent=1)
        with replacing(path) as half:
            half.write_text(text + "\n", encoding="utf-8")


def bootstrap(values: np.ndarray, seed: int = 0, n_resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` (n,)."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, size=(n_resamples, values.size)).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
