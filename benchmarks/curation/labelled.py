"""Labelled texts of the shared data, how far their labels are to be trusted, and what a line learns from them."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from benchmarks.figures import Run

__all__ = ["SETS", "accuracy", "labelled", "noisy", "trust"]

SETS = {"ag_news": ("dev", "test"), "sst2": ("train", "test"), "hate_davidson": ("all", "")}


def labelled(run: Run, name: str) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Texts and labels to learn from, and to be judged on."""
    train, test = SETS[name]
    rows = [list(run.rows(f"{name}/{part}.jsonl.gz")) for part in (train, test) if part]
    key = "text" if "text" in rows[0][0] else "content"
    if not test:
        order = np.random.default_rng(0).permutation(len(rows[0]))
        rows = [[rows[0][i] for i in order[:8000]], [rows[0][i] for i in order[8000:12_000]]]
    known = {label: i for i, label in enumerate(sorted({r["label"] for r in rows[0]}))}
    a, b = ([(r[key], known[r["label"]]) for r in part] for part in rows)
    return [t for t, _ in a], np.array([y for _, y in a]), [t for t, _ in b], np.array([y for _, y in b])


def noisy(labels: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pool of which a fifth has wrong labels and a tenth are copies: rows that are clean, the pool's, its labels."""
    clean = rng.permutation(len(labels))[:n]
    given = labels[clean].copy()
    wrong = rng.random(clean.size) < 0.2
    given[wrong] = (given[wrong] + rng.integers(1, labels.max() + 1, wrong.sum())) % (labels.max() + 1)
    copies = rng.choice(clean.size, clean.size // 9, replace=False)
    return clean, np.concatenate([clean, clean[copies]]), np.concatenate([given, given[copies]])


def trust(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of each example's own label by a model that was fitted without it, relative to the likeliest."""
    model = LogisticRegression(C=3.0, max_iter=200)
    out = cross_val_predict(model, X, labels, cv=4, method="predict_proba")
    own = out[np.arange(labels.size), labels]
    return np.asarray(own / out.max(axis=1), dtype=np.float64)


def accuracy(X: np.ndarray, labels: np.ndarray, X_test: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of a line that learned from examples."""
    return float(np.mean(LogisticRegression(C=10.0, max_iter=300).fit(X, labels).predict(X_test) == test_labels))
