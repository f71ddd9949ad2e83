"""The recorded traffic of the banking set, as logged calls."""

from __future__ import annotations

import numpy as np

from benchmarks.figures import Run
from pilotfish.traffic.calls import Call

TASK = "banking77"


def recorded_calls(run: Run, seed: int, *, n: int | None = None) -> list[Call]:
    """All recorded calls, train and test together, in a seeded random order; gold labels are left out."""
    rows = [*run.rows("banking77/train.jsonl.gz"), *run.rows("banking77/test.jsonl.gz")]
    order = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [
        Call.of(rows[i]["text"], rows[i]["llm"], task=TASK, cost=rows[i]["llm_cost_usd"], id=f"banking-{i}")
        for i in order
    ]
