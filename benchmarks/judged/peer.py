"""bert-score, measured in the same run in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.peers import interpreter, version
from pilotfish.models import catalog

__all__ = ["bert_score"]


def bert_score(pairs: Mapping[str, Sequence[tuple[str, str]]], threads: int, repeats: int) -> dict[str, Any] | None:
    """Precision, recall and F1 of pairs, and the seconds taken, by name; None where the peer cannot be installed."""
    python = interpreter("bert-score")
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        job = {"model": str(catalog.resolve("all-minilm-l6-v2")), "layers": 6, "threads": threads, "repeats": repeats}
        path.write_text(json.dumps({**job, "pairs": pairs}), encoding="utf-8")
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        script = Path(__file__).parent / "bert_score_run.py"
        done = subprocess.run([python, script, path], capture_output=True, text=True, check=False, env=environ)
    if done.returncode != 0:
        print(f"bert-score failed: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "version": version("bert-score")}
