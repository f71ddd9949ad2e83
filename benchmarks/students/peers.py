"""ThinkLess and Jevstiller: learn from the same calls, then say which of the test calls they would answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.peers import interpreter, version

__all__ = ["answered"]

SCRIPTS = Path(__file__).parent


def answered(
    peer: str,
    system: str,
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    level: float,
    labels: Sequence[str],
) -> dict[str, Any] | None:
    """Let a peer learn (text, answer) pairs and answer test pairs; None where it cannot be installed.

    Returns
    -------
    dict
        ``version``, ``seconds`` to learn, and per test call ``local`` and ``said``.
    """
    python = interpreter(peer)
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "folder": folder,
            "system": system,
            "train": list(train),
            "test": list(test),
            "level": level,
            "labels": list(labels),
            "encoder": _encoder() if peer == "jevstiller" else None,
        }
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [python, SCRIPTS / f"{peer}_student.py", path], capture_output=True, text=True, check=False, env=environ
        )
        if done.returncode != 0:
            print(f"{peer} failed: {done.stderr[-2000:]}", file=sys.stderr)
            return None
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "version": version(peer)}


def _encoder() -> dict[str, str]:
    """The sentence encoder that Pilotfish's student reads with, in full precision, for the peer that takes one."""
    from pilotfish.models import catalog
    from pilotfish.models.embedder import OnnxEmbedder

    OnnxEmbedder("all-minilm-l6-v2").embed(["build the graph"])
    folder = catalog.resolve("all-minilm-l6-v2")
    return {"graph": str(folder / "pilotfish-fp32-mean.onnx"), "tokenizer": str(folder / "tokenizer.json")}
