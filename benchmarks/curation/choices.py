"""Choices of fine-tuning examples beside as many at random: by a target, by quality and diversity, in three stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.curation.labelled import SETS, accuracy, labelled, noisy, trust
from benchmarks.figures import Run, bootstrap
from pilotfish.curation.selection import diverse_best, k_centres, needed, representative
from pilotfish.models.embedder import StaticEmbedder

__all__ = ["choices"]

N_OF_A_SET = 2000


def choices(run: Run) -> None:
    """Every choice is judged by a line over static vectors that learns from it alone."""
    embedder = StaticEmbedder()
    sets = {name: labelled(run, name) for name in SETS}
    vectors = {
        name: (embedder.embed(texts).astype(float), embedder.embed(tested).astype(float))
        for name, (texts, _, tested, _) in sets.items()
    }
    truth = {name: (labels, tested) for name, (_, labels, _, tested) in sets.items()}
    seeds = range(1 if run.quick else 5)
    if run.wants("representative"):
        _representative(run, vectors, truth, seeds)
    if run.wants("lima"):
        _lima(run, vectors, truth, seeds)
    if run.wants("mods"):
        _mods(run, vectors, truth, seeds)


def _representative(run: Run, vectors: dict, truth: dict, seeds: range) -> None:
    """A tenth of the texts of three tasks, one of them the target's, of which 64 examples are known."""
    n = 600 if run.quick else N_OF_A_SET
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in vectors}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        drawn = {name: rng.permutation(len(own))[: n + 64] for name, (own, _) in vectors.items()}
        X = np.concatenate([vectors[name][0][part[64:]] for name, part in drawn.items()])
        # The labels of different tasks are different labels.
        y = np.concatenate([10 * i + truth[name][0][part[64:]] for i, (name, part) in enumerate(drawn.items())])
        k = len(X) // 10
        for i, (name, part) in enumerate(drawn.items()):
            tested, right = vectors[name][1], 10 * i + truth[name][1]
            chosen = representative(X, vectors[name][0][part[:64]], k)
            rows[name].append({
                "chosen": accuracy(X[chosen], y[chosen], tested, right),
                "random": _at_random(X, y, k, tested, right, rng),
                "all": accuracy(X, y, tested, right),
                "of the target's task": float(np.mean(y[chosen] // 10 == i)),
            })  # fmt: skip
    _report(run, "representative_vs_random_points", rows, "points of accuracy at a tenth, worst of three targets")


def _at_random(
    X: np.ndarray, y: np.ndarray, k: int, tested: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> float:
    draw = rng.permutation(len(X))[:k]
    return accuracy(X[draw], y[draw], tested, right)


@dataclass(frozen=True)
class _Pool:
    """A noisy pool of a set: vectors, the labels given, how far each is to be trusted, and what judges a choice."""

    name: str
    X: np.ndarray
    said: np.ndarray
    quality: np.ndarray
    tested: np.ndarray
    right: np.ndarray
    seed: int
    rng: np.random.Generator

    def worth(self, chosen: np.ndarray) -> float:
        """Accuracy of a line that learned from a choice."""
        return accuracy(self.X[chosen], self.said[chosen], self.tested, self.right)

    def at_random(self, k: int, among: np.ndarray) -> float:
        return _at_random(self.X[among], self.said[among], k, self.tested, self.right, self.rng)


def _pools(run: Run, vectors: dict, truth: dict, seeds: range) -> Iterator[_Pool]:
    for name, (X_all, tested) in vectors.items():
        labels, right = truth[name]
        for seed in seeds:
            rng = np.random.default_rng(seed)
            _, rows, said = noisy(labels, 3000 if run.quick else 6000, rng)
            X = X_all[rows]
            yield _Pool(name, X, said, trust(X, said), tested, right, seed, rng)


def _lima(run: Run, vectors: dict, truth: dict, seeds: range) -> None:
    """A thousand of a noisy pool by quality and diversity; quality is how far a label is to be trusted."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in vectors}
    k = 300 if run.quick else 1000
    for pool in _pools(run, vectors, truth, seeds):
        every = np.arange(len(pool.X))
        rows[pool.name].append({
            "chosen": pool.worth(diverse_best(pool.X, pool.quality, k, pool.seed)),
            "random": pool.at_random(k, every),
            "quality alone": pool.worth(np.argsort(-pool.quality, kind="stable")[:k]),
            "all": pool.worth(every),
        })  # fmt: skip
    _report(run, "lima_vs_random_points", rows, f"points of accuracy at {k:,} examples, worst of three sets")


def _mods(run: Run, vectors: dict, truth: dict, seeds: range) -> None:
    """What each stage adds at the same number of examples, of a noisy pool."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in vectors}
    k = 100 if run.quick else 400
    for pool in _pools(run, vectors, truth, seeds):

        def tuned(rows: np.ndarray, pool: _Pool = pool) -> np.ndarray:
            """What a line that learned from these rows gives each example's label."""
            line = LogisticRegression(C=10.0, max_iter=300).fit(pool.X[rows], pool.said[rows])
            out = np.zeros((len(pool.X), pool.said.max() + 1))
            out[:, line.classes_] = line.predict_proba(pool.X)
            return np.asarray(out[np.arange(len(pool.X)), pool.said])

        good = np.flatnonzero(pool.quality >= 1)
        rows[pool.name].append({
            "chosen": pool.worth(needed(pool.X, pool.quality, k, tuned, 1.0)),
            "random": pool.at_random(k, np.arange(len(pool.X))),
            "quality": pool.at_random(k, good),
            "quality, coverage": pool.worth(good[k_centres(pool.X[good], k)]),
        })  # fmt: skip
    stages = ("random", "quality", "quality, coverage", "chosen")
    gains = {
        f"gain_of_{name}": [round(100 * float(np.mean([row[b] - row[a] for row in of])), 2) for of in rows.values()]
        for name, a, b in zip(("quality", "coverage", "need"), stages, stages[1:], strict=False)
    }
    _report(run, "mods_vs_random_points", rows, f"points of accuracy at {k} examples, worst of three sets", **gains)


def _report(run: Run, figure: str, rows: dict[str, list[dict[str, float]]], unit: str, **more: list[float]) -> None:
    means = {
        name: {key: round(float(np.mean([row[key] for row in of])), 4) for key in of[0]} for name, of in rows.items()
    }
    for name, of in means.items():
        print(f"{figure.split('_')[0]} {name}: {of}", flush=True)
    gains = {name: np.array([100 * (row["chosen"] - row["random"]) for row in of]) for name, of in rows.items()}
    worst = min(gains.values(), key=np.mean)
    low, high = bootstrap(worst)
    run.figure(figure, float(worst.mean()), unit=unit, better="higher", n=len(rows), seeds=worst.size, low=low,
               high=high, accuracy=means, **more)  # fmt: skip
