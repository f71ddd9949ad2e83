"""Small heads trained for their cascade on real traffic: accuracy at a share of the large model's calls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Run
from benchmarks.outcomes import interval
from pilotfish.training.cascade_head import CascadeHead


def heads(run: Run) -> None:
    """Plain, cascade-aware and gated heads on banking77; the large model is the recorded one, the truth is gold."""
    train = list(run.rows("banking77/train.jsonl.gz"))
    test = list(run.rows("banking77/test.jsonl.gz"))
    n = 1500 if run.quick else 4000
    found: dict[str, list[float]] = {}
    seeds = range(1 if run.quick else 3)
    for seed in seeds:
        rows = [train[i] for i in np.random.default_rng(seed).permutation(len(train))[:n]]
        texts, labels, large = (
            [r["text"] for r in rows], [_name(r["label"]) for r in rows], [_name(r["llm"]) for r in rows]
        )  # fmt: skip
        kinds = {"plain": CascadeHead(), "aware": CascadeHead(aware=True), "gated": CascadeHead(gate=True)}
        for name, head in kinds.items():
            head.fit(texts, labels, large)
            said, sure = head.predict([r["text"] for r in test])
            right = np.array([a == _name(r["label"]) for a, r in zip(said, test, strict=True)], dtype=np.float64)
            strong = np.array([_name(r["llm"]) == _name(r["label"]) for r in test], dtype=np.float64)
            found.setdefault(name, []).append(_area(sure, right, strong))
    for name, areas in found.items():
        print(f"head {name:6s} mean accuracy over shares of large calls {np.mean(areas):.3f}")
    low, high = interval(found["aware"]) if len(seeds) > 1 else (None, None)
    run.figure(
        "head_cascade_accuracy", float(np.mean(found["aware"])), unit="accuracy, mean over shares of large calls",
        better="higher", n=len(test), seeds=len(seeds), low=low, high=high, peer="the same head trained plainly",
        peer_value=float(np.mean(found["plain"])), peer_source="measured", gated=float(np.mean(found["gated"])),
    )  # fmt: skip


def _name(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _area(sure: NDArray[np.float64], right: NDArray[np.float64], strong: NDArray[np.float64]) -> float:
    order = np.argsort(sure, kind="stable")
    curve = right.mean() + np.concatenate([[0.0], np.cumsum((strong - right)[order])]) / right.size
    return float(np.trapezoid(curve, dx=1 / right.size))
