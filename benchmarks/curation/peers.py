"""Other tools for the same work, each run by the Python of its own virtual environment under ``benchmarks/peers/``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

__all__ = ["measured"]

PEERS = Path(__file__).parent.parent / "peers"
REQUIREMENTS = {
    "datatrove": [
        "datatrove==0.10.1",
        "spacy",
        "nltk",
        "regex",
        "tldextract",
        "fasteners",
        "orjson",
        "fasttext-wheel",
        "tokenizers",
        "xxhash==3.5.0",
    ],
    "daft": ["daft==0.7.26", "pyarrow", "numpy", "scipy"],
    "datasketch": ["datasketch==2.0.0", "rensa==0.5.0", "orjson"],
    "data-selection": ["data-selection==1.0.3", "nltk"],
    "presidio": ["presidio-analyzer==2.2.366", "spacy"],
    "profanity": ["alt-profanity-check==1.9.1"],
}


def measured(peer: str, script: str, *arguments: object, limit: float = 400) -> dict[str, Any] | None:
    """Run a script of this folder by a peer's Python; its last line is JSON. None where the peer cannot run."""
    folder = PEERS / peer
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(REQUIREMENTS[peer])} under {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS[peer]], check=False)
        if done.returncode != 0:
            return None
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, Path(__file__).with_name(script), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"{peer} took over {limit:g} s: left out", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"{peer} failed: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
