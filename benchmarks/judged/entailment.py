"""The small entailment model of the benchmarks: trained once on esnli, RTE and corrupted web text, then kept."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Run
from pilotfish.models import catalog
from pilotfish.scorers.entailment import SmallEntailment
from pilotfish.training.entailment import Inference, corrupted, train_entailment

__all__ = ["entailment_model", "plain_documents"]


def plain_documents(run: Run) -> list[str]:
    """Web text of the shared data."""
    return [str(row["input"]) for row in run.rows("c4_sample/c4.jsonl.gz")]


def entailment_model(run: Run) -> SmallEntailment | None:
    """The model in the cache; a full run trains it where it is not there, a quick one goes without."""
    folder: Path = catalog.cache_dir("nli-minilm")
    if not (folder / "head.safetensors").is_file():
        if run.quick:
            print(f"no entailment model at {folder}: a full run trains it; rules and overlap alone are measured")
            return None
        started = time.perf_counter()
        train_entailment(_examples(run), folder, n_epochs=1, n_frozen=3, batch_tokens=1000)
        print(f"trained the entailment model in {time.perf_counter() - started:.0f} s")
    return SmallEntailment(folder, precision="int8")


def _examples(run: Run) -> list[Inference]:
    rng = np.random.default_rng(0)
    pairs = [r for r in run.rows("esnli/dev.jsonl.gz") if r["label"] in ("entailment", "neutral", "contradiction")]
    made = [Inference(r["premise"], r["hypothesis"], r["label"]) for r in pairs]
    made = [made[i] for i in rng.permutation(len(made))[:5000]]
    rte = []
    for r in run.rows("rte/rte1-3.jsonl.gz"):
        right = str(r.get("value", r.get("entailment"))).upper() in ("TRUE", "YES")
        if len(r["premise"]) < 300:
            rte.append(Inference(r["premise"], r["hypothesis"], "entailment" if right else "not entailment"))
    made += [rte[i] for i in rng.permutation(len(rte))[:1500]]
    made += [e for e in corrupted(plain_documents(run), 3000, 1) if len(e.premise) < 420][:1000]
    return [made[i] for i in rng.permutation(len(made))]
