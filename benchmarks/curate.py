"""Rules and whole recipes: speed on one core, the same decisions as the reference, and what more steps cost."""

from __future__ import annotations

import json
import time
from itertools import islice

import numpy as np

from benchmarks.curation.corpus import corpus
from benchmarks.curation.peers import measured
from benchmarks.figures import Run
from pilotfish.curation import Language, MinHashDedup, Rules
from pilotfish.curation.importance import ImportanceWeight
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.steps import Filter
from pilotfish.rules import Threshold


def main(run: Run) -> None:
    made = corpus(run)
    n = 10_000 if run.quick else 20_000
    texts = [d["text"] for d in islice(made.documents(), n)]
    parts = [texts[i : i + 500] for i in range(0, len(texts), 500)]
    n_bytes = sum(len(text.encode()) for text in texts)
    rules = Rules.gopher() + Rules.c4() + Rules.fineweb()
    weight = Filter("likeness", ImportanceWeight().fit(texts[:200], texts[:400]), Threshold(-np.inf))
    recipes = {
        "rules": [rules],
        "language": [Language("en", 0.0)],
        "signature": [MinHashDedup()],
        "n-gram features": [weight],
        "whole recipe": [rules, Language("en", 0.0), MinHashDedup(), weight],
    }
    # In turns, so that what else the machine does meets all alike.
    rounds = [{name: _timed(parts, steps) for name, steps in recipes.items()} for _ in range(2 if run.quick else 4)]
    seconds = {name: min(round_[name] for round_ in rounds) for name in recipes}
    for name, took in seconds.items():
        print(f"{name:16s} {n_bytes / took / 1e6:7.1f} MB/s a core", flush=True)
    slowest = max(took for name, took in seconds.items() if name != "whole recipe")
    agreement, peer = _agreement(run, made.files[0])
    run.figure(
        "rules_mb_per_s_core",
        n_bytes / seconds["rules"] / 1e6,
        unit="MB/s a core",
        better="higher",
        n=len(texts),
        target=10,
        peer="datatrove" if peer else None,
        peer_value=peer,
        peer_source="measured" if peer else None,
    )
    if agreement is not None:
        run.figure("rules_agreement", agreement, unit="share of decisions", better="higher", n=1200, target=0.995)
    run.figure(
        "fused_ratio",
        seconds["whole recipe"] / slowest,
        unit="whole recipe over its slowest step",
        better="lower",
        n=len(texts),
        target=1.5,
    )


def _timed(parts: list[list[str]], steps: list) -> float:
    """Seconds to read every part once and judge it by every step."""
    from pilotfish.curation.documents import Document

    documents = [[Document(text, str(i)) for i, text in enumerate(part)] for part in parts]
    started = time.process_time()
    for part, group in zip(parts, documents, strict=True):
        plan = Plan()
        for step in steps:
            step.plan(plan)
        batch = Batch(part).scan(plan)
        rows = np.arange(len(part))
        for step in steps:
            step.keys(batch, rows, group) if hasattr(step, "keys") else step.judge(batch, rows, group)
    return time.process_time() - started


def _agreement(run: Run, path) -> tuple[float | None, float | None]:
    """Share of equal decisions over four sets of rules, and the reference's speed."""
    n = 300 if run.quick else 1200
    peer = measured("datatrove", "datatrove_rules.py", path, n)
    if peer is None:
        return None, None
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, n)]
    batch = Batch(texts).scan(Plan(measures=True))
    same = []
    for name, reasons in peer["reasons"].items():
        kept = getattr(Rules, name)().judge(batch, np.arange(n), []).kept
        same.append(float(np.mean(kept == np.array([reason == "" for reason in reasons]))))
        print(f"{name}: {same[-1]:.4f} of decisions the same")
    return float(np.mean(same)), peer["bytes"] / peer["seconds"] / 1e6
